"""Loops over blocks of queries and keys, and what they are under `vmap`.

The axes of every array are named by letters: `b`, `k`, `g`, `t`, `s` as in the legend, in front of them `x` for what
`vmap` added, and `.` for an axis that is always taken whole. A query is `"btkg."`, without k or g where there is one, a
key `"bsk."`, or by columns `"bk.s"`, a log-sum-exp `"bkgt"`, a scalar `""`. An axis of size 1 serves every block.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attention_jax.blocks.grid import Grid
from attention_jax.blocks.heads import over_heads
from attention_jax.blocks.tiles import Block, Tile, Tiles, along_diagonals, cut_tile, joined, tiles_at, whole
from attention_jax.operation import Operation, vary_like
from attention_jax.spans import Span, Truth


class Rule(Protocol):
    """What is done with a block. Hashable; the arrays come as operands, cut down to the block and to one head, in
    float32 or better."""

    positional: bool
    """Whether `some_every` looks at positions alone, and at no array."""
    relative: bool
    """Whether only the distance of two positions says if they count."""
    padded: bool
    """Whether the last keys do not count, whatever stands there."""
    first: str
    """The axes that a step puts first in all it takes, before anything else is done."""

    def fitted(self, grid: Grid) -> "Rule":
        """The same, for the steps of this grid."""

    def columns_of(self, rows: Span, S: int) -> Span:
        """First and last key that matter to these queries."""

    def some_every(self, rows: Span, columns: Span, *operands) -> tuple[Truth, Truth]:
        """Whether some pair of the block counts, and whether every pair does."""

    def term(self, block: Block, masked: bool, *operands) -> Sequence[jax.Array]:
        """What the block adds to each output; unless `masked`, every pair of it counts."""


@dataclass(frozen=True)
class SamePairs:
    """A rule about the pairs of another."""

    rule: Any

    @property
    def positional(self) -> bool:
        return self.rule.positional

    @property
    def relative(self) -> bool:
        return self.rule.relative

    @property
    def padded(self) -> bool:
        return self.rule.padded

    @property
    def first(self) -> str:
        return self.rule.first

    def fitted(self, grid: Grid) -> "SamePairs":
        return replace(self, rule=self.rule.fitted(grid))

    def columns_of(self, *args) -> Span:
        return self.rule.columns_of(*args)

    def some_every(self, *args) -> tuple[Truth, Truth]:
        return self.rule.some_every(*args)


@dataclass(frozen=True)
class Sweep(Operation):
    """A loop over all blocks. The outputs are summed in float32 or better, then cast to the dtypes asked for."""

    rule: Any
    grid: Grid
    axes: tuple[str, ...]
    out_axes: tuple[str, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    most_tiles: ClassVar[int] = 4  # of a block; each takes as long to compile as a block

    def loop(self, operands, first: Callable, step: Callable, last: Callable, together: int = 1) -> list[jax.Array]:
        """Go through examples, groups of heads, blocks of queries and, innermost, blocks of keys.

        Args:
          first: () -> carry, at each new block of queries.
          step: (start, carry, take) -> the next carry, and blocks to add to the outputs that have keys; `take()` is the
            operands' blocks, for the branch that wants them: XLA would copy what is cut before it.
          last: carry -> blocks to add to the outputs that have none.
          together: blocks of queries in the same pass through the compiled loop.
        """
        grid = self.grid

        def with_queries(index, results):
            index, t = divmod(index, grid.steps("t"))
            index, k = divmod(index, grid.steps("k"))
            x, b = divmod(index, grid.steps("b"))
            start = {a: grid.start(a, number) for a, number in zip("xbkgt", (x, b, k, 0, t), strict=True)}
            fixed = [
                None if "s" in axes else _take(grid, axes, operand, start)
                for axes, operand in zip(self.axes, operands, strict=True)
            ]

            def with_keys(s, state):
                carry, results = state
                here = start | {"s": grid.start("s", s)}

                def take():
                    return [
                        _take(grid, axes, operand, here) if block is None else block
                        for axes, operand, block in zip(self.axes, operands, fixed, strict=True)
                    ]

                carry, terms = step(here, carry, take)
                return carry, self._add(results, here, terms, of_keys=True)

            rows = start["t"], start["t"] + grid.size("t") - 1
            steps = self._steps_of(self.rule.columns_of(rows, grid.length("s")))
            carry, results = _repeat(*steps, with_keys, (first(), results))
            return self._add(results, start, last(carry), of_keys=False)

        count = grid.steps("x") * grid.steps("b") * grid.steps("k") * grid.steps("t")
        zeros = [jnp.zeros(output.shape, accumulator(output.dtype)) for output in self.outputs]
        results = [vary_like(zero, operands) for zero in zeros]
        results = _repeat(0, count, with_queries, results, math.gcd(count, together))
        return [result.astype(output.dtype) for result, output in zip(results, self.outputs, strict=True)]

    def _steps_of(self, columns: Span) -> tuple[Any, Any]:
        """The first step that touches these keys, and the one after the last."""
        if self.grid.steps("s") == 1:
            return 0, 1
        size = self.grid.size("s")
        low, high = jnp.maximum(columns[0], 0) // size, jnp.maximum(columns[1] + size, 0) // size
        return jnp.int32(low), jnp.int32(jnp.minimum(high, self.grid.steps("s")))

    def _add(self, results, start, blocks, of_keys: bool):
        blocks = iter(blocks)

        def added(axes, result):
            if ("s" in axes) != of_keys:
                return result
            lengths = dict(zip(axes, result.shape, strict=True))
            loops = "xbkts" if of_keys else "xbkt"
            once = all(self.grid.steps(a) == 1 or lengths.get(a) == self.grid.length(a) for a in loops)
            return (_put if once else _add)(self.grid, axes, result, start, next(blocks))

        return list(map(added, self.out_axes, results))

    def zeros(self, operands) -> list[jax.Array]:
        """A block of each output, without the axes of size 1: XLA may give them another place in a block than in the
        whole array, which it then copies for each block."""
        shapes = zip(self.block_shapes(), self.outputs, strict=True)
        zeros = [
            jnp.zeros([size for size in shape if size != 1], accumulator(output.dtype)) for shape, output in shapes
        ]
        return [vary_like(zero, operands) for zero in zeros]

    def block_shapes(self) -> list[list[int]]:
        """What one step takes of each output."""
        outputs = zip(self.out_axes, self.outputs, strict=True)
        return [self.grid.block_shape(a, output.shape) for a, output in outputs]

    def by_tile(
        self, fn: Callable, axes, out_axes, start, blocks, tiles: Sequence[Tile], empty, join
    ) -> list[jax.Array]:
        """`empty`, the arrays of a block, in which `join(what there is, fn(block, masked, *operands))` has taken the
        place of each tile; `fn` is of one head, and mapped by `by_head`."""
        for tile in tiles:

            def one_head(block, *operands, masked=tile.masked):
                return fn(block, masked, *operands)

            terms = self.by_head(one_head, axes, out_axes, start, blocks, tile)
            if tile == whole(self.grid, tile.masked):
                return list(terms)
            parts = zip(out_axes, empty, terms, strict=True)
            empty = [joined(a, array, tile, term, join) for a, array, term in parts]
        return empty

    def by_head(self, fn: Callable, axes, out_axes, start, blocks, tile: Tile) -> tuple[jax.Array, ...]:
        """`fn(block, *operands)` of one head's tile in float32 or better, mapped over the heads and examples of a step;
        where an output lacks one of their axes, it is summed over it."""
        if self.rule.first:
            axes, blocks = zip(*map(partial(reordered, self.rule.first), axes, blocks), strict=True)
        blocks = [_widened(cut_tile(names, block, tile)) for names, block in zip(axes, blocks, strict=True)]
        rows = start["t"] + tile.t[0] + jnp.arange(tile.t[1])
        columns = start["s"] + tile.s[0] + jnp.arange(tile.s[1])
        G = self.grid.length("g")
        heads = (start["k"] + jnp.arange(self.grid.size("k")))[:, None] * G + jnp.arange(G)[None, :]

        def one_head(head, *operands):
            return tuple(fn(Block(head, rows, columns), *operands))

        return over_heads(one_head, self.grid.size, axes, out_axes)(heads, *blocks)

    def by_kind(self, start, take, fn: Callable[[Tiles], Any]):
        """`fn` of the tiles in which some pair counts: of none, where nothing does, and of a whole block, where it is
        not known while tracing which do."""
        if self.grid.alone and not self.rule.positional:  # which would cost more to find out
            return fn((whole(self.grid, True),))
        if self.rule.positional and all(isinstance(start[a], int) for a in "ts"):
            return fn(tiles_at(self.rule, self.grid, start, self.most_tiles))
        if self.rule.positional and self.rule.relative and self.grid.size("t") == self.grid.size("s"):
            patterns, kind = along_diagonals(self.rule, self.grid, start, self.most_tiles)
            return lax.switch(kind, [partial(fn, tiles) for tiles in patterns])
        rows, columns = ((start[a], start[a] + self.grid.size(a) - 1) for a in "ts")
        patterns = [(), (whole(self.grid, True),), (whole(self.grid, False),)]
        if self.rule.positional:
            some, every = self.rule.some_every(rows, columns)
        else:

            def count(block, *operands):
                some, every = self.rule.some_every(rows, columns, *operands)
                return jnp.asarray(some, int), jnp.asarray(every, int)

            some, every = self.by_head(count, self.axes, ("", ""), start, take(), whole(self.grid, True))
            heads = self.grid.size("x") * self.grid.size("b") * self.grid.size("k") * self.grid.size("g")
            some, every = some > 0, every == heads
        if some is True and isinstance(every, bool):
            return fn(patterns[1 + every])
        kind = jnp.where(some, jnp.where(every, 2, 1), 0)
        return lax.switch(kind, [partial(fn, tiles) for tiles in patterns])

    def batch(self, operands, batched):
        V = next(operand.shape[axis] for operand, axis in zip(operands, batched, strict=True) if axis is not None)
        if V == 0:  # of which there is no block to take
            return [jnp.zeros((0, *x.shape), x.dtype) for x in self.outputs], [0] * len(self.outputs)
        X = self.grid.length("x")
        blocks = self.grid.steps("t") * self.grid.steps("s")
        apart = blocks > 1 and not self.rule.positional  # as others skip other blocks
        grid = self.grid.of_examples(V * X, apart)

        def widen(operand, axes, axis):
            """The new axis joins the x axis, so that there is one."""
            if axis is None and not axes.startswith("x"):
                return operand, axes
            if axis is None:
                operand = operand[None]
            else:
                operand = jnp.moveaxis(operand, axis, 0)
                operand = operand if axes.startswith("x") else operand[:, None]
            shape = operand.shape[2:]
            return jnp.broadcast_to(operand, (V, X, *shape)).reshape(V * X, *shape), _with_x(axes)

        operands, axes = zip(*map(widen, operands, self.axes, batched), strict=True)
        has_x = [names.startswith("x") for names in self.out_axes]
        shapes = [output.shape[1:] if x else output.shape for x, output in zip(has_x, self.outputs, strict=True)]
        wide = replace(
            self,
            axes=axes,
            out_axes=tuple(map(_with_x, self.out_axes)),
            outputs=tuple(
                jax.ShapeDtypeStruct((V * X, *shape), output.dtype)
                for shape, output in zip(shapes, self.outputs, strict=True)
            ),
            rule=self.rule.fitted(grid),
            grid=grid,
        )
        results = [result.reshape(V, X, *result.shape[1:]) for result in wide(*operands)]
        return [r if x else r.sum(1) for r, x in zip(results, has_x, strict=True)], [0] * len(results)


def reordered(first: str, axes: str, array: jax.Array) -> tuple[str, jax.Array]:
    """The axes and the array, with these axes first, in this order, and the others in their own."""
    order = sorted(range(len(axes)), key=lambda axis: (axes[axis] not in first, first.find(axes[axis])))
    return "".join(axes[axis] for axis in order), jnp.transpose(array, order)


def accumulator(dtype):
    """What sums are held in: float32, or float64 for float64."""
    return np.promote_types(dtype, np.float32)


def _widened(array):
    return array.astype(accumulator(array.dtype)) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _repeat(low, high, body, state, together=1):
    """`lax.fori_loop`, with so many steps in a pass; a lone step is not made a loop, in which XLA would fuse less."""
    if isinstance(high, int) and high - low == 1:
        return body(low, state)
    return lax.fori_loop(low, high, body, state, unroll=together)


def _take(grid, axes, array, start):
    sizes = grid.block_shape(axes, array.shape)
    if sizes == list(array.shape):
        return array
    return lax.dynamic_slice(array, _first(axes, array.shape, sizes, start), sizes, allow_negative_indices=False)


def _add(grid, axes, array, start, block):
    old = _take(grid, axes, array, start)
    return _put(grid, axes, array, start, old + block.reshape(old.shape))


def _put(grid, axes, array, start, block):
    sizes = grid.block_shape(axes, array.shape)
    block = block.reshape(sizes)
    if sizes == list(array.shape):
        return block
    first = _first(axes, array.shape, sizes, start)
    return lax.dynamic_update_slice(array, block, first, allow_negative_indices=False)


def _first(axes, shape, sizes, start):
    """Where a block begins. Were it allowed to be negative, each use would have indices of its own, and XLA would not
    see that `_add` may add in place."""
    whole = [a == "." or size == block for a, size, block in zip(axes, shape, sizes, strict=True)]
    return [jnp.int32(0 if all_of_it else start[a]) for a, all_of_it in zip(axes, whole, strict=True)]


def _with_x(axes: str) -> str:
    return "x" + axes.removeprefix("x")
