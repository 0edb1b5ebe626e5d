"""Which keys each query may attend to: a mask is an expression tree on positions.

    >>> from attention_jax import causal, sliding_window, prefix
    >>> print(causal() & sliding_window(2, 0) | prefix(1))
    causal() & sliding_window(2, 0) | prefix(1)
    8 queries (down) x 8 keys (across), ■ may attend
    ■ · · · · · · ·
    ■ ■ · · · · · ·
    ■ ■ ■ · · · · ·
    ■ ■ ■ ■ · · · ·
    ■ · ■ ■ ■ · · ·
    ■ · · ■ ■ ■ · ·
    ■ · · · ■ ■ ■ ·
    ■ · · · · ■ ■ ■

Every mask is a pytree: the arrays it holds (segment ids, lengths) may be traced and `vmap`ped over; options such as a
window's width are static. `True` always means "may attend". Additive terms are not masks: pass them as
`score=bias(array)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from attention_jax.arguments import FARTHEST, index_array, integer_array, static_int, static_offset
from attention_jax.mask_rules import Causal, Function, KeyLengths, Prefix, Segments, Window
from attention_jax.mask_tree import Mask, as_mask
from attention_jax.typing import Integers


def causal(*, offset: int | None = None) -> Mask:
    """Query t sees key s if `s <= t + offset`.

    Args:
      offset: how many positions the first query stands after the first key (static int). `None` means 0, and is only
        accepted for T == S; otherwise `offset=0` aligns the starts and `offset=S - T` the ends.

    Raises:
      TypeError: an offset that is traced, or no integer.
      ValueError: an offset beyond 2**29; where the mask is used, if T != S and there is no offset.

    >>> causal(offset=2).to_array(2, 4).astype(int).tolist()
    [[1, 1, 1, 0], [1, 1, 1, 1]]
    """
    return Causal(static_offset("causal(offset=)", offset))


def sliding_window(left: int, right: int, *, offset: int | None = None) -> Mask:
    """Query t sees the keys from `t - left` to `t + right`, itself included (Longformer, arXiv:2004.05150).

    Args:
      left, right: how many positions before and after its own a query sees (static ints >= 0).
      offset: as in `causal`: query t stands at key position `t + offset`.

    Raises:
      TypeError: a width that is traced, or no integer.
      ValueError: a width below 0; where the mask is used, T != S without an offset.

    >>> sliding_window(1, 0).to_array(3, 3).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    left = static_int("sliding_window(left=)", left, minimum=0)
    right = static_int("sliding_window(right=)", right, minimum=0)
    offset = static_offset("sliding_window(offset=)", offset)
    return Window(min(left, FARTHEST), min(right, FARTHEST), offset)


def prefix(n: int) -> Mask:
    """Every query sees the first n keys; `causal() | prefix(n)` is the prefix-LM of arXiv:1910.10683.

    Args:
      n: how many (static int >= 0).

    Raises:
      TypeError: an n that is traced, or no integer.
      ValueError: an n below 0.

    >>> prefix(1).to_array(2, 3).astype(int).tolist()
    [[1, 0, 0], [1, 0, 0]]
    """
    return Prefix(min(static_int("prefix(n)", n, minimum=0), FARTHEST))


def segments(query_ids: Integers, key_ids: Integers | None = None) -> Mask:
    """A query sees the keys of its own segment: packed documents that do not see each other.

    Args:
      query_ids: integer array `[T]` or `[*B, T]`.
      key_ids: integer array `[S]` or `[*B, S]`; `query_ids` if not given.

    Raises:
      TypeError: ids that are not integers, or of two dtypes that JAX has none for both of.
      ValueError: ids of different batch dimensions, or beyond the integers that JAX holds; where the mask is used, of
        other lengths than T and S.

    >>> segments(jnp.array([0, 0, 1])).to_array(3, 3).astype(int).tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    query_ids = integer_array("segments(query_ids)", query_ids)
    key_ids = query_ids if key_ids is None else integer_array("segments(key_ids)", key_ids)
    if query_ids.ndim == 0 or query_ids.shape[:-1] != key_ids.shape[:-1]:
        raise ValueError(
            f"segments() wants query_ids [*B, T] and key_ids [*B, S] with the same batch dimensions, "
            f"got {query_ids.shape} and {key_ids.shape}"
        )
    dtypes = {query_ids.dtype, key_ids.dtype}
    both = jnp.result_type(*dtypes)  # in which JAX compares them
    if not jnp.issubdtype(both, jnp.integer) or any(jnp.iinfo(x).max > jnp.iinfo(both).max for x in dtypes):
        raise TypeError(
            f"segments() wants query_ids and key_ids of one dtype, got {query_ids.dtype} and {key_ids.dtype}, which "
            f"JAX compares as {both}: convert one of them"
        )
    return Segments(query_ids, key_ids)


def key_lengths(lengths: Integers) -> Mask:
    """Every query sees the first `lengths` keys: right-padded batches, or a partly filled cache.

    Args:
      lengths: integer scalar or array `[*B]`; may be traced.

    Raises:
      TypeError: lengths that are not integers.
      ValueError: where the mask is used, lengths of another batch.

    >>> key_lengths(jnp.array([1, 3])).to_array(1, 3).astype(int).tolist()
    [[[[1, 0, 0]]], [[[1, 1, 1]]]]
    """
    return KeyLengths(index_array(integer_array("key_lengths(lengths)", lengths)))


def mask_from_array(array: ArrayLike | Sequence[Any]) -> Mask:
    """A mask from a bool array, True where a query may attend.

    Args:
      array: bool `[T, S]`, `[N or 1, T, S]` for one example, or `[*B, N or 1, T, S]`; T and S may be 1 to broadcast.

    Raises:
      TypeError: no array of bool.
      ValueError: fewer than two axes; where the mask is used, a shape that does not fit, or a batch that could be taken
        for heads.

    >>> mask_from_array([[True, False]]).to_array(2, 2).astype(int).tolist()
    [[1, 0], [1, 0]]
    """
    return as_mask(array)


def mask_from_function(fn: Callable[[jax.Array, jax.Array], jax.Array]) -> Mask:
    """A mask from `fn(t, s)`: bool, whether the query at position t may see the key at position s.

    Args:
      fn: called with integer arrays `[T, 1]` and `[1, S]`; what it returns broadcasts against `[T, S]`.

    Raises:
      TypeError: no function; where the mask is used, one that takes other arguments, or does not return bool.
      ValueError: where the mask is used, what it returns cannot be broadcast.

    >>> mask_from_function(lambda t, s: (t - s) % 2 == 0).to_array(2, 3).astype(int).tolist()
    [[1, 0, 1], [0, 1, 0]]
    """
    if not callable(fn):
        raise TypeError(f"mask_from_function wants a function (t, s) -> bool, got {fn!r}")
    return Function(fn)
