"""The expression tree behind `masks.py`: what a mask can do, and how masks are joined and placed. The rules are in
`mask_rules.py`."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.arguments import brief, positions_alike, static_int
from attention_jax.axes import cut_leaves
from attention_jax.node import node
from attention_jax.spans import Span, Truth, hull, negation, overlap

if TYPE_CHECKING:
    from attention_jax.typing import Integers, MaskLike

_DRAWN_SIZE = 8
_DRAWN_LIMIT = 32


class Mask:
    """A rule that says which keys each query may attend to. Combine masks with `&`, `|` and `~`.

    Made by `causal`, `sliding_window`, `prefix`, `segments`, `key_lengths`, `mask_from_array` and
    `mask_from_function`; printing one draws it.

    Raises:
      TypeError: it is used as a truth value, as `and`, `or` and `not` do, which would silently drop one side.

    >>> from attention_jax import causal, prefix
    >>> (causal() | prefix(2)).to_array(3, 3).astype(int).tolist()
    [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    """

    __array_ufunc__ = None  # so that `numpy_array & mask` comes here
    _binding = 3  # how tightly the printed form holds together: | 0, & 1, ~ 2, calls 3

    def at(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        """Bool array `[..., len(rows), len(columns)]`, either of the last two possibly 1: may row t see column s?

        `rows` and `columns` are integer vectors of query and key positions; the mask's own arrays hold just these. The
        leading dimensions are none, or `[*B, N or 1]` where the mask holds batched or per-head arrays.
        """
        raise NotImplementedError

    def axes(self) -> list[str]:
        """What the axes of each of the mask's arrays are, in the order of its leaves: `*` any batch dimensions, `n`
        heads, `t` queries, `s` keys, each possibly of size 1; `.` an axis that every block needs whole."""
        return []

    def some_every(self, rows: Span, columns: Span) -> tuple[Truth, Truth]:
        """Whether some pair of a block may be visible, and whether every pair surely is.

        `rows` and `columns` are the block's first and last positions, known or traced; the mask's own arrays hold just
        these. Neither answer evaluates the rule pair by pair, unless the mask is an array.
        """
        return True, False

    @property
    def relative(self) -> bool:
        """Whether only the distance of a query and a key decides."""
        return False

    def columns_of(self, rows: Span, S: int) -> Span:
        """First and last key that some of these queries may see; both may lie outside 0 .. S-1."""
        return 0, S - 1

    def check(self, T: int, S: int) -> None:
        """Raise `ValueError` if this mask cannot belong to T queries and S keys."""

    def place(self, query_positions: Integers, key_positions: Integers) -> Mask:
        """The same rule for queries and keys that stand elsewhere than at 0, 1, 2, ..., such as in a cache.

        Args:
          query_positions: integers `[T]` or `[*B, T]`; may be traced.
          key_positions: integers `[S]` or `[*B, S]`; a key at a negative position is seen by no query,
            unless by the `~` of what this returns.

        Raises:
          TypeError: positions that are not integers.
          ValueError: where the mask is used: lengths other than T and S, or arrays, which go by index, in the mask.

        >>> from attention_jax import causal
        >>> causal().place([4, 5], [3, 4, 5, -1]).to_array(2, 4).astype(int).tolist()
        [[1, 1, 0, 0], [1, 1, 1, 0]]
        """
        return Placed(self, *positions_alike((query_positions, key_positions)))

    def to_array(self, T: int, S: int) -> jax.Array:
        """The whole mask as a bool array `[T, S]`, or `[*B, N or 1, T, S]` if it holds batched or per-head arrays.

        Raises:
          TypeError: a T or S that is no integer, or traced.
          ValueError: the mask's own arrays do not have T queries and S keys, or T != S leaves an offset open.

        >>> from attention_jax import causal
        >>> causal(offset=1).to_array(2, 3).tolist()
        [[True, True, False], [True, True, True]]
        """
        T, S = static_int("T", T, minimum=0), static_int("S", S, minimum=0)
        self.check(T, S)
        array = self.at(jnp.arange(T), jnp.arange(S))
        return jnp.broadcast_to(array, (*array.shape[:-2], T, S))

    def to_text(self, T: int, S: int) -> str:
        """A drawing of the mask for T queries (down) and S keys (across); the first one, if it holds a batch.

        >>> from attention_jax import prefix
        >>> print(prefix(2).to_text(2, 3))
        ■ ■ ·
        ■ ■ ·
        """
        with jax.ensure_compile_time_eval():  # inside jax.jit, too
            array = np.asarray(self.to_array(T, S)).reshape(-1, T, S)
        return "\n".join(" ".join("■" if seen else "·" for seen in row) for row in array[0])

    def _sizes(self) -> tuple[int | None, ...]:
        """(T, S) where the mask's own arrays fix them."""
        return None, None

    def __str__(self) -> str:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(self)):
            return repr(self)
        T, S = self._sizes()
        T, S = T or S or _DRAWN_SIZE, S or T or _DRAWN_SIZE
        try:
            self.check(T, S)
        except ValueError as problem:
            return f"{self!r}: {problem}"
        rows, columns = min(T, _DRAWN_LIMIT), min(S, _DRAWN_LIMIT)
        with jax.ensure_compile_time_eval():
            drawn = cut_leaves(self, t=slice(rows), s=slice(columns)).to_array(rows, columns)
        first = "" if (rows, columns) == (T, S) else f"first {rows} x {columns} of "
        count = math.prod(drawn.shape[:-2])
        which = f", the first of {count}" if count > 1 else ""
        text = Array(drawn).to_text(rows, columns)
        return f"{self!r}\n{first}{T} queries (down) x {S} keys (across){which}, ■ may attend\n{text}"

    def __and__(self, other: MaskLike) -> Mask:
        return And(self, as_mask(other))

    def __rand__(self, other: MaskLike) -> Mask:
        return And(as_mask(other), self)

    def __or__(self, other: MaskLike) -> Mask:
        return Or(self, as_mask(other))

    def __ror__(self, other: MaskLike) -> Mask:
        return Or(as_mask(other), self)

    def __invert__(self) -> Mask:
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError(
            "a mask has no truth value: `and`, `or` and `not` would silently drop one side. "
            "Combine masks with `&`, `|` and `~`; test for a missing mask with `mask is None`."
        )


