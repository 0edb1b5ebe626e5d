"""The expression tree behind `masks.py`: what a mask can do, and one node for each kind of rule."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

_DRAWN_SIZE = 8
_DRAWN_LIMIT = 32


class Mask:
    """A rule that says which keys each query may attend to. Combine masks with `&`, `|` and `~`.

    Made by `causal`, `sliding_window`, `prefix`, `segments`, `key_lengths`, `mask_from_array` and
    `mask_from_function`; printing one draws it.
    """

    __array_ufunc__ = None  # so that `numpy_array & mask` comes here
    _binding = 3  # how tightly the printed form holds together: | 0, & 1, ~ 2, calls 3

    def at(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        """Bool array `[..., len(rows), len(columns)]`, either of the last two possibly 1: may row t see column s?

        `rows` and `columns` are integer vectors of query and key positions. The leading dimensions are none, or
        `[*B, N or 1]` where the mask holds batched or per-head arrays.
        """
        raise NotImplementedError

    def check(self, T: int, S: int) -> None:
        """Raise `ValueError` if this mask cannot belong to T queries and S keys."""

    def to_array(self, T: int, S: int) -> jax.Array:
        """The whole mask as a bool array `[T, S]`, or `[*B, N or 1, T, S]` if it holds batched or per-head arrays.

        Raises:
          ValueError: the mask's own arrays do not have T queries and S keys, or T != S leaves an offset open.

        >>> from attention_jax import causal
        >>> causal(offset=1).to_array(2, 3).tolist()
        [[True, True, False], [True, True, True]]
        """
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
        array = np.asarray(self.to_array(T, S)).reshape(-1, T, S)
        return "\n".join(" ".join("■" if seen else "·" for seen in row) for row in array[0])

    def _sizes(self) -> tuple[int | None, int | None]:
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
        rows, columns = jnp.arange(min(T, _DRAWN_LIMIT)), jnp.arange(min(S, _DRAWN_LIMIT))
        drawn = Array(self.at(rows, columns)).to_text(len(rows), len(columns))
        first = "" if (len(rows), len(columns)) == (T, S) else f"first {len(rows)} x {len(columns)} of "
        return f"{self!r}\n{first}{T} queries (down) x {S} keys (across), ■ may attend\n{drawn}"

    def __and__(self, other) -> "Mask":
        return And(self, as_mask(other))

    def __rand__(self, other) -> "Mask":
        return And(as_mask(other), self)

    def __or__(self, other) -> "Mask":
        return Or(self, as_mask(other))

    def __ror__(self, other) -> "Mask":
        return Or(as_mask(other), self)

    def __invert__(self) -> "Mask":
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError(
            "a mask has no truth value: `and`, `or` and `not` would silently drop one side. "
            "Combine masks with `&`, `|` and `~`; test for a missing mask with `mask is None`."
        )


def as_mask(mask) -> Mask:
    """A `Mask` as it is, or one made of a bool array `[T, S]` or `[*B, N or 1, T, S]`."""
    if isinstance(mask, Mask):
        return mask
    array = jnp.asarray(mask)
    if jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"a mask is bool with True = may attend, got {array.dtype}. If this array is added to the logits, "
            "pass it as bias=; if it holds 0 and 1, pass `array > 0`."
        )
    if array.dtype != jnp.bool_:
        raise TypeError(f"a mask is bool with True = may attend, got {array.dtype}: pass `array != 0`")
    if array.ndim < 2:
        raise ValueError(f"a mask array is [T, S] or [*B, N or 1, T, S], got {array.shape}")
    return Array(array)


def _node(cls):
    """A frozen dataclass that is a pytree: arrays are leaves, fields marked `_static` are not."""
    return jax.tree_util.register_dataclass(dataclass(frozen=True, eq=False, repr=False)(cls))


def _static():
    return field(metadata={"static": True})


@_node
class Causal(Mask):
    offset: int | None = _static()

    def at(self, rows, columns):
        return columns[None, :] <= rows[:, None] + (self.offset or 0)

    def check(self, T, S):
        _check_offset(repr(self), self.offset, T, S)

    def __repr__(self):
        return "causal()" if self.offset is None else f"causal(offset={self.offset})"


@_node
class Window(Mask):
    left: int = _static()
    right: int = _static()
    offset: int | None = _static()

    def at(self, rows, columns):
        distance = columns[None, :] - rows[:, None] - (self.offset or 0)
        return (-self.left <= distance) & (distance <= self.right)

    def check(self, T, S):
        _check_offset(repr(self), self.offset, T, S)

    def __repr__(self):
        offset = "" if self.offset is None else f", offset={self.offset}"
        return f"sliding_window({self.left}, {self.right}{offset})"


@_node
class Prefix(Mask):
    n: int = _static()

    def at(self, rows, columns):
        return columns[None, :] < self.n

    def __repr__(self):
        return f"prefix({self.n})"


@_node
class Segments(Mask):
    query_ids: jax.Array
    key_ids: jax.Array

    def at(self, rows, columns):
        query_ids, key_ids = self.query_ids[..., rows, None], self.key_ids[..., None, columns]
        same = query_ids == key_ids
        return same if same.ndim == 2 else jnp.expand_dims(same, -3)

    def check(self, T, S):
        if self._sizes() != (T, S):
            raise ValueError(f"{self!r} has ids for {self._sizes()} (queries, keys), but the attention has {(T, S)}")

    def _sizes(self):
        return self.query_ids.shape[-1], self.key_ids.shape[-1]

    def __repr__(self):
        return f"segments({_brief(self.query_ids)}, {_brief(self.key_ids)})"


@_node
class KeyLengths(Mask):
    lengths: jax.Array

    def at(self, rows, columns):
        if self.lengths.ndim == 0:
            return columns[None, :] < self.lengths
        lengths = self.lengths[..., None, None, None]
        return columns.reshape((1,) * (lengths.ndim - 1) + (-1,)) < lengths

    def __repr__(self):
        return f"key_lengths({_brief(self.lengths)})"


@_node
class Array(Mask):
    array: jax.Array

    def at(self, rows, columns):
        T, S = self.array.shape[-2:]
        rows = rows if T != 1 else jnp.zeros(1, int)
        columns = columns if S != 1 else jnp.zeros(1, int)
        return self.array[..., rows[:, None], columns[None, :]]

    def check(self, T, S):
        rows, columns = self.array.shape[-2:]
        if rows not in (1, T) or columns not in (1, S):
            raise ValueError(f"the mask array has shape {self.array.shape}, expected [..., T, S] = [..., {T}, {S}]")

    def _sizes(self):
        T, S = self.array.shape[-2:]
        return (T if T != 1 else None), (S if S != 1 else None)

    def __repr__(self):
        return f"mask_from_array({_brief(self.array)})"


@_node
class Function(Mask):
    fn: Callable = _static()

    def at(self, rows, columns):
        seen = jnp.asarray(self.fn(rows[:, None], columns[None, :]))
        if seen.dtype != jnp.bool_:
            raise TypeError(f"{self!r} must return bool, True = may attend, got {seen.dtype}")
        return jnp.broadcast_to(seen, (len(rows), len(columns)))

    def __repr__(self):
        return f"mask_from_function({getattr(self.fn, '__name__', repr(self.fn))})"


class Pair(Mask):
    def check(self, T, S):
        self.left.check(T, S)
        self.right.check(T, S)

    def _sizes(self):
        return tuple(a or b for a, b in zip(self.left._sizes(), self.right._sizes(), strict=True))

    def _both_at(self, rows, columns):
        """Both sides with equal rank, so that a [T, S] side serves every batch element and head of the other."""
        sides = self.left.at(rows, columns), self.right.at(rows, columns)
        rank = max(side.ndim for side in sides)
        if any(side.ndim not in (2, rank) for side in sides):
            raise ValueError(
                f"{self!r} combines arrays for different batch dimensions, {sides[0].shape} and {sides[1].shape}: "
                "each wants [T, S] or the same [*B, N or 1, T, S]"
            )
        return [side.reshape((1,) * (rank - side.ndim) + side.shape) for side in sides]

    def _join(self, symbol):
        sides = [f"({side!r})" if side._binding < self._binding else repr(side) for side in (self.left, self.right)]
        return f" {symbol} ".join(sides)


@_node
class And(Pair):
    left: Mask
    right: Mask
    _binding = 1

    def at(self, rows, columns):
        return operator.and_(*self._both_at(rows, columns))

    def __repr__(self):
        return self._join("&")


@_node
class Or(Pair):
    left: Mask
    right: Mask
    _binding = 0

    def at(self, rows, columns):
        return operator.or_(*self._both_at(rows, columns))

    def __repr__(self):
        return self._join("|")


@_node
class Not(Mask):
    mask: Mask
    _binding = 2

    def at(self, rows, columns):
        return ~self.mask.at(rows, columns)

    def check(self, T, S):
        self.mask.check(T, S)

    def _sizes(self):
        return self.mask._sizes()

    def __repr__(self):
        return f"~({self.mask!r})" if self.mask._binding < self._binding else f"~{self.mask!r}"


def static_int(name: str, value, minimum: int | None = None) -> int:
    """`value` as a Python int, or a `TypeError` that says why an array or a traced value will not do."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} must be static (a Python int known while tracing), got the traced {value.aval.str_short()}: "
            "close over it or list it in jit's static_argnames; for bounds that depend on data use key_lengths, "
            "segments or mask_from_function"
        )
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    value = operator.index(value)
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return value


def _check_offset(name: str, offset: int | None, T: int, S: int) -> None:
    if offset is None and T != S:
        raise ValueError(
            f"{name} compares positions, and {T} queries against {S} keys can be aligned in two ways: pass offset=0 "
            f"(query 0 stands at key 0) or offset={S - T} (the last query stands at the last key, as when decoding)"
        )


def _brief(array) -> str:
    return f"{array.dtype}{list(array.shape)}"
