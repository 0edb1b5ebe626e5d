"""Statistics are those of the whole weights, at any length, and cost no bit of the output."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads

import attention_jax as aj
from attention_jax import block_sizes, scores
from attention_jax import statistics as ours
from attention_jax.statistics import AttentionStatistics, attention_statistics

B, T, N, K, H = 2, 43, 6, 2, 8
RANDOM = np.random.default_rng(0)
QUERY = jnp.asarray(2 * RANDOM.normal(size=(B, T, N, H)), jnp.float32)
KEY = jnp.asarray(RANDOM.normal(size=(B, T, K, H)), jnp.float32)
TOKENS = RANDOM.integers(0, 5, (B, T))
IDS = np.sort(RANDOM.integers(0, 3, (B, T)), axis=-1)
MASKS = {
    "none": None,
    "causal": aj.causal(),
    "window": aj.causal() & aj.sliding_window(5, 0),
    "segments": aj.causal() & aj.segments(jnp.asarray(IDS)),
    "lengths": aj.key_lengths(jnp.array([0, 29])),
    "array": RANDOM.random((B, N, T, T)) < 0.3,
}


@pytest.fixture
def small_blocks(monkeypatch):
    sizes = (6, 6), block_sizes.CPU._replace(tile=4)
    monkeypatch.setattr(
        ours, "grid_for", lambda mask, score, query, value, platform: block_sizes.block_grid(query, value, *sizes)
    )


def check(statistics: AttentionStatistics, true: dict, tolerance=3e-6):
    for name, values in true.items():
        found = np.asarray(getattr(statistics, name))
        if name == "top_keys":
            np.testing.assert_array_equal(found, values)
        else:
            np.testing.assert_allclose(found, values, atol=tolerance * max(np.abs(values).max(), 1), err_msg=name)


def truth(mask, top_k=3, bias=None):
    shape = (B, N, T, T)
    seen = np.broadcast_to(True if mask is None else np.asarray(aj.masks.as_mask(mask).to_array(T, T)), shape)
    weights = reference.weights(QUERY, KEY, seen, bias)
    return reference.statistics(weights, seen, TOKENS, top_k)


CASES = [(name, blocks) for name in MASKS for blocks in ("one", "many")]


@pytest.mark.slow
@pytest.mark.parametrize("name, blocks", CASES)
def test_of_the_whole_weights(name, blocks, request):
    if blocks == "many":
        request.getfixturevalue("small_blocks")
    mask = MASKS[name]
    check(attention_statistics(QUERY, KEY, mask=mask, tokens=TOKENS, top_k=3), truth(mask))


@pytest.mark.slow
def test_a_score_counts(small_blocks):
    slopes = np.arange(N) / 7
    distance = np.abs(np.arange(T)[:, None] - np.arange(T)[None, :])
    true = truth(aj.causal(), bias=-slopes[:, None, None] * distance)
    check(attention_statistics(QUERY, KEY, mask=aj.causal(), score=aj.alibi(slopes), tokens=TOKENS, top_k=3), true)


def test_of_the_oracle_by_hand():
    weights = np.array([[[[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.25, 0.25]]]])
    true = reference.statistics(weights, np.tril(np.ones((1, 1, 3, 3), bool)), np.array([[7, 7, 7]]), 2)
    assert true["entropy"][0, 0, 2] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(4))
    assert true["distance"][0, 0].tolist() == [0, 0.25, 1.25]
    assert true["received"][0, 0].tolist() == [1.75, 1.0, 0.25]
    assert true["top_keys"][0, 0].tolist() == [[0, -1], [1, 0], [0, 1]]
    assert true["previous_token"][0, 0] == pytest.approx((0.25 + 0.25) / 2)
    assert true["first_token"][0, 0] == pytest.approx(1.75 / 3)
    assert true["duplicate_token"][0, 0] == pytest.approx((0.25 + 0.75) / 2)
    assert true["induction"][0, 0] == pytest.approx((0.75 + 0.5) / 2)


@pytest.mark.slow
def test_equal_weights_name_the_first_keys(small_blocks):
    zeros = jnp.zeros((T, 1, H))
    found = attention_statistics(zeros, zeros, top_k=4)
    np.testing.assert_array_equal(found.top_keys, np.broadcast_to(np.arange(4), (1, T, 4)))
    np.testing.assert_allclose(found.entropy, np.log(T), rtol=1e-6)


@pytest.mark.slow
def test_more_top_keys_than_there_are():
    found = attention_statistics(QUERY[:, :, :, :], KEY, mask=aj.causal(), top_k=T + 2)
    assert (np.asarray(found.top_keys)[..., 0, 1:] == -1).all() and (found.top_weights[..., T:] == 0).all()
    np.testing.assert_allclose(found.top_weights.sum(-1), 1, rtol=1e-5)
    assert attention_statistics(QUERY, KEY, top_k=0).top_keys.shape == (B, N, T, 0)


@pytest.mark.slow
def test_other_lengths_and_positions(small_blocks):
    """Padding in front, as a cache has it: the same as of the tokens alone."""
    padding, alone = 6, attention_statistics(QUERY[:1], KEY[:1], mask=aj.causal())
    query, key = (jnp.pad(x[:1], ((0, 0), (padding, 0), (0, 0), (0, 0)), constant_values=3) for x in (QUERY, KEY))
    positions = (jnp.arange(T + padding) - padding)[None]
    padded = attention_statistics(query[:, -9:], key, mask=aj.causal(), positions=(positions[:, -9:], positions))
    np.testing.assert_allclose(padded.entropy, alone.entropy[..., -9:], atol=1e-5)
    np.testing.assert_allclose(padded.distance, alone.distance[..., -9:], atol=1e-4)
    np.testing.assert_array_equal(padded.top_keys, alone.top_keys[..., -9:, :] + padding)
    true = aj.attention_weights(QUERY[:1, -9:], KEY[:1], mask=aj.causal(offset=T - 9))
    np.testing.assert_allclose(padded.first_token, true[..., 0].mean(-1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("pad", [0, 7])
def test_padding_is_no_token_before(pad, small_blocks):
    """Whatever token padding holds, induction is that of the tokens alone."""
    alone, padding = attention_statistics(QUERY, KEY, mask=aj.causal(), tokens=TOKENS), 6
    query, key = (jnp.pad(x, ((0, 0), (padding, 0), (0, 0), (0, 0))) for x in (QUERY, KEY))
    tokens, positions = np.pad(TOKENS, ((0, 0), (padding, 0)), constant_values=pad), jnp.arange(T + padding) - padding
    mask = aj.causal() & ~aj.mask_from_function(lambda t, s: t < 0)
    padded = attention_statistics(query, key, mask=mask, positions=(positions, positions), tokens=tokens)
    for name in ("induction", "duplicate_token", "previous_token", "first_token"):
        np.testing.assert_allclose(getattr(padded, name), getattr(alone, name), atol=1e-6)


@pytest.mark.slow
def test_the_log_sum_exp_may_be_given(small_blocks):
    value = jnp.ones((*KEY.shape[:-1], 3))
    _, lse = aj.attention_and_lse(QUERY, KEY, value, mask=MASKS["array"])
    found = attention_statistics(QUERY, KEY, mask=MASKS["array"], tokens=TOKENS, top_k=3, lse=lse)
    check(found, truth(MASKS["array"]))


@pytest.mark.slow
def test_padding_that_is_not_finite_changes_no_bit():
    mask, dirty = aj.causal() & aj.key_lengths(jnp.array([30, 30])), KEY.at[:, 30:].set(jnp.nan)
    clean = attention_statistics(QUERY, KEY, mask=mask, tokens=TOKENS)
    for one, other in zip(clean, attention_statistics(QUERY, dirty, mask=mask, tokens=TOKENS), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_seen_and_not_finite_is_nan():
    found = attention_statistics(QUERY, KEY.at[0, 11].set(jnp.nan), mask=aj.causal())
    for array in (found.entropy, found.distance, found.top_weights[..., 0]):
        np.testing.assert_array_equal(np.isnan(array), np.broadcast_to(np.arange(T) >= 11, array.shape) * _first())
    assert (np.asarray(found.top_keys)[0, :, 11:] == -1).all()


def _first():
    return (np.arange(B) == 0)[:, None, None]


def test_output_bits_are_the_same_with_statistics():
    """In one compiled program, where XLA could compute what they share in another way."""

    def both(query, key, value):
        output, lse = aj.attention_and_lse(query, key, value, mask=aj.causal())
        return output, attention_statistics(query, key, mask=aj.causal(), lse=lse)

    value = jnp.asarray(RANDOM.normal(size=KEY.shape), jnp.float32)
    alone = jax.jit(partial(aj.attention, mask=aj.causal()))(QUERY, KEY, value)
    np.testing.assert_array_equal(jax.jit(both)(QUERY, KEY, value)[0], alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["entropy", "received", "induction", "distance"])
def test_gradients(name, small_blocks):
    weigh = jnp.asarray(RANDOM.normal(size=(T if name != "induction" else N,)))

    def of(query, key, statistics):
        found = jnp.sin(statistics(query, key))
        return jnp.sum(found * jnp.broadcast_to(weigh, found.shape))

    def blocks(query, key):
        return getattr(attention_statistics(query, key, mask=aj.causal(), tokens=TOKENS), name)

    def whole(query, key):
        weights = aj.attention_weights(query, key, mask=aj.causal())
        distance = np.broadcast_to(np.arange(T)[:, None] - np.arange(T), weights.shape)
        same = (TOKENS[:, None, :, None] == np.roll(TOKENS, 1, 1)[:, None, None, :]) & (distance >= 0)
        same &= np.arange(T) > 0
        return {
            "entropy": lambda: -jnp.sum(weights * jnp.log(jnp.where(weights > 0, weights, 1)), -1),
            "received": lambda: weights.sum(-2),
            "distance": lambda: jnp.sum(weights * jnp.abs(distance), -1),
            "induction": lambda: jnp.sum(weights * same, (-1, -2)) / same.any(-1).sum(-1),
        }[name]()

    for argument in (0, 1):
        found, true = (jax.grad(of, argument)(QUERY, KEY, fn) for fn in (blocks, whole))
        np.testing.assert_allclose(found, true, atol=2e-5 * np.abs(true).max())


@pytest.mark.slow
def test_forward_and_second_derivatives(small_blocks):
    few = QUERY[:1, :11, :2], KEY[:1, :11, :1]
    check_grads(lambda q, k: attention_statistics(q, k, mask=aj.causal()).entropy, few, 2, atol=2e-2, rtol=2e-2)


@pytest.mark.slow
def test_vmap_is_a_batch_dimension():
    batched = attention_statistics(QUERY, KEY, mask=aj.causal(), tokens=TOKENS)
    mapped = jax.vmap(lambda q, k, t: attention_statistics(q, k, mask=aj.causal(), tokens=t))(QUERY, KEY, TOKENS)
    for one, other in zip(batched, mapped, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_memory_at_16384():
    """The weights would take 4 GiB."""
    x = jax.ShapeDtypeStruct((1, 16384, 4, 64), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 16384), jnp.int32)
    compiled = jax.jit(partial(attention_statistics, mask=aj.causal())).lower(x, x, tokens=tokens).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 100 * 2**20


@pytest.mark.slow
def test_nothing_to_look_at():
    empty = attention_statistics(QUERY, KEY[:, :0])
    assert empty.received.shape == (B, N, 0) and (empty.entropy == 0).all() and (empty.top_keys == -1).all()
    blind = attention_statistics(QUERY, KEY, mask=aj.key_lengths(jnp.zeros(B, int)), tokens=TOKENS)
    for name, array in blind._asdict().items():
        np.testing.assert_array_equal(array, -1 if name == "top_keys" else 0)


@pytest.mark.parametrize("call, error, message", [
    (lambda: attention_statistics(QUERY, KEY, tokens=jnp.ones((B, T))), TypeError, "tokens must be integers"),
    (lambda: attention_statistics(QUERY, KEY, tokens=TOKENS[:, 1:]), ValueError, r"tokens must be \[\*B, T\]"),
    (lambda: attention_statistics(QUERY[:, :9], KEY, tokens=TOKENS), ValueError, "T = 9 queries and S = 43 keys"),
    (lambda: jax.jit(lambda k: attention_statistics(QUERY, KEY, top_k=k))(3), TypeError, "top_k must be static"),
    (lambda: attention_statistics(QUERY, KEY, lse=jnp.zeros((B, T, N))), ValueError, r"lse must be \[\*B, N, T\]"),
    (lambda: attention_statistics(QUERY, KEY, top_k=-1), ValueError, "top_k must be at least 0"),
    (lambda: attention_statistics(QUERY, KEY[..., :4]), ValueError, "key"),
    (lambda: attention_statistics(QUERY, KEY, mask=np.ones((B, T, T))), TypeError, "mask"),
    (lambda: attention_statistics(QUERY, KEY, score=scores.bias(np.zeros((3, 3)))), ValueError, "bias"),
])  # fmt: skip
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_dtypes():
    half = attention_statistics(QUERY.astype(jnp.bfloat16), KEY.astype(jnp.bfloat16), mask=aj.causal())
    assert half.entropy.dtype == half.top_weights.dtype == jnp.float32 and half.top_keys.dtype == jnp.int32


def test_blocks_are_those_of_attention():
    assert ours.grid_for is block_sizes.grid_for


def test_a_log_sum_exp_of_a_narrow_dtype_does_not_narrow_the_rest():
    lse = jnp.zeros((B, N, T), jnp.bfloat16)
    assert attention_statistics(QUERY, KEY, lse=lse).entropy.dtype == jnp.float32
