"""How a mask cuts a block into tiles, of which it shows none, some pairs, or all.

Where it is known while tracing which pairs of a block count, its queries are cut into pieces, and each piece keeps only
so many keys as the mask shows it: of a block on the causal diagonal little more than half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attention_jax.blocks.grid import Grid


class Tile(NamedTuple):
    """A piece of a block."""

    t: tuple[int, int]
    """Its first query in the block, and how many."""
    s: tuple[int, int]
    """Its first key, and how many."""
    masked: bool
    """Whether some pair does not count."""


class Block(NamedTuple):
    """One head's tile: which head, and the positions of its queries and keys."""

    head: jax.Array
    rows: jax.Array
    columns: jax.Array

    def shape(self, axes: str, of_block: Sequence[int]) -> list[int]:
        """What it has of an array whose shape in the whole block is given."""
        here = {"t": len(self.rows), "s": len(self.columns)}
        return [here.get(a, size) if size != 1 else 1 for a, size in zip(axes, of_block, strict=True)]


Tiles = tuple[Tile, ...]


def whole(grid: Grid, masked: bool) -> Tile:
    """All of a block."""
    return Tile((0, grid.size("t")), (0, grid.size("s")), masked)


def tiles_at(rule: Any, grid: Grid, start: dict[str, int], most: int) -> Tiles:
    """The tiles, so many at most, of the block that begins there, under a rule that looks at positions alone."""
    size, ranges = grid.tile_of(most), list[tuple[tuple[int, int], tuple[int, int]]]()
    for first in range(0, grid.size("t"), size):
        count = min(size, grid.size("t") - first)
        rows = start["t"] + first, start["t"] + first + count - 1
        low, high = (int(each) - start["s"] for each in rule.columns_of(rows, grid.length("s")))
        low, high = max(low, 0) // size * size, min(-(-(high + 1) // size) * size, grid.size("s"))
        if ranges and ranges[-1][1] == (low, high):  # as much as the piece before
            first, count = ranges[-1][0][0], ranges.pop()[0][1] + count
        ranges.append(((first, count), (low, high)))

    tiles = []
    for (first, count), (low, high) in ranges:
        rows = start["t"] + first, start["t"] + first + count - 1
        some, every = rule.some_every(rows, (start["s"] + low, start["s"] + high - 1))
        if some and low < high:
            tiles.append(Tile((first, count), (low, high - low), not every))
    return tuple(tiles)


def along_diagonals(rule: Any, grid: Grid, start: dict[str, Any], most: int) -> tuple[list[Tiles], jax.Array]:
    """What tiles square blocks have where only the distance of two positions matters, and which of these the block has
    that begins there: as the first block of its diagonal."""
    size, firsts = grid.size("t"), range(1 - grid.steps("s"), grid.steps("t"))
    starts = [{"t": max(d, 0) * size, "s": max(-d, 0) * size} for d in firsts]
    tiles = [tiles_at(rule, grid, first, most) for first in starts]
    patterns = list(dict.fromkeys([(), *tiles]))
    diagonal = (start["t"] - start["s"]) // size - firsts[0]
    kind = jnp.asarray([patterns.index(each) for each in tiles])[diagonal]
    if rule.padded:
        unfilled = start["s"] + size == grid.length("s")
        patterns.append((whole(grid, True),))
        kind = jnp.where(unfilled & (kind > 0), len(patterns) - 1, kind)
    return patterns, kind


def cut_tile(axes: str, array: jax.Array, tile: Tile) -> jax.Array:
    """What a tile has of a block's array."""
    for axis, a in enumerate(axes):
        if a in "ts" and array.shape[axis] != 1:
            first, count = tile.t if a == "t" else tile.s
            array = lax.slice_in_dim(array, first, first + count, axis=axis)
    return array


def joined(axes: str, array: jax.Array, tile: Tile, term: jax.Array, join: Any) -> jax.Array:
    """A block's array, with `join(what there is, term)` in the place of a tile."""
    places = {"t": tile.t[0], "s": tile.s[0]}
    first = [places.get(a, 0) if size != 1 else 0 for a, size in zip(axes, array.shape, strict=True)]
    last = [start + size for start, size in zip(first, term.shape, strict=True)]
    return lax.dynamic_update_slice(array, join(lax.slice(array, first, last), term), first)
