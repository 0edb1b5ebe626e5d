"""Reading token by token through a cache is reading all at once, whatever the examples' lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import suite

import attention_jax as aj

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
        mask = cache.mask(query.shape[1])
        return cache, aj.attention(query, cache.key, cache.value, mask=mask, implementation=implementation)

    for T_ in chunks:
        cache, output = step(cache, *(x[:, first : first + T_] for x in arrays))
        outputs.append(output)
        first += T_
    truth = reference.attention(query, key, value, np.tri(T, dtype=bool))
    assert suite.error(jnp.concatenate(outputs, axis=1), truth) <= suite.TOLERANCES["float32"]
    assert cache.length.tolist() == [9, 9] and cache.capacity == 12


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
        return aj.attention(query, longer.key, longer.value, mask=longer.mask(3))

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


def test_overrun_is_nan_where_the_length_is_traced(arrays):
    """Of the example that overruns, and of no other."""
    query, key, value = arrays
    cache = aj.KVCache(
        jnp.zeros((2, 5, K, H)), jnp.zeros((2, 5, K, Hv)), jnp.array([2, 3])
    ).append(key[:, :1], value[:, :1])  # fmt: skip

    @jax.jit
    def step(cache):
        cache = cache.append(key[:, :2], value[:, :2])
        return aj.attention(query[:, :2], cache.key, cache.value, mask=cache.mask(2))

    output = step(cache)
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


@pytest.mark.parametrize("first", [np.array([0, 3]), np.array(2)])
def test_causal_from_is_causal_with_offsets(first):
    mask = aj.causal_from(jnp.asarray(first))
    whole = np.asarray(mask.to_array(3, 6))
    for index, offset in np.ndenumerate(first):
        part = whole[index][0] if first.ndim else whole
        np.testing.assert_array_equal(part, aj.causal(offset=int(offset)).to_array(3, 6))


def test_causal_from_skips_blocks_at_run_time():
    """What it says of blocks is what the blocks hold."""
    mask = aj.causal_from(jnp.array(5))
    whole = np.asarray(mask.to_array(8, 16))
    for r, c in np.ndindex(4, 8):
        block = whole[2 * r : 2 * r + 2, 2 * c : 2 * c + 2]
        some, every = mask.some_every((2 * r, 2 * r + 1), (2 * c, 2 * c + 1))
        assert bool(some) == block.any() and bool(every) == block.all()