def as_mask(mask: MaskLike | Sequence[Any]) -> Mask:
    """A `Mask` as it is, or one made of a bool array `[T, S]` or `[*B, N or 1, T, S]`."""
    if isinstance(mask, Mask):
        return mask
    if callable(mask):
        raise TypeError(
            "a mask is what causal(), sliding_window(...) and so on return: call them; "
            f"a function (t, s) -> bool is made one by mask_from_function(fn). Got {mask!r}"
        )
    try:
        array = jnp.asarray(mask)
    except (TypeError, ValueError):
        raise TypeError(f"a mask is one such as causal(), or a bool array, got {mask!r:.60}") from None
    if jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"a mask is bool with True = may attend, got {array.dtype}. If this array is added to the logits, "
            "pass it as score=bias(array), or as bias= to a function that has one; if it holds 0 and 1, pass "
            "`array > 0`."
        )
    if array.dtype != jnp.bool_:
        raise TypeError(f"a mask is bool with True = may attend, got {array.dtype}: pass `array != 0`")
    if array.ndim < 2:
        raise ValueError(f"a mask array is [T, S] or [*B, N or 1, T, S], got {array.shape}")
    return Array(array)


@node
class Array(Mask):
    array: jax.Array

    def at(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return self.array

    def axes(self) -> list[str]:
        return ["*nts" if self.array.ndim > 2 else "ts"]

    def some_every(self, rows: Span, columns: Span) -> tuple[Truth, Truth]:
        return self.array.any(), self.array.all()

    def check(self, T: int, S: int) -> None:
        rows, columns = self.array.shape[-2:]
        if rows not in (1, T) or columns not in (1, S):
            fix = ""
            if self.array.ndim == 2 and columns == S:
                fix = ": of a row for each example make mask[:, None, None, :], or pass key_lengths(...)"
            raise ValueError(
                f"the mask array has shape {self.array.shape}, expected [..., T, S] = [..., {T}, {S}], "
                f"for query [*B, T, N, H] and key [*B, S, K, H]{fix}"
            )

    def _sizes(self) -> tuple[int | None, ...]:
        T, S = self.array.shape[-2:]
        return (T if T != 1 else None), (S if S != 1 else None)

    def __repr__(self) -> str:
        return f"mask_from_array({brief(self.array)})"


class Pair(Mask):
    left: Mask
    right: Mask

    def axes(self) -> list[str]:
        return self.left.axes() + self.right.axes()

    @property
    def relative(self) -> bool:
        return self.left.relative and self.right.relative

    def check(self, T: int, S: int) -> None:
        self.left.check(T, S)
        self.right.check(T, S)

    def _sizes(self) -> tuple[int | None, ...]:
        return tuple(a or b for a, b in zip(self.left._sizes(), self.right._sizes(), strict=True))

    def _both_at(self, rows: jax.Array, columns: jax.Array) -> list[jax.Array]:
        """Both sides with equal rank, so that a [T, S] side serves every batch element and head of the other."""
        sides = self.left.at(rows, columns), self.right.at(rows, columns)
        rank = max(side.ndim for side in sides)
        if any(side.ndim not in (2, rank) for side in sides):
            raise ValueError(
                f"{self!r} combines arrays for different batch dimensions, {sides[0].shape} and {sides[1].shape}: "
                "each wants [T, S] or the same [*B, N or 1, T, S]"
            )
        return [side.reshape((1,) * (rank - side.ndim) + side.shape) for side in sides]

    def _join(self, symbol: str) -> str:
        sides = [f"({side!r})" if side._binding < self._binding else repr(side) for side in (self.left, self.right)]
        return f" {symbol} ".join(sides)


@node
class And(Pair):
    left: Mask
    right: Mask
    _binding = 1

    def at(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return operator.and_(*self._both_at(rows, columns))

    def some_every(self, rows: Span, columns: Span) -> tuple[Truth, Truth]:
        left, right = self.left.some_every(rows, columns), self.right.some_every(rows, columns)
        return left[0] & right[0], left[1] & right[1]

    def columns_of(self, rows: Span, S: int) -> Span:
        return overlap(self.left.columns_of(rows, S), self.right.columns_of(rows, S))

    def __repr__(self) -> str:
        return self._join("&")


@node
class Or(Pair):
    left: Mask
    right: Mask
    _binding = 0

    def at(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return operator.or_(*self._both_at(rows, columns))

    def some_every(self, rows: Span, columns: Span) -> tuple[Truth, Truth]:
        left, right = self.left.some_every(rows, columns), self.right.some_every(rows, columns)
        return left[0] | right[0], left[1] | right[1]

    def columns_of(self, rows: Span, S: int) -> Span:
        return hull(self.left.columns_of(rows, S), self.right.columns_of(rows, S))

    def __repr__(self) -> str:
        return self._join("|")


@node
class Not(Mask):
    mask: Mask
    _binding = 2

    def at(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return ~self.mask.at(rows, columns)

    def axes(self) -> list[str]:
        return self.mask.axes()

    def some_every(self, rows: Span, columns: Span) -> tuple[Truth, Truth]:
        some, every = self.mask.some_every(rows, columns)
        return negation(every), negation(some)

    @property
    def relative(self) -> bool:
        return self.mask.relative

    def check(self, T: int, S: int) -> None:
        self.mask.check(T, S)

    def _sizes(self) -> tuple[int | None, ...]:
        return self.mask._sizes()

    def __repr__(self) -> str:
        return f"~({self.mask!r})" if self.mask._binding < self._binding else f"~{self.mask!r}"


@node
class Placed(Mask):
    mask: Mask
    query_positions: jax.Array
    key_positions: jax.Array

    def at(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        def at(mask: Mask, queries: jax.Array, keys: jax.Array) -> jax.Array:
            seen = mask.at(queries, keys)
            return seen & jnp.reshape(keys >= 0, (1,) * (seen.ndim - 1) + (-1,))

        batch = self.query_positions.shape[:-1]
        leaves, tree = jax.tree.flatten(self.mask)
        batched = [bool(batch and x.ndim and a == "*") for x, a in zip(leaves, self.mask.axes(), strict=True)]
        sizes = [x.shape for x, each in zip(leaves, batched, strict=True) if each]
        try:
            if any(len(size) != len(batch) for size in sizes):  # which of the batch dimensions are meant?
                raise ValueError
            batch = jnp.broadcast_shapes(batch, *sizes)
        except ValueError:
            raise ValueError(
                f"{self!r} has positions for batch dimensions {list(batch)}, and arrays for {list(map(list, sizes))}"
            ) from None
        leaves = [jnp.broadcast_to(x, batch) if each else x for x, each in zip(leaves, batched, strict=True)]
        positions = [jnp.broadcast_to(x, (*batch, x.shape[-1])) for x in (self.query_positions, self.key_positions)]
        own = [0 if each else None for each in batched]
        for _ in batch:
            at = jax.vmap(at, (jax.tree.unflatten(tree, own), 0, 0))
        seen = at(jax.tree.unflatten(tree, leaves), *positions)
        return jnp.expand_dims(seen, -3) if batch else seen

    def axes(self) -> list[str]:
        return [*self.mask.axes(), "*t", "*s"]

    def some_every(self, rows: Span, columns: Span) -> tuple[Truth, Truth]:
        rows, columns = ((x.min(), x.max()) for x in (self.query_positions, self.key_positions))
        some, every = self.mask.some_every(rows, columns)
        return some & (columns[1] >= 0), every & (columns[0] >= 0)

    def check(self, T: int, S: int) -> None:
        check_placed(repr(self.mask), self.mask.axes(), *self._sizes(), T, S)

    def _sizes(self) -> tuple[int, int]:
        return self.query_positions.shape[-1], self.key_positions.shape[-1]

    def __repr__(self) -> str:
        return f"({self.mask!r}).place({brief(self.query_positions)}, {brief(self.key_positions)})"


def check_placed(name: str, letters: list[str], queries: int, keys: int, T: int, S: int) -> None:
    if any(set(axes) & set("ts") for axes in letters):
        raise ValueError(
            f"{name} holds arrays that go by the index of queries and keys, which have no place at other positions: "
            "combine it with a placed mask, or give a rule on positions, such as mask_from_function"
        )
    if (queries, keys) != (T, S):
        raise ValueError(f"{name} is placed at {queries} query and {keys} key positions, expected T = {T} and S = {S}")
