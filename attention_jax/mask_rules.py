"""The rules a mask is made of: one node for each, and what it says of a single pair and of a whole block."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from attention_jax.arguments import brief, made_by
from attention_jax.mask_tree import Mask
from attention_jax.node import node, static
from attention_jax.spans import Span, Truth


@node
class Causal(Mask):
    offset: int | None = static()
    relative = True

    def at(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return columns[None, :] <= rows[:, None] + (self.offset or 0)

    def some_every(self, rows: Span, columns: Span) -> tuple[Truth, Truth]:
        offset = self.offset or 0
        return columns[0] <= rows[1] + offset, columns[1] <= rows[0] + offset

    def columns_of(self, rows: Span, S: int) -> Span:
        return 0, rows[1] + (self.offset or 0)

    def check(self, T: int, S: int) -> None:
        check_offset(repr(self), self.offset, T, S)

    def __repr__(self) -> str:
        return "causal()" if self.offset is None else f"causal(offset={self.offset})"


@node
class Window(Mask):
    left: int = static()
    right: int = static()
    offset: int | None = static()
    relative = True

    def at(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        distance = columns[None, :] - rows[:, None] - (self.offset or 0)
        return (-self.left <= distance) & (distance <= self.right)

    def some_every(self, rows: Span, columns: Span) -> tuple[Truth, Truth]:
        nearest = columns[0] - rows[1] - (self.offset or 0), columns[1] - rows[0] - (self.offset or 0)
        some = (nearest[0] <= self.right) & (nearest[1] >= -self.left)
        return some, (nearest[0] >= -self.left) & (nearest[1] <= self.right)

    def columns_of(self, rows: Span, S: int) -> Span:
        offset = self.offset or 0
        return rows[0] + offset - self.left, rows[1] + offset + self.right

    def check(self, T: int, S: int) -> None:
        check_offset(repr(self), self.offset, T, S)

    def __repr__(self) -> str:
        offset = "" if self.offset is None else f", offset={self.offset}"
        return f"sliding_window({self.left}, {self.right}{offset})"


@node
class Prefix(Mask):
    n: int = static()

    def at(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return columns[None, :] < self.n

    def some_every(self, rows: Span, columns: Span) -> tuple[Truth, Truth]:
        return columns[0] < self.n, columns[1] < self.n

    def columns_of(self, rows: Span, S: int) -> Span:
        return 0, self.n - 1

    def __repr__(self) -> str:
        return f"prefix({self.n})"


@node
class Segments(Mask):
    query_ids: jax.Array
    key_ids: jax.Array

    def at(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        same = self.query_ids[..., :, None] == self.key_ids[..., None, :]
        return same if same.ndim == 2 else jnp.expand_dims(same, -3)

    def axes(self) -> list[str]:
        return ["*t", "*s"]

    def some_every(self, rows: Span, columns: Span) -> tuple[Truth, Truth]:
        (low, high), (key_low, key_high) = ((ids.min(), ids.max()) for ids in (self.query_ids, self.key_ids))
        some = (low <= key_high) & (key_low <= high)
        return some, (low == high) & (key_low == key_high) & (low == key_low)

    def check(self, T: int, S: int) -> None:
        if self._sizes() != (T, S):
            raise ValueError(f"{self!r} has ids for {self._sizes()} (queries, keys), but the attention has {(T, S)}")

    def _sizes(self) -> tuple[int, int]:
        return self.query_ids.shape[-1], self.key_ids.shape[-1]

    def __repr__(self) -> str:
        return f"segments({brief(self.query_ids)}, {brief(self.key_ids)})"


@node
class KeyLengths(Mask):
    lengths: jax.Array

    def at(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        if self.lengths.ndim == 0:
            return columns[None, :] < self.lengths
        lengths = self.lengths[..., None, None, None]
        return columns.reshape((1,) * (lengths.ndim - 1) + (-1,)) < lengths

    def axes(self) -> list[str]:
        return ["*"]

    def some_every(self, rows: Span, columns: Span) -> tuple[Truth, Truth]:
        return columns[0] < self.lengths, columns[1] < self.lengths

    def __repr__(self) -> str:
        return f"key_lengths({brief(self.lengths)})"


@node
class Function(Mask):
    fn: Callable = static()
    captured: tuple[jax.Array, ...] = ()  # arrays that `fn` is called with first

    def at(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        seen = self.call(*self.captured, rows[:, None], columns[None, :])
        return jnp.broadcast_to(seen, (len(rows), len(columns)))

    def call(self, *inputs: jax.Array) -> jax.Array:
        """What the function makes of its inputs, if that can be a mask."""
        rows, columns = inputs[-2:]
        seen = made_by(repr(self), self.fn, "t, s", inputs, (len(rows), columns.shape[-1]))
        if seen.dtype != jnp.bool_:
            raise TypeError(f"{self!r} must return bool, True = may attend, got {seen.dtype}")
        return seen

    def axes(self) -> list[str]:
        return ["." * array.ndim for array in self.captured]

    def __repr__(self) -> str:
        return f"mask_from_function({getattr(self.fn, '__name__', repr(self.fn))})"


def check_offset(name: str, offset: int | None, T: int, S: int) -> None:
    if offset is None and T != S:
        raise ValueError(
            f"{name} compares positions, and {T} queries against {S} keys can be aligned in two ways: pass offset=0 "
            f"(query 0 stands at key 0) or offset={S - T} (the last query stands at the last key, as when decoding)"
        )
