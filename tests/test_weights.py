"""The weights asked for are the rows and heads of the whole, for every mask and score."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import suite

import attention_jax as aj
from attention_jax import scores

SHAPE = T, S, N, K, H, Hv, batch = suite.SHAPES["grouped"]
ROWS, HEADS = [3, 0, 3, -1], [5, 2]
SCORES = {
    "alibi": scores.alibi(jnp.arange(N) / 7, offset=4),
    "bias": scores.bias(np.random.default_rng(0).normal(size=(*batch, N, T, S))),
    "function": scores.score_from_function(lambda logit, head, t, s: logit * jnp.cos(t - s) - head),
}


@pytest.fixture(scope="module")
def query_key():
    return suite.inputs(SHAPE)[:2]


@pytest.mark.slow
@pytest.mark.parametrize("name", suite.MASKS)
def test_every_mask(name, query_key):
    make, truth = suite.MASKS[name]
    mask, visible = make(T, S, N, batch), truth(T, S, N, batch)
    bias = np.random.default_rng(1).normal(size=(T, S)).astype(np.float32)
    true = reference.weights(*query_key, visible, bias)
    whole = aj.attention_weights(*query_key, mask=mask, bias=bias)
    some = aj.attention_weights(*query_key, mask=mask, bias=bias, rows=ROWS, heads=HEADS)
    assert suite.error(whole, true) <= suite.TOLERANCES["float32"]
    assert suite.error(some, true[:, HEADS][..., ROWS, :]) <= suite.TOLERANCES["float32"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORES)
def test_every_score(name, query_key):
    weights = partial(aj.attention_weights, *query_key, mask=aj.causal(offset=2), score=SCORES[name])
    identity = jnp.broadcast_to(jnp.eye(S)[:, None], (*batch, S, K, S))
    true = aj.multi_head_attention(*query_key, identity, mask=aj.causal(offset=2), score=SCORES[name])
    assert suite.error(weights(), jnp.swapaxes(true, -2, -3)) <= suite.TOLERANCES["float32"]
    np.testing.assert_allclose(
        weights(rows=ROWS, heads=HEADS), weights()[:, np.array(HEADS)][..., np.array(ROWS), :], atol=1e-7
    )


@pytest.mark.slow
def test_positions_are_those_of_attention(query_key):
    """With them go rows of the mask and of the score; a key at a negative one is seen by none."""
    chance = np.random.default_rng(2)
    positions = chance.integers(0, 40, (*batch, T)), chance.integers(-3, 40, (*batch, S))
    options = {"mask": aj.causal(), "score": scores.alibi(jnp.arange(N) / 7), "positions": positions}
    identity = jnp.broadcast_to(jnp.eye(S)[:, None], (*batch, S, K, S))
    true = jnp.swapaxes(aj.attention(*query_key, identity, **options), -2, -3)
    weights = aj.attention_weights(*query_key, **options)
    assert suite.error(weights, true) <= suite.TOLERANCES["float32"]
    some = aj.attention_weights(*query_key, **options, rows=ROWS, heads=HEADS)
    np.testing.assert_allclose(some, weights[:, np.array(HEADS)][..., np.array(ROWS), :], atol=1e-7)
    one = aj.attention_weights(
        *(x[0, :, 0] for x in query_key), mask=aj.causal(), positions=tuple(each[0] for each in positions)
    )
    plain = aj.attention_weights(*query_key, mask=aj.causal(), positions=positions)
    np.testing.assert_allclose(one, plain[0, 0], atol=1e-7)


@pytest.mark.slow
def test_one_head_and_a_head_more_than_once(query_key):
    query, key = (x[0, :, 0] for x in query_key)
    whole = aj.attention_weights(query, key, mask=aj.causal(offset=0))
    one = aj.attention_weights(query, key, mask=aj.causal(offset=0), rows=[-2])
    np.testing.assert_allclose(one, whole[-2:-1], atol=1e-7)
    twice = aj.attention_weights(query[:1, None], key[:, None], rows=[0, 0], heads=[0, 0, 0])
    np.testing.assert_allclose(twice, np.broadcast_to(aj.attention_weights(query[:1], key), (3, 2, S)), atol=1e-7)


@pytest.mark.parametrize("options", [{"rows": []}, {"heads": []}, {"rows": (), "heads": jnp.zeros(0, int)}])
@pytest.mark.parametrize("mask", [None, aj.key_lengths(np.array([3, 5]))])
def test_no_rows_or_heads(options, mask, query_key):
    query, key = query_key
    shape = (*batch, 0 if "heads" in options else N, 0 if "rows" in options else T, S)
    assert aj.attention_weights(query, key, mask=mask, **options).shape == shape
    assert aj.attention_weights(query[:, :, :0], key, mask=mask).shape == (*batch, 0, T, S)


def test_memory_is_that_of_the_rows():
    x = jax.ShapeDtypeStruct((1, 8192, 4, 8), jnp.float32)
    some = jax.jit(lambda query, key: aj.attention_weights(query, key, mask=aj.causal(), rows=[7, 4000], heads=[1]))
    assert some.lower(x, x).compile().memory_analysis().temp_size_in_bytes < 10 * 2**20


@pytest.mark.parametrize("options, error, message", [
    ({"rows": [T]}, ValueError, f"rows must lie in -{T} .. {T - 1}, got {T}"),
    ({"heads": [-7]}, ValueError, "heads must lie in -6 .. 5, got -7"),
    ({"rows": [True]}, TypeError, r"rows must be integers, got bool\[1\]"),
    ({"heads": 3}, TypeError, r"heads must be a list of integers, got int32\[\]"),
])  # fmt: skip
def test_what_does_not_exist_is_refused(options, error, message, query_key):
    with pytest.raises(error, match=message):
        aj.attention_weights(*query_key, **options)


def test_what_does_not_exist_is_refused_under_jit(query_key):
    with pytest.raises(ValueError, match=f"rows must lie in -{T} .. {T - 1}, got {T}"):
        jax.jit(lambda query, key: aj.attention_weights(query, key, rows=[0, T]))(*query_key)


def test_one_head_has_no_heads_to_choose(query_key):
    with pytest.raises(ValueError, match=r"heads= wants query \[\*B, T, N, H\], got one head, query \(19, 8\)"):
        aj.attention_weights(query_key[0][0, :, 0], query_key[1][0, :, 0], heads=[0])


@pytest.mark.slow
def test_traced_rows_beyond_the_end_are_nan(query_key):
    weights = jax.jit(lambda rows: aj.attention_weights(*query_key, rows=rows))(jnp.array([2, T, -1]))
    np.testing.assert_allclose(weights[..., [0, 2], :], aj.attention_weights(*query_key, rows=[2, -1]), atol=1e-7)
    assert np.isnan(weights[..., 1, :]).all()
