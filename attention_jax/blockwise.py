"""Exact attention in memory that grows linearly with length: the same equation as `dot_product.py`, block by block.

How arbitrary arguments become the canonical operands of `softmax.Softmax`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from attention_jax.axes import by_group
from attention_jax.block_sum import BlockSum
from attention_jax.blocks import Grid, accumulator
from attention_jax.captured import hoisted
from attention_jax.checks import check_dropout, check_many_heads, check_scale
from attention_jax.dropout import seeds_of_heads
from attention_jax.mask_tree import Mask
from attention_jax.operation import vary_like
from attention_jax.score_tree import Score, check_rules
from attention_jax.softmax import AttentionRule, Softmax
from attention_jax.typing import MaskLike, ScoreLike

BLOCK = 512
SMALL_BLOCK = 256  # XLA gives the product of one such block to one core of a CPU
NARROW_BLOCK = 128
SCORES_A_STEP = 2**19  # with more, temporaries pass 32 MiB, which malloc gives back after each call: page faults
SCORES_AT_ONCE = 2**20  # a problem of no more has all heads and examples in one step


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
    grid = block_grid(*shapes, block_sizes) if block_sizes else grid_for(mask, *shapes)
    problem = canonical(query, key, value, mask, score, scale, rate, dropout_rng, precision, grid)
    output, lse = problem.softmax()
    return _by_query(output, T, batch)[..., :Hv].astype(value.dtype), lse[..., :T].reshape(*batch, N, T)


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
    grid = grid_for(mask, query.shape, value.shape)
    problem = canonical(query, key, value, mask, score, scale, 0.0, None, precision, grid)
    axes = (*problem.axes, "bkgt"), ("bkgt.", "bkgt")
    sums, total = BlockSum(problem.rule, grid, *axes, problem.outputs(), problem.rule.masks == 0)(
        *problem.operands, problem.given(lse)
    )
    return _by_query(sums, T, batch)[..., :Hv], total[..., :T].reshape(*batch, N, T)


class Problem(NamedTuple):
    """Arguments in canonical form: the arrays of mask and score, dropout's seed, query, key and value."""

    rule: AttentionRule
    grid: Grid
    operands: tuple[jax.Array, ...]
    axes: tuple[str, ...]

    def outputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """`[b, K, G, t, Hv]` and `[b, K, G, t]`, with t padded to whole blocks."""
        b, k, g, t = (self.grid.length(letter) for letter in "bkgt")
        value = self.operands[-1]
        shapes = (b, k, g, t, value.shape[-2]), (b, k, g, t)
        return tuple(jax.ShapeDtypeStruct(shape, accumulator(value.dtype)) for shape in shapes)

    def given(self, lse: jax.Array) -> jax.Array:
        """A log-sum-exp `[*B, N, T]` as `[b, K, G, t]`: +inf, and so no weights, for what fills the last block."""
        b, k, g, t = (self.grid.length(letter) for letter in "bkgt")
        lse = lse.reshape(b, k, g, -1)
        return jnp.pad(lse, [(0, 0)] * 3 + [(0, t - lse.shape[-1])], constant_values=jnp.inf)

    def softmax(self) -> list[jax.Array]:
        """Output and log-sum-exp."""
        axes, static = ("bkgt.", "bkgt"), self.rule.masks == 0
        return Softmax(self.rule, self.grid, self.axes, axes, self.outputs(), static_kind=static)(*self.operands)


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

    mask, score = hoisted(mask, score, grid, vary_like(jnp.zeros((), dtype), (query, key, value)))
    operands, axes = [], []
    for part in (mask, score):
        for leaf, letters in zip(jax.tree.leaves(part), [] if part is None else part.axes(), strict=True):
            leaf, letters = canonical_array(jnp.asarray(leaf), letters, batch, K, N)
            operands.append(pad(leaf, letters, grid))
            axes.append(letters)
    rule = AttentionRule(
        mask=jax.tree.structure(mask),
        score=jax.tree.structure(score),
        masks=len(jax.tree.leaves(mask)),
        scores=len(jax.tree.leaves(score)),
        rate=rate,
        queries=T,
        keys=S,
        padded=grid.length("s") != S,
        many_small=_many_small(grid, H),
        precision=precision,
    )
    if rate:
        seeds = seeds_of_heads(dropout_rng, grid.length("b"), K, N // K)  # type: ignore[arg-type]
        operands.append(seeds)
        axes.append("bkg.")

    query = _scaled(query.astype(dtype), check_scale(scale, H)).reshape(grid.length("b"), T, K, N // K, H)
    key, value = (x.reshape(grid.length("b"), S, K, x.shape[-1]) for x in (key, value))
    # heads first, so that a block is a piece of each array; keys and values by columns, which is how products want them
    query, key, value = (jnp.moveaxis(x, 1, 3) for x in (query, key, value))
    for array, letters in ((query, "bkgt."), (key, "bk.s"), (value, "bk.s")):
        operands.append(pad(array, letters, grid))
        axes.append(letters)
    return Problem(rule, grid, tuple(operands), tuple(axes))


def grid_for(mask: Mask | None, query_shape: Sequence[int], value_shape: Sequence[int]) -> Grid:
    """How the work is cut up under a mask. Small blocks follow its edge more closely; but they want many heads."""
    small, large = block_sizes_for(mask, query_shape[-3], value_shape[-3])
    grid = block_grid(query_shape, value_shape, small)
    return grid if _many_small(grid, query_shape[-1]) else block_grid(query_shape, value_shape, large)


def block_sizes_for(mask: Mask | None, T: int, S: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The most queries and keys in a block, with many heads a step and with few. They are fewer where the mask lets a
    query see a narrow band of keys, most of a larger block being outside; and where it hides much in a few blocks, as
    the causal mask does. With few heads a narrow block has twice as many queries, or it would keep one core busy only.
    """
    spans = [(0, S - 1)] if mask is None else [mask.columns_of((row, row), S) for row in (T // 2, T - 1)]
    widths = [max(int(min(last, S - 1) - max(first, 0)) + 1, 1) for first, last in spans]  # of the middle, of the last
    size = min(max(1 << (max(widths).bit_length() - 1), NARROW_BLOCK), BLOCK) if max(widths) < S else BLOCK
    triangle = min(widths) <= 0.6 * S and 2 * SMALL_BLOCK <= S <= 4 * SMALL_BLOCK
    small = min(size, SMALL_BLOCK) if triangle else size
    return (small, small), (min(2 * size, BLOCK), size)


def block_grid(query_shape: Sequence[int], value_shape: Sequence[int], block_sizes: tuple[int, int]) -> Grid:
    """How the work is cut up: blocks of at most so many queries and keys, and as many heads and examples a step as keep
    all cores busy."""
    *batch, T, N, _ = query_shape
    S, K, _ = value_shape[-3:]
    B, G = math.prod(batch), N // K
    s = _fit(S, block_sizes[1])
    t = _fit(T, min(block_sizes[0], max(SCORES_A_STEP // (G * s), 32)))  # a step takes whole groups of heads
    heads = max((SCORES_A_STEP if B * N * T * S > SCORES_AT_ONCE else SCORES_AT_ONCE) // (t * s), 1)
    k = _divisor(K, heads // G)
    b = _divisor(B, heads // (G * k))
    return Grid((1, B, K, G, -(-T // t) * t, -(-S // s) * s), (1, b, k, G, t, s))


def _many_small(grid: Grid, H: int) -> bool:
    """Whether a step has many blocks, each too small for more than one core: XLA divides those of more channels."""
    one_core = grid.size("t") * grid.size("s") <= SMALL_BLOCK**2 and H <= 128
    return one_core and math.prod(grid.sizes) >= SCORES_A_STEP // 2


def _by_query(array: jax.Array, T: int, batch: Sequence[int]) -> jax.Array:
    """`[b, K, G, t, Hv]` as `[*batch, T, N, Hv]`, without the queries that fill the last block."""
    _, K, G, t, Hv = array.shape
    return jnp.moveaxis(array.reshape(*batch, K * G, t, Hv)[..., :T, :], -2, -3)


def _fit(length: int, most: int) -> int:
    """The block size that cuts `length` into the fewest blocks of at most `most`, and leaves the least over."""
    return -(-length // -(-length // most))


def _divisor(number: int, most: int) -> int:
    return max(divisor for divisor in range(1, number + 1) if number % divisor == 0 and divisor <= max(most, 1))


def _scaled(query: jax.Array, scale: ArrayLike) -> jax.Array:
    differentiated, scale = isinstance(scale, jax.Array), jnp.asarray(scale, query.dtype)
    if not differentiated:
        return query * scale
    finite = jnp.isfinite(query)  # what is not must not reach the gradient of the scale
    return jnp.where(finite, jnp.where(finite, query, 0) * scale, jnp.nan)


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
    """To whole blocks of queries and keys, by repeating the last of them."""
    widths = [
        (0, grid.length(letter) - size if letter in "ts" and size != 1 else 0)
        for letter, size in zip(letters, array.shape, strict=True)
    ]
    return jnp.pad(array, widths, "edge") if any(after for _, after in widths) else array
