"""Exact attention in memory that grows linearly with length: the same equation as `dot_product.py`, block by block.

How arbitrary arguments become the canonical operands of `softmax.Softmax`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from attention_jax.axes import by_group
from attention_jax.block_sizes import block_grid, grid_for, sizes_for
from attention_jax.blocks.attention_rule import AttentionRule
from attention_jax.blocks.block_sum import BlockSum
from attention_jax.blocks.grid import Grid
from attention_jax.blocks.softmax import Softmax, in_order
from attention_jax.blocks.sweep import accumulator
from attention_jax.captured import hoisted
from attention_jax.checks import check_dropout, check_many_heads, check_scale
from attention_jax.devices import platform_of
from attention_jax.dropout import seeds_of_heads
from attention_jax.mask_tree import Mask
from attention_jax.multi_query import as_one_head
from attention_jax.operation import vary_like
from attention_jax.score_tree import Score, check_rules
from attention_jax.typing import MaskLike, ScoreLike


def blockwise_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mask: MaskLike | None = None,
    score: ScoreLike | None = None,
    scale: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    precision: PrecisionLike = None,
    block_sizes: tuple[int, int] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Output `[*B, T, N, Hv]` and log-sum-exp `[*B, N, T]`; arguments as `attention`, and the most queries and keys a
    block may have.

    >>> x = jnp.ones((1000, 2, 4))
    >>> output, lse = blockwise_attention(x, x, x)
    >>> output.shape, lse.shape
    ((1000, 2, 4), (2, 1000))
    """
    query, key, value = check_many_heads(query, key, value)
    rate = check_dropout(dropout_rate, dropout_rng)
    *batch, T, N, _ = query.shape
    S, _, Hv = value.shape[-3:]
    mask, score = check_rules(mask, score, (*batch, N, T, S))
    if 0 in (*batch, T, N, S):
        return jnp.zeros((*batch, T, N, Hv), query.dtype), jnp.full((*batch, N, T), -jnp.inf, accumulator(query.dtype))
    shapes = query.shape, value.shape
    platform = platform_of(query)
    shape, rows_mask = as_one_head(*shapes, mask, score, rate, platform)
    if shape != query.shape:
        query, mask = query.reshape(shape), rows_mask
        output, lse = blockwise_attention(
            query, key, value, mask=mask, scale=scale, precision=precision, block_sizes=block_sizes
        )
        return output.reshape(*batch, T, N, Hv), jnp.swapaxes(lse.reshape(*batch, T, N), -1, -2)
    if block_sizes:
        grid = block_grid(*shapes, block_sizes, sizes_for(mask, score, platform))
    else:
        grid = grid_for(mask, score, *shapes, platform)
    problem = canonical(query, key, value, mask, score, scale, rate, dropout_rng, precision, grid)
    output, lse = problem.softmax()
    return _unpadded(output, T, batch, N)[..., :Hv].astype(value.dtype), lse[..., :T].reshape(*batch, N, T)


def weighted_sums(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lse: jax.Array,
    *,
    mask: Mask | None = None,
    score: Score | None = None,
    scale: ArrayLike | None = None,
    precision: PrecisionLike = None,
) -> tuple[jax.Array, jax.Array]:
    """The sums over these keys of weight x value, `[*B, T, N, Hv]`, and of weights, `[*B, N, T]`, where a weight is
    exp(logit - lse) and the log-sum-exp `[*B, N, T]`, of more keys perhaps, is given: +inf for a query without weights.

    >>> x = jnp.ones((1000, 2, 4))
    >>> output, lse = blockwise_attention(x, x, x)
    >>> sums, total = weighted_sums(x, x, x, lse)
    >>> jnp.allclose(sums, output), jnp.allclose(total, 1)
    (Array(True, dtype=bool), Array(True, dtype=bool))
    """
    *batch, T, N, _ = query.shape
    S, K, Hv = value.shape[-3:]
    grid = grid_for(mask, score, query.shape, value.shape, platform_of(query))
    problem = canonical(query, key, value, mask, score, scale, 0.0, None, precision, grid)
    rule = replace(problem.rule, own_lse=False).fitted(grid)
    operands, axes = in_order(rule, problem.operands, problem.axes)
    weighted = BlockSum(rule, grid, (*axes, "bkgt"), problem.out_axes(), problem.outputs())
    sums, total = weighted(*operands, problem.given(lse))
    return _unpadded(sums, T, batch, N)[..., :Hv], total[..., :T].reshape(*batch, N, T)


