"""Heads that share key and value are computed as one head's queries where nothing else tells them apart."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import suite

import attention_jax as aj
from attention_jax.block_sizes import CPU
from attention_jax.multi_query import as_one_head

B, T, S, N, H, Hv = 2, 9, 13, 3, 8, 5
QUERY, KEY, VALUE, COTANGENT = suite.inputs((T, S, N, 1, H, Hv, (B,)))
LENGTHS = np.array([0, 7])
CHANCE = np.random.default_rng(0)

MASKS = {
    "none": None,
    "causal": aj.causal(offset=2),
    "window": aj.sliding_window(2, 1, offset=1),
    "lengths": aj.key_lengths(LENGTHS),
    "joined": aj.causal(offset=-1) & ~aj.prefix(1) | aj.key_lengths(LENGTHS) & aj.prefix(3),
    "array of keys": CHANCE.random((1, S)) < 0.5,
    "array of each example's keys": CHANCE.random((B, 1, 1, S)) < 0.5,
}


def shape_and_mask(mask, score=None, rate=0.0, platform="cpu", shapes=((B, T, N, H), (B, S, 1, Hv))):
    mask = None if mask is None else aj.mask_from_array(mask) if isinstance(mask, np.ndarray | jax.Array) else mask
    return as_one_head(*shapes, mask, score, rate, platform)


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKS)
def test_every_mode(name):
    """Also cut up into blocks of rows that are no whole number of positions."""
    inputs, modes = (QUERY, KEY, VALUE), partial(suite.every_mode, COTANGENT, mask=MASKS[name])
    truth = suite.exact(modes, inputs)
    for sizes in (CPU, CPU._replace(block=8, narrow=8, tile=3, step=1, few=1, alone=1)):
        with mock.patch("attention_jax.block_sizes.CPU", sizes):
            suite.close(jax.jit(partial(modes, "blockwise"))(*inputs), truth, 1e-5)


@pytest.mark.parametrize("name", MASKS)
def test_rows_are_those_of_all_heads_of_a_position(name):
    shape, mask = shape_and_mask(MASKS[name])
    assert shape == (B, T * N, 1, H)
    if MASKS[name] is None:
        assert mask is None
        return
    whole = aj.mask_from_array(MASKS[name]) if isinstance(MASKS[name], np.ndarray) else MASKS[name]
    rows = jnp.broadcast_to(mask.to_array(T * N, S), (B, 1, T * N, S)).reshape(B, T, N, S)
    np.testing.assert_array_equal(
        rows, jnp.broadcast_to(whole.to_array(T, S), (B, 1, T, S)).swapaxes(1, 2).repeat(N, 2)
    )
    mask.check(T * N, S)


TOLD_APART = {
    "segments": {"mask": aj.segments(np.zeros((B, T), int), np.zeros((B, S), int))},
    "array of rows": {"mask": CHANCE.random((T, S)) < 0.5},
    "array of heads": {"mask": CHANCE.random((B, N, 1, S)) < 0.5},
    "function": {"mask": aj.mask_from_function(lambda t, s: t >= s)},
    "function among others": {"mask": aj.prefix(2) & aj.mask_from_function(lambda t, s: t >= s)},
    "positions": {"mask": aj.causal().place(np.arange(T), np.arange(S))},
    "score": {"mask": None, "score": aj.soft_cap(3.0)},
    "dropout": {"mask": None, "rate": 0.5},
    "device": {"mask": None, "platform": "gpu"},
    "own keys": {"mask": None, "shapes": ((B, T, 4, H), (B, S, 2, Hv))},
    "one head": {"mask": None, "shapes": ((B, T, 1, H), (B, S, 1, Hv))},
    "lone query": {"mask": None, "shapes": ((B, 1, N, H), (B, S, 1, Hv))},
    "more keys than rows": {"mask": None, "shapes": ((B, 43, N, 64), (B, 130, 1, 64))},
    "many keys under a mask known while tracing": {
        "mask": aj.causal(offset=0),
        "shapes": ((B, 43, N, 64), (B, 129, 1, 64)),
    },
}


@pytest.mark.parametrize("name", TOLD_APART)
def test_what_tells_heads_apart_or_is_faster_by_heads(name):
    options = {"shapes": ((B, T, N, H), (B, S, 1, Hv)), **TOLD_APART[name]}
    shape, mask = shape_and_mask(**options)
    assert shape == options["shapes"][0]
    assert mask is options["mask"] or isinstance(options["mask"], np.ndarray)


def test_many_keys_without_a_mask_or_with_one_of_arrays():
    shapes = (B, 43, N, 64), (B, 129, 1, 64)
    for mask in (None, aj.key_lengths(LENGTHS)):
        assert shape_and_mask(mask, shapes=shapes)[0] == (B, 129, 1, 64)


def test_queries_are_not_copied():
    query, key = jax.ShapeDtypeStruct((B, 100, N, 16), jnp.float32), jax.ShapeDtypeStruct((B, 40, 1, 16), jnp.float32)
    turned = f"(tensor<{B}x100x{N}x16xf32>) -> tensor<{B}x{N}x100x16xf32>"
    for score, copied in {None: False, aj.soft_cap(3.0): True}.items():
        loss = jax.grad(lambda *x, score=score: aj.attention(*x, score=score).sum())
        assert (turned in jax.jit(loss).lower(query, key, key).as_text()) == copied


def test_explain_counts_the_queries_of_each_head():
    x, key = jnp.ones((64, 4, 8)), jnp.ones((32, 1, 8))
    plan = aj.explain(x, key, key, mask=aj.prefix(16))
    assert (plan.blocks, plan.skipped, plan.unmasked, plan.block_size) == (1, 0, 0, (64, 32))
