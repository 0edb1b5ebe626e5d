"""How the work of `blockwise.py` is cut up: into blocks of how many queries and keys, and steps of how many heads."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax

from attention_jax.blocks.grid import Grid, divisor
from attention_jax.blocks.steps import few_keys, outnumbered
from attention_jax.captured import holds_function
from attention_jax.mask_tree import Mask
from attention_jax.score_tree import Score


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
    """Numbers in all the arrays that XLA keeps at a time, if it takes all there is at once: beside derivatives, where
    what both passes ask for is then made once, and of few keys without them, too. On a CPU they should stay below 32
    MiB, from where on malloc gives memory back after each call."""
    kept: int
    """Arrays of scores that XLA keeps at a time beside derivatives: one more under a mask, of keys by rows, and of
    heads in groups."""
    few: int
    """As `step`, of few keys, if they are not all there are, and of few queries, for which keys are the largest arrays:
    their steps should stay in the cache. A lone query makes no matrix product."""
    together: int
    """Steps of the forward pass in one pass of its loop, so that a core of a CPU can begin the next while another ends
    the last. Only steps of at most `step` scores, or of all keys: others would need more memory than that."""
    alike: bool = False
    """Whether blocks are the same beside derivatives as without them: functions are traced for one shape."""


CPU = Sizes(block=1024, narrow=256, tile=128, step=2**19, alone=2**23, kept=2, few=2**18, together=2)
ACCELERATOR = Sizes(block=2048, narrow=1024, tile=256, step=2**25, alone=2**27, kept=2, few=2**25, together=1)


def sizes_for(mask: Mask | None, score: Score | None, platform: str) -> Sizes:
    """What suits the platform. Functions are traced for one shape: they have no tiles, but smaller blocks."""
    sizes = CPU if platform == "cpu" else ACCELERATOR
    if mask is not None:
        sizes = sizes._replace(kept=sizes.kept + 1)
    if holds_function(mask, score):
        return sizes._replace(block=sizes.block // 2, tile=sys.maxsize, alike=True)
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
    uncut = few_queries and width >= S and not sizes.alike
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
    few = s == S and few_keys(S, H, sizes.tile)

    def arrays(T: int, S: int) -> tuple[int, int, int]:  # of a group of heads: scores, queries and keys
        return G * T * S, G * T * channels, S * channels

    def step_of(groups: int, t: int) -> tuple[int, ...]:
        k = divisor(K, groups)
        return 1, divisor(B, groups // k), k, G, t, s

    scores, queries, keys = whole = arrays(T, S)
    kept = sizes.kept + (few or outnumbered(T, S)) + (G > 1)
    # the fewest queries or keys do so little with each number of the others that it should stay in the cache;
    # of a lone key nothing is copied
    enough = min(channels**2 // 256, 64)
    fewest = enough > G * T or 1 < S < enough
    forward = (sizes.alone // 4 if fewest else sizes.alone) // (B * K * (2 * scores + queries + 2 * keys))
    alone = sizes.alone // (B * K * (kept * scores + 2 * queries + 2 * keys))
    if whole != arrays(t, s):
        forward, alone = 0, alone if uncut else 0
    if few and sizes.alike:
        forward = alone = min(forward, alone)
    rows = t
    if few:  # queries are the largest arrays; to fill the last block, all would be copied
        rows = min(t, _fit_whole(T, min(t, max(2 * sizes.step // (G * channels), 32))))
        t = t if forward else rows
    step = sizes.few if few or (s == S and T > 1 and _few_queries(T, G, channels)) else sizes.step
    all_at_once = forward if few else 2 * step // (B * K * max(whole))
    some = step_of(max(step // max(arrays(rows, s)), 1), rows)
    taken = step_of(B * K, t) if all_at_once else some
    lengths = 1, B, K, G, -(-T // t) * t, -(-S // s) * s
    beside = lengths if alone else some if few else taken
    together = sizes.together if s >= S or math.prod(taken) <= sizes.step else 1
    # to cut off what is hidden of few keys costs more than it saves, unless they are more than two tiles
    tile = max(sizes.tile, min(s, 2 * sizes.tile)) if few else sizes.tile
    examples = step // (B * K * max(arrays(t, s))), all_at_once, alone if few else max(all_at_once, alone)
    return Grid(lengths, taken, beside, tile, together, examples)


def _few_queries(T: int, G: int, channels: int) -> bool:
    """Whether so many queries, of G heads, have no more scores than their keys have numbers."""
    return channels >= G * T


def _fit(length: int, most: int) -> int:
    """The block size that cuts `length` into the fewest blocks of at most `most`, and leaves the least over."""
    return -(-length // -(-length // most))


def _fit_whole(length: int, most: int) -> int:
    """The largest that leaves nothing over, and gives fewer than twice as many blocks as `_fit`; or all."""
    fewest = -(-length // most)
    return length // next((count for count in range(fewest, 2 * fewest) if length % count == 0), 1)