class Problem(NamedTuple):
    """Arguments in canonical form: the arrays of mask and score, dropout's seed, query, key and value."""

    rule: AttentionRule
    grid: Grid
    operands: tuple[jax.Array, ...]
    axes: tuple[str, ...]

    def out_axes(self) -> tuple[str, str]:
        """Those of the output, and of the log-sum-exp."""
        return _without_ones("btkg.", self.grid), "bkgt"

    def outputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Output and log-sum-exp, with t padded to whole blocks."""
        value, channels = self.operands[-1], self.axes[-1].index(".")
        shapes = (
            [value.shape[channels] if a == "." else self.grid.length(a) for a in axes] for axes in self.out_axes()
        )
        return tuple(jax.ShapeDtypeStruct(tuple(shape), accumulator(value.dtype)) for shape in shapes)

    def given(self, lse: jax.Array) -> jax.Array:
        """A log-sum-exp `[*B, N, T]` as `[b, K, G, t]`: +inf, and so no weights, for what fills the last block."""
        b, k, g, t = (self.grid.length(letter) for letter in "bkgt")
        lse = lse.reshape(b, k, g, -1)
        return jnp.pad(lse, [(0, 0)] * 3 + [(0, t - lse.shape[-1])], constant_values=jnp.inf)

    def softmax(self) -> list[jax.Array]:
        """Output and log-sum-exp."""
        return Softmax(self.rule, self.grid, self.axes, self.out_axes(), self.outputs())(*self.operands)


def canonical(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | None,
    score: Score | None,
    scale: ArrayLike | None,
    rate: float,
    dropout_rng: jax.Array | None,
    precision: PrecisionLike,
    grid: Grid,
) -> Problem:
    """The arguments of attention, checked, for a loop over blocks."""
    query, key, value = (x if x.shape[-1] else jnp.zeros((*x.shape[:-1], 1), x.dtype) for x in (query, key, value))
    *batch, T, N, H = query.shape
    S, K = value.shape[-3:-1]
    dtype = accumulator(query.dtype)
    scale = check_scale(scale, H)
    if isinstance(scale, jax.Array):
        query, scale = _scaled(query.astype(dtype), scale), 1.0

    mask, score = hoisted(mask, score, grid, vary_like(jnp.zeros((), dtype), (query, key, value)))
    operands, axes = [], []
    for part in (mask, score):
        for leaf, letters in zip(jax.tree.leaves(part), [] if part is None else part.axes(), strict=True):
            leaf, letters = canonical_array(jnp.asarray(leaf), letters, batch, K, N)
            operands.append(pad(leaf, letters, grid))
            axes.append(letters)
    rule = AttentionRule(
        mask_tree=jax.tree.structure(mask),
        score_tree=jax.tree.structure(score),
        mask_arrays=len(jax.tree.leaves(mask)),
        score_arrays=len(jax.tree.leaves(score)),
        scale=float(scale),
        rate=rate,
        queries=T,
        keys=S,
        padded=grid.length("s") != S,
        cpu=platform_of(query) == "cpu",
        channels=(H, value.shape[-1]),
        precision=precision,
    ).fitted(grid)
    if rate:
        seeds = seeds_of_heads(dropout_rng, grid.length("b"), K, N // K)  # type: ignore[arg-type]
        operands.append(seeds)
        axes.append("bkg.")

    for array, letters in ((query, "btkg."), (key, "bsk."), (value, "bsk.")):
        letters = _without_ones(letters, grid)
        lengths = {"t": T, "s": S, ".": array.shape[-1]}
        operands.append(pad(array.reshape([lengths.get(a) or grid.length(a) for a in letters]), letters, grid))
        axes.append(letters)
    # A copy in another order pays unless a loop takes each key once, and knows without a look at the mask what to do.
    once = grid.steps("t") == grid.steps("s") == 1 < grid.steps("b") * grid.steps("k")
    if not (once and rule.positional):
        operands, axes = in_order(rule, operands, axes)
    return Problem(rule, grid, tuple(operands), tuple(axes))


def _without_ones(axes: str, grid: Grid) -> str:
    """As the caller has it, so that nothing is copied; heads of length 1 as an axis would keep XLA from seeing that."""
    return "".join(a for a in axes if a not in "kg" or grid.length(a) != 1)


def _unpadded(array: jax.Array, T: int, batch: Sequence[int], N: int) -> jax.Array:
    """`[*batch, T, N, Hv]`, without the queries that fill the last block."""
    return array[:, :T].reshape(*batch, T, N, array.shape[-1])


def _scaled(query: jax.Array, scale: jax.Array) -> jax.Array:
    finite = jnp.isfinite(query)  # what is not must not reach the gradient of the scale
    return jnp.where(finite, jnp.where(finite, query, 0) * scale.astype(query.dtype), jnp.nan)


def canonical_array(array: jax.Array, letters: str, batch: Sequence[int], K: int, N: int) -> tuple[jax.Array, str]:
    """`by_group`, with the batch dimensions made one; and the letters of what is left."""
    array, axes = by_group(array, letters, len(batch), K, N)
    names = "".join(a for a, axis in zip("kg", axes[-2:], strict=True) if axis == 0)
    names += letters.removeprefix("*").replace("n", "")
    if 0 in axes[: len(batch)]:
        rest = array.shape[array.ndim - len(names) :]
        sizes = [size if axis == 0 else 1 for size, axis in zip(batch, axes, strict=False)]
        array = jnp.broadcast_to(array.reshape(*sizes, *rest), (*batch, *rest)).reshape(-1, *rest)
        names = "b" + names
    return array, names


def pad(array: jax.Array, letters: str, grid: Grid) -> jax.Array:
    """To whole blocks of queries and keys, by repeating the last of them, which takes nothing back for it."""
    for axis, letter in enumerate(letters):
        size = array.shape[axis]
        missing = grid.length(letter) - size if letter in "ts" and size != 1 else 0
        if missing:
            last = jax.lax.stop_gradient(jax.lax.slice_in_dim(array, size - 1, size, axis=axis))
            array = jnp.concatenate([array, jnp.repeat(last, missing, axis)], axis)
    return array
