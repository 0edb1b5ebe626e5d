"""Reading token by token through a cache is reading all at once, whatever the examples' lengths."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import suite
from flax import nnx

import attention_jax as aj
from attention_jax.modules import MultiHeadAttention, SinusoidalPositions, TransformerBlock, TransformerLM

T, N, K, H, Hv = 9, 4, 2, 8, 5


@pytest.fixture(scope="module")
def arrays():
    return suite.inputs((T, T, N, K, H, Hv, (2,)))[:3]


@pytest.mark.parametrize("chunks", [[9], [4, 1, 3, 1], pytest.param([1] * 9, marks=pytest.mark.slow)])
@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_in_chunks(implementation, chunks, arrays):
    query, key, value = arrays
    cache, outputs, first = aj.KVCache.empty(12, K, H, value_dim=Hv, batch=(2,)), [], 0

    @jax.jit
    def step(cache, query, key, value):
        cache = cache.append(key, value)
        options = {"mask": aj.causal(), "positions": cache.positions(query.shape[1]), "implementation": implementation}
        return cache, aj.attention(query, cache.key, cache.value, **options)

    for T_ in chunks:
        cache, output = step(cache, *(x[:, first : first + T_] for x in arrays))
        outputs.append(output)
        first += T_
    truth = reference.attention(query, key, value, np.tri(T, dtype=bool))
    assert suite.error(jnp.concatenate(outputs, axis=1), truth) <= suite.TOLERANCES["float32"]
    assert cache.length.tolist() == [9, 9] and cache.capacity == 12


@pytest.mark.slow
def test_examples_of_different_lengths(arrays):
    """Each example goes on where it stood, also under grad."""
    query, key, value = arrays
    held = [3, 6]
    cache = aj.KVCache.empty(T, K, H, value_dim=Hv, batch=(2,))
    cache = aj.KVCache(
        *(
            jnp.stack([full[b].at[: held[b]].set(x[b, : held[b]]) for b in (0, 1)])
            for full, x in ((cache.key, key), (cache.value, value))
        ),
        jnp.array(held),
    )
    new = [jnp.stack([x[b, held[b] : held[b] + 3] for b in (0, 1)]) for x in arrays]

    def attend(query, key, value):
        longer = cache.append(key, value)
        return aj.attention(query, longer.key, longer.value, mask=aj.causal(), positions=longer.positions(3))

    output = attend(*new)
    truth = reference.attention(query, key, value, np.tri(T, dtype=bool))
    for b in (0, 1):
        assert suite.error(output[b], truth[b, held[b] : held[b] + 3]) <= suite.TOLERANCES["float32"]
    slopes = jax.grad(lambda *new: jnp.sum(attend(*new) ** 2), (0, 1, 2))(*new)
    assert all((jnp.abs(slope) > 0).any(axis=-1).all() for slope in slopes[:1]) and len(slopes) == 3


def test_appending_changes_nothing_that_was_there(arrays):
    _, key, value = arrays
    before = aj.KVCache.empty(T, K, H, value_dim=Hv, batch=(2,)).append(key[:, :4], value[:, :4])
    after = before.append(key[:, 4:6], value[:, 4:6])
    assert before.length.tolist() == [4, 4] and (before.key[:, 4:] == 0).all()
    np.testing.assert_array_equal(after.key[:, :6], key[:, :6])
    np.testing.assert_array_equal(after.value[:, :6], value[:, :6])


@pytest.mark.slow
@pytest.mark.parametrize("beyond", [0, 7])
@pytest.mark.parametrize("mask", [aj.causal(), aj.sliding_window(1, 0)])
def test_overrun_is_nan_where_the_length_is_traced(mask, beyond, arrays):
    """Of the example that overruns, and of no other, however far it does."""
    query, key, value = arrays
    cache = aj.KVCache(
        jnp.zeros((2, 5, K, H)), jnp.zeros((2, 5, K, Hv)), jnp.array([2, 3])
    ).append(key[:, :1], value[:, :1])  # fmt: skip

    @jax.jit
    def step(cache):
        cache = cache.append(key[:, :2], value[:, :2])
        return aj.attention(query[:, :2], cache.key, cache.value, mask=mask, positions=cache.positions(2))

    output = step(replace(cache, length=cache.length + jnp.array([0, beyond])))
    assert np.isfinite(output[0]).all() and np.isnan(output[1]).all()
    with pytest.raises(ValueError, match="2 more tokens on the 4 it holds do not fit in a capacity of 5"):
        cache.append(key[:, :2], value[:, :2])


def test_a_step_is_compiled_once(arrays):
    traces = []

    @jax.jit
    def step(cache, key, value):
        traces.append(None)
        return cache.append(key, value)

    cache = aj.KVCache.empty(T, K, H, value_dim=Hv, batch=(2,))
    for t in range(4):
        cache = step(cache, *(x[:, t : t + 1] for x in arrays[1:]))
    assert len(traces) == 1


RULES = {
    "causal": aj.causal(),
    "window": aj.sliding_window(3, 1),
    "prefix": aj.causal() | aj.prefix(4),
    "hidden": ~aj.key_lengths(np.array([1, 3])) & aj.causal(),
    "function": aj.mask_from_function(lambda t, s: (t * s) % 3 != 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_a_mask_and_a_score_at_other_positions(implementation, rule, arrays):
    """Are those of the whole, at these rows and columns; and a key at a negative position is not there."""
    query, key, value = arrays
    generator = np.random.default_rng(5)
    rows, columns = generator.integers(0, 12, (2, T)), generator.integers(-1, 12, (2, T))
    columns[:, :2] = 0, -1
    whole = np.broadcast_to(RULES[rule].to_array(12, 12), (2, 1, 12, 12))
    truth = np.stack([whole[b, 0][rows[b]][:, columns[b]] & (columns[b] >= 0) for b in (0, 1)])[:, None]
    np.testing.assert_array_equal(RULES[rule].place(rows, columns).to_array(T, T), truth)

    slopes = np.array([0.5, 0.1, 0.7, 0.2])
    bias = -slopes[:, None, None] * np.abs(rows[:, None, :, None] - columns[:, None, None, :])
    options = {"mask": RULES[rule], "score": aj.alibi(slopes), "positions": (rows, columns)}
    output = jax.jit(lambda *x: aj.attention(*x, **options, implementation=implementation))(query, key, value)
    expected = reference.attention(query, key, value, truth, bias=bias)
    assert suite.error(output, expected) <= suite.TOLERANCES["float32"]
    assert "place" in str(RULES[rule].place(rows, columns))


def test_what_a_placed_mask_says_of_blocks_holds():
    generator = np.random.default_rng(6)
    for mask in (aj.causal(), aj.sliding_window(2, 1), ~aj.causal(), aj.prefix(3)):
        for _ in range(20):
            placed = mask.place(generator.integers(0, 9, 2), generator.integers(-1, 9, 3))
            some, every = placed.some_every((0, 1), (0, 2))
            seen = placed.to_array(2, 3)
            assert some or not seen.any()
            assert seen.all() or not every


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [[3, 3, 3], [1] * 9, [2, 1, 3, 3]])
def test_a_ring_holds_what_a_window_sees(chunks, arrays):
    query, key, value = arrays
    cache, outputs, first = aj.KVCache.empty(5, K, H, value_dim=Hv, batch=(2,), ring=True), [], 0
    mask = aj.causal() & aj.sliding_window(2, 0)
    for T_ in chunks:
        now = slice(first, first + T_)
        cache.check_mask(mask, T_)
        cache = cache.append(key[:, now], value[:, now])
        outputs.append(aj.attention(query[:, now], cache.key, cache.value, mask=mask, positions=cache.positions(T_)))
        first += T_
    truth = reference.attention(query, key, value, np.tri(T, dtype=bool) & ~np.tri(T, k=-3, dtype=bool))
    assert suite.error(jnp.concatenate(outputs, axis=1), truth) <= suite.TOLERANCES["float32"]


def rotary(**options):
    return partial(
        MultiHeadAttention, rotary=partial(aj.rotary_embedding, frequencies=aj.rotary_frequencies(8)), **options
    )


def block(attention):
    return {"positions": None, "block": partial(TransformerBlock, attention=attention)}


SCHEMES = {
    "learned": {},
    "sinusoidal": {"positions": SinusoidalPositions},
    "rotary": block(rotary(num_kv_heads=2)),
    "alibi": block(
        partial(
            MultiHeadAttention, num_kv_heads=1, attention_fn=partial(aj.attention, score=aj.alibi(aj.alibi_slopes(4)))
        )
    ),
    "scan, fused": {"scan": True, **block(rotary(fused=True))},
}
MASKS = {"causal": None, "window": aj.sliding_window(3, 0), "prefix": aj.sliding_window(2, 0) | aj.prefix(2)}
PADDING = np.array([0, 3])


def language_model(scheme):
    model = TransformerLM(13, 12, 32, 4, 2, rngs=nnx.Rngs(0), **SCHEMES[scheme])
    model.tokens.embedding[...] = jax.random.normal(jax.random.key(8), (13, 32))  # so that tokens are far apart
    return model


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [[4, 1, 1, 3, 1, 1], [1] * 11], ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_reading_on_is_the_full_forward_pass(scheme, mask, chunks):
    """Padding is told to the cache, or to mask and positions by who calls; a window needs but a ring."""
    model, tokens = language_model(scheme), np.random.default_rng(0).integers(0, 13, (2, 11))
    rule = MASKS[mask]
    alone = [model(tokens[b, PADDING[b] :], mask=rule) for b in (0, 1)]
    hidden = ~aj.key_lengths(PADDING) if rule is None else rule & ~aj.key_lengths(PADDING)
    embedded = None if scheme == "alibi" else np.maximum(np.arange(11) - PADDING[:, None], 0)

    def read(cache, mask, positions):
        step, logits, first = jax.jit(lambda *x: model(x[0], positions=x[1], cache=x[2], mask=mask)), [], 0
        for T_ in chunks:
            now = slice(first, first + T_)
            part, cache = step(tokens[:, now], None if positions is None else positions[:, now], cache)
            logits.append(part)
            first += T_
        return jnp.concatenate(logits, axis=1)

    ways = [
        read(model.empty_cache(11, batch=(2,), padding=PADDING), rule, None),
        model(tokens, mask=hidden, positions=embedded),
    ]
    if mask != "prefix":  # which goes by positions that padding has moved
        ways.append(read(model.empty_cache(12, batch=(2,)), hidden, embedded))
    else:
        ways.pop()
    if mask == "window":
        ways.append(read(model.empty_cache(3 + max(chunks), batch=(2,), padding=PADDING, ring=True), rule, None))
    for logits in ways:
        for b in (0, 1):
            assert suite.error(logits[b, PADDING[b] :], alone[b]) <= 3e-6


@pytest.mark.slow
def test_beyond_the_position_table_is_nan_where_the_length_is_traced():
    model = language_model("learned")
    cache = model.empty_cache(20)
    _, cache = model(np.zeros(12, int), cache=cache)
    with pytest.raises(ValueError, match="do not fit the position table of 12 rows"):
        model(np.zeros(1, int), cache=cache)
    logits, _ = jax.jit(lambda cache: model(np.zeros(1, int), cache=cache))(cache)
    assert np.isnan(logits).all()


@pytest.mark.slow
def test_a_cache_has_the_dtype_of_the_model():
    model = language_model("rotary")
    half = nnx.merge(nnx.graphdef(model), jax.tree.map(jnp.bfloat16, nnx.state(model)))
    cache = half.empty_cache(5, batch=(2,))
    logits, cache = half(np.zeros((2, 3), int), cache=cache)
    assert {x.dtype for x in (logits, cache[0].key, cache[1].value)} == {jnp.dtype("bfloat16")}


@pytest.mark.slow
@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("batch, T", [((), 0), ((2,), 0), ((0,), 1)])
def test_nothing_is_appended(batch, T, ring):
    cache = aj.KVCache.empty(4, 2, 3, batch=batch, ring=ring)
    new = jnp.ones((*batch, T, 2, 3))
    for append in (cache.append, jax.jit(lambda *new: cache.append(*new))):
        after = append(new, new)
        np.testing.assert_array_equal(after.key, cache.key)
        np.testing.assert_array_equal(after.length, cache.length + T)


def test_padding_as_a_list():
    assert aj.KVCache.empty(4, 2, 8, batch=(2,), padding=[0, 3]).length.tolist() == [0, -3]
