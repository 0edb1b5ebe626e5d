"""The cases that every implementation of attention is put through, and how near to the oracle it has to come."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from x64 import x64_if

import attention_jax as aj
from attention_jax import (
    causal,
    key_lengths,
    mask_from_array,
    mask_from_function,
    multi_head_attention,
    prefix,
    scores,
    segments,
    sliding_window,
)
from attention_jax.block_sizes import CPU
from attention_jax.blockwise import blockwise_attention

# `multi_head_attention` compiled as one, which is faster to test than operation by operation
attend = jax.jit(multi_head_attention, static_argnames=("dropout_rate", "precision"))


def blockwise(query, key, value, *, bias=None, score=None, block_sizes=(8, 5), tile=3, **options):
    """Blocks so small that even these cases have several, some of them empty and some full, and tiles of a block that
    a mask cuts through."""
    score = score if bias is None else scores.bias(bias)
    with mock.patch("attention_jax.block_sizes.CPU", CPU._replace(tile=tile)):
        return blockwise_attention(query, key, value, score=score, block_sizes=block_sizes, **options)[0]


def many_small_blocks(*arrays, **options):
    """As `blockwise`, with the products of a step that has many heads; and square, which says more of their tiles."""
    with mock.patch("attention_jax.blocks.steps.many_small", return_value=True):
        return blockwise(*arrays, **{"block_sizes": (7, 7), "tile": 4, **options})


def one_block(*arrays, at_once=False, **options):
    """All weights in one block, which has ways of its own where the keys are few, as an old XLA wants them, or a new
    one."""
    with mock.patch("attention_jax.blocks.block_form.OLD_XLA", not at_once):
        return blockwise(*arrays, **{**options, "block_sizes": None, "tile": CPU.tile})


IMPLEMENTATIONS = {
    "reference": multi_head_attention,
    "blockwise": blockwise,
    "many small blocks": many_small_blocks,
    "one block": one_block,
    "one block, its softmax at once": partial(one_block, at_once=True),
}

# Largest error allowed, as a share of the largest true value. The inputs are first rounded to the dtype, and the oracle
# is given the rounded ones, so that what is left is the arithmetic's own error and the rounding of the output.
TOLERANCES = {"float64": 1e-14, "float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-11}
GRADIENT_TOLERANCES = {"float64": 1e-13, "float32": 3e-6, "bfloat16": 2**-7, "float16": 2**-10}

# (T, S), (N, K), (H, Hv), batch
SHAPES = {
    "one of each": (1, 1, 1, 1, 1, 1, ()),
    "7 on 112": (7, 112, 4, 4, 8, 8, ()),
    "grouped": (19, 33, 6, 2, 8, 5, (2,)),
    "multi-query": (33, 7, 4, 1, 16, 3, (3,)),
    "two batch dims": (5, 9, 2, 2, 4, 11, (2, 3)),
    "539": (539, 539, 2, 1, 8, 8, ()),
}


def segment_ids(batch, length, seed):
    return np.sort(np.random.default_rng(seed).integers(0, 3, (*batch, length)), axis=-1).astype(np.int32)


def lengths(batch, S, seed):
    return np.random.default_rng(seed).integers(0, S + 1, batch).astype(np.int32)


def by_rule(rule):
    """A mask's truth by asking `rule(t, s)` of every pair, one at a time."""
    return lambda T, S, N, batch: np.array([[bool(rule(t, s)) for s in range(S)] for t in range(T)]).reshape(T, S)


def _segments_truth(T, S, N, batch):
    rows, columns = segment_ids(batch, T, 1), segment_ids(batch, S, 2)
    truth = np.zeros((*batch, 1, T, S), bool)
    for *b, t, s in np.ndindex(*batch, T, S):
        truth[(*b, 0, t, s)] = rows[(*b, t)] == columns[(*b, s)]
    return truth


def _lengths_truth(T, S, N, batch):
    limits = lengths(batch, S, 3)
    truth = np.zeros((*batch, 1, T, S), bool)
    for *b, t, s in np.ndindex(*batch, T, S):
        truth[(*b, 0, t, s)] = s < limits[tuple(b)]
    return truth


def _random(T, S, N, batch):
    return np.random.default_rng(4).random((*batch, N, T, S)) < 0.5


