"""Exact attention in memory that grows linearly with length: the same equation as `dot_product.py`, block by block.

How arbitrary arguments become the canonical operands of `softmax.Softmax`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from attention_jax.axes import by_group
from attention_jax.blocks.attention_rule import AttentionRule
from attention_jax.blocks.block_sum import BlockSum
from attention_jax.blocks.grid import Grid, divisor
from attention_jax.blocks.softmax import Softmax, in_order
from attention_jax.blocks.sweep import accumulator
from attention_jax.captured import hoisted, holds_function
from attention_jax.checks import check_dropout, check_many_heads, check_scale
from attention_jax.devices import platform_of
from attention_jax.dropout import seeds_of_heads
from attention_jax.mask_tree import Mask
from attention_jax.operation import vary_like
from attention_jax.score_tree import Score, check_rules
from attention_jax.typing import MaskLike, ScoreLike


class Sizes(NamedTuple):
    """How much is done at once."""

    block: int
    """The most queries and keys in a block; their square is the most scores of a group of heads."""
    narrow: int
    """The same, where a query sees few keys."""
    tile: int
    """The least queries or keys in a piece of a block that the mask cuts through: see `Grid.tile_of`."""
    step: int
    """Numbers in the largest array of one step, be that scores, queries or keys; at most twice as many, if they are all
    there are. An accelerator wants to be filled."""
    alone: int
    """The same of all three arrays together, beside derivatives, if they are all there are: what both passes ask for is
    then made once. Few keys are taken so without derivatives, too. On a CPU, what a program has of arrays should stay
    below 32 MiB, from where on malloc gives memory back after each call."""
    few: int
    """As `step`, of few keys, if they are not all there are, and of few queries, for which keys are the largest arrays:
    their steps should stay in the cache. A lone query makes no matrix product."""
    together: int
    """Steps of the forward pass in one pass of its loop, so that a core of a CPU can begin the next while another ends
    the last. Only steps of at most `step` scores, or of all keys: others would need more memory than that."""


CPU = Sizes(block=1024, narrow=256, tile=128, step=2**19, alone=3 * 2**20, few=2**18, together=2)
ACCELERATOR = Sizes(block=2048, narrow=1024, tile=256, step=2**25, alone=2**26, few=2**25, together=1)


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
    rule = replace(problem.rule, few=False)  # of which the log-sum-exp would be their own
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
    cpu = platform_of(query) == "cpu"
    if isinstance(scale, jax.Array):
        query, scale = _scaled(query.astype(dtype), scale), 1.0

    mask, score = hoisted(mask, score, grid, vary_like(jnp.zeros((), dtype), (query, key, value)))
    operands, axes = [], []
    for part in (mask, score):
        for leaf, letters in zip(jax.tree.leaves(part), [] if part is None else part.axes(), strict=True):
            leaf, letters = canonical_array(jnp.asarray(leaf), letters, batch, K, N)
            operands.append(pad(leaf, letters, grid))
            axes.append(letters)
    few = cpu and grid.steps("s") == 1 and _few(S, H, grid.tile)
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
        by_rows=few or (cpu and grid.steps("t") == 1 and 2 * T <= S),  # to put them by columns pays in many steps
        few=few,
        cpu=cpu,
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


def sizes_for(mask: Mask | None, score: Score | None, platform: str) -> Sizes:
    """What suits the platform. Functions are traced for one shape: they have no tiles, but smaller blocks."""
    sizes = CPU if platform == "cpu" else ACCELERATOR
    if holds_function(mask) or holds_function(score):
        return sizes._replace(block=sizes.block // 2, tile=sys.maxsize)
    return sizes


def grid_for(
    mask: Mask | None, score: Score | None, query_shape: Sequence[int], value_shape: Sequence[int], platform: str
) -> Grid:
    """How the work is cut up under a mask and a score: smaller where the mask lets a query see a narrow band of keys,
    most of a larger block being outside; longer where queries or keys are few, but for a lone query, which makes no
    matrix product, and for keys that only arrays tell to leave out; where there are fewer scores than numbers in the
    keys, with nothing to fill in the last block of these, for which all are copied, and not cut up beside derivatives,
    whose blocks cost more than what hidden ones do, unless a function is traced for one shape of them."""
    (T, N, H), (S, K, Hv), sizes = query_shape[-3:], value_shape[-3:], sizes_for(mask, score, platform)
    spans = [(0, S - 1)] if mask is None else [mask.columns_of((row, row), S) for row in (T // 2, T - 1)]
    width = max(int(min(last, S - 1) - max(first, 0)) + 1 for first, last in spans)  # in the middle, and at the end
    narrow = max(1 << (max(width, 1).bit_length() - 1), sizes.narrow)
    rows = columns = sizes.block if width >= S else min(narrow, sizes.block)
    if T > 1 and width >= S and not jax.tree.leaves(mask):
        columns = max(columns, sizes.block**2 // max(T * N // K, H, Hv))
    few_queries = _few_queries(T, N // K, max(H, Hv))
    if few_queries:
        columns = _fit_whole(S, columns)
    uncut = few_queries and width >= S and not (holds_function(mask) or holds_function(score))
    return block_grid(query_shape, value_shape, (T if columns >= S else rows, columns), sizes, uncut)


def block_grid(
    query_shape: Sequence[int],
    value_shape: Sequence[int],
    block_sizes: tuple[int, int],
    sizes: Sizes,
    uncut: bool = False,
) -> Grid:
    """How the work is cut up: blocks of at most so many queries and keys, and as many heads and examples a step as keep
    all cores busy; beside derivatives all at once if it is not too much, and `uncut` or in one block in any case."""
    *batch, T, N, H = query_shape
    S, K, Hv = value_shape[-3:]
    B, G, channels = math.prod(batch), N // K, max(H, Hv)
    s = _fit(S, block_sizes[1])
    t = _fit(T, min(block_sizes[0], max(sizes.block**2 // (G * s), 32)))  # a step takes whole groups of heads
    few = s == S and _few(S, H, sizes.tile)

    def arrays(T: int, S: int) -> tuple[int, int, int]:  # of a group of heads: scores, queries and keys
        return G * T * S, G * T * channels, S * channels

    whole, part = arrays(T, S), arrays(t, s)
    alone = sizes.alone // (B * K * sum(whole)) if uncut or whole == part else 0
    if few and not alone:  # queries are the largest arrays; to fill the last block, all would be copied
        t = min(t, _fit_whole(T, min(t, max(2 * sizes.step // (G * channels), 32))))
        part = arrays(t, s)
    step = sizes.few if few or (s == S and T > 1 and _few_queries(T, G, channels)) else sizes.step
    all_at_once = alone if few else 2 * step // (B * K * max(whole))
    groups = B * K if all_at_once else max(step // max(part), 1)
    k = divisor(K, groups)
    b = divisor(B, groups // k)
    together = sizes.together if s >= S or b * k * G * t * s <= sizes.step else 1
    # to cut off what is hidden of few keys costs more than it saves, unless they are more than two tiles
    tile = max(sizes.tile, min(s, 2 * sizes.tile)) if few else sizes.tile
    examples = step // (B * K * max(part)), all_at_once, max(all_at_once, alone)
    lengths, taken = (1, B, K, G, -(-T // t) * t, -(-S // s) * s), (1, b, k, G, t, s)
    return Grid(lengths, taken, lengths if alone else taken, tile, together, examples)


def _few(S: int, H: int, tile: int) -> bool:
    """Whether so many keys are few: scores are not the largest arrays, or rows of them so short that XLA's loops over
    them are slow. Measured with 1 to 512 keys and heads of 8 to 512 channels."""
    return max(min(2 * H, 128, tile), min(64, tile), H) >= S


def _few_queries(T: int, G: int, channels: int) -> bool:
    """Whether so many queries, of G heads, have no more scores than their keys have numbers."""
    return channels >= G * T


def _without_ones(axes: str, grid: Grid) -> str:
    """As the caller has it, so that nothing is copied; heads of length 1 as an axis would keep XLA from seeing that."""
    return "".join(a for a in axes if a not in "kg" or grid.length(a) != 1)


def _unpadded(array: jax.Array, T: int, batch: Sequence[int], N: int) -> jax.Array:
    """`[*batch, T, N, Hv]`, without the queries that fill the last block."""
    return array[:, :T].reshape(*batch, T, N, array.shape[-1])


def _fit(length: int, most: int) -> int:
    """The block size that cuts `length` into the fewest blocks of at most `most`, and leaves the least over."""
    return -(-length // -(-length // most))


def _fit_whole(length: int, most: int) -> int:
    """The largest that leaves nothing over, and gives fewer than twice as many blocks as `_fit`; or all."""
    fewest = -(-length // most)
    return length // next((count for count in range(fewest, 2 * fewest) if length % count == 0), 1)


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