# name: (what makes the mask, what makes the truth), both called with T, S, N, batch
MASKS = {
    "none": (lambda T, S, N, batch: None, by_rule(lambda t, s: True)),
    "causal": (lambda T, S, N, batch: causal(offset=2), by_rule(lambda t, s: s <= t + 2)),
    "causal, rows that see nothing": (
        lambda T, S, N, batch: causal(offset=-2),
        by_rule(lambda t, s: s <= t - 2),
    ),
    "window": (lambda T, S, N, batch: sliding_window(3, 1, offset=0), by_rule(lambda t, s: t - 3 <= s <= t + 1)),
    "prefix": (lambda T, S, N, batch: prefix(4), by_rule(lambda t, s: s < 4)),
    "prefix-LM": (
        lambda T, S, N, batch: causal(offset=0) | prefix(4),
        by_rule(lambda t, s: s <= t or s < 4),
    ),
    "segments": (
        lambda T, S, N, batch: segments(segment_ids(batch, T, 1), segment_ids(batch, S, 2)),
        _segments_truth,
    ),
    "lengths": (lambda T, S, N, batch: key_lengths(lengths(batch, S, 3)), _lengths_truth),
    "array": (lambda T, S, N, batch: mask_from_array(_random(T, S, N, batch)), _random),
    "bool array": (_random, _random),
    "function": (
        lambda T, S, N, batch: mask_from_function(lambda t, s: (t * s) % 3 != 1),
        by_rule(lambda t, s: (t * s) % 3 != 1),
    ),
    "tree": (
        lambda T, S, N, batch: (
            (causal(offset=1) & ~sliding_window(1, 0, offset=0)) | mask_from_array(_random(T, S, N, batch))
        ),
        lambda T, S, N, batch: (
            by_rule(lambda t, s: s <= t + 1 and not t - 1 <= s <= t)(T, S, N, batch) | _random(T, S, N, batch)
        ),
    ),
}


def inputs(shape, dtype="float32", seed=0):
    """Random query, key, value and output cotangent in `dtype`, unit normal."""
    T, S, N, K, H, Hv, batch = shape
    random = np.random.default_rng(seed)
    sizes = (T, N, H), (S, K, H), (S, K, Hv), (T, N, Hv)
    return [jnp.asarray(random.standard_normal((*batch, *size))).astype(dtype) for size in sizes]


def error(ours, truth) -> float:
    """Largest difference, as a share of the largest true value; or of 1e-3, where that is less: among inputs of size 1,
    a true gradient of exactly 0 is one that cancels."""
    ours, truth = np.asarray(jnp.asarray(ours).astype(jnp.promote_types(ours.dtype, jnp.float32))), np.asarray(truth)
    assert ours.shape == truth.shape, (ours.shape, truth.shape)
    assert np.isfinite(ours).all()
    return float(np.max(np.abs(ours - truth), initial=0) / max(np.max(np.abs(truth), initial=0), 1e-3))


def close(ours, truth, tolerance=2e-6):
    """Assert that no array of a tree differs by more."""
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(truth), strict=True):
        assert error(one, other) <= tolerance


def same_bits(ours, theirs):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def output_and_gradients(attention, query, key, value, cotangent):
    """`attention(query, key, value)`, and the gradients of `sum(output * cotangent)`."""
    output, backward = jax.vjp(attention, query, key, value)
    return output, *backward(cotangent)


def every_mode(cotangent, implementation, *inputs, **options):
    """Output and log-sum-exp, their tangents, gradients, and the tangents of these."""

    def attend(*inputs):
        output, lse = aj.attention_and_lse(*inputs, implementation=implementation, **options)
        return output, jnp.where(lse == -jnp.inf, 0, lse)

    def total(*inputs):
        output, lse = attend(*inputs)
        weigh = jax.random.normal(jax.random.key(0), lse.shape, jnp.float32)
        return jnp.vdot(output, cotangent) + jnp.vdot(jnp.sin(lse), weigh)

    tangents = tuple(jnp.roll(x, (1, 1), (1, 3)) for x in inputs)
    return jax.jvp(attend, inputs, tangents), jax.jvp(jax.grad(total, (0, 1, 2)), inputs, tangents)


def exact(modes, inputs):
    """What `modes` finds with the reference in float64."""
    with x64_if(True):
        return jax.jit(partial(modes, "reference"))(*(x.astype("float64") for x in inputs))
