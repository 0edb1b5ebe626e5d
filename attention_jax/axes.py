"""Arrays that come with a mask, a score or dropout, arranged for a loop or `jax.vmap` over batch and heads."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree", bound="Rule")


class Rule(Protocol):
    """A mask or a score."""

    def axes(self) -> list[str]: ...


def length_along(array: jax.Array, letters: str, letter: str) -> int:
    """How long that axis of an array is: 1 if it has none.

    >>> length_along(jnp.zeros((5, 1, 6, 7)), "*nts", "t")
    6
    """
    names = letters.removeprefix("*")
    return array.shape[array.ndim - len(names) + names.index(letter)] if letter in names else 1


def by_group(array: jax.Array | None, letters: str, batch_dims: int, K: int, N: int) -> tuple[Any, list[int | None]]:
    """An array with its batch dimensions first, then N as K and N // K, each left out where it is 1.

    Args:
      array: with the axes `letters`: `*` any batch dimensions, `n` heads, others as they are. None gives None.
      letters: e.g. `"*nts"`; see `Mask.axes`.
      batch_dims: how many there are.
      K, N: key/value heads and query heads.

    Returns:
      The array, and for each batch dimension, K and N // K: 0 if it is there, to be mapped by `vmap` from the outside
      in, or None.

    >>> array, axes = by_group(jnp.zeros((5, 1, 6, 7, 8)), "*nts", 2, 2, 6)
    >>> array.shape, axes
    ((5, 2, 3, 7, 8), [0, None, 0, 0])
    """
    if array is None:
        return None, [None] * (batch_dims + 2)
    names = letters.removeprefix("*")
    lead = array.ndim - len(names)
    if "n" in names:
        array = jnp.moveaxis(array, lead + names.index("n"), lead)
    heads = (K, N // K) if "n" in names and array.shape[lead] == N else (1, 1)
    sizes = [*(array.shape[:lead] or [1] * batch_dims), *heads]
    rest = array.shape[lead + ("n" in names) :]
    return array.reshape((*(size for size in sizes if size != 1), *rest)), [0 if size != 1 else None for size in sizes]


def map_heads(
    fn: Callable, query: jax.Array, keyed: Sequence[jax.Array], others: Sequence[jax.Array | None], letters: list[str]
) -> Any:
    """`fn(query [T, H], *keyed [S, .], *others)` of one head, mapped over heads and batch dimensions.

    Args:
      query: `[*B, T, N, H]`.
      keyed: arrays `[*B, S, K, .]`; a group of query heads shares its key and value.
      others: arrays with the axes `letters`, cut down to one head where they have one for each.

    Returns:
      What `fn` returns, each array with `[*B, N]` in front.
    """
    *batch, T, N, H = query.shape
    K = keyed[0].shape[-2]
    arranged = [by_group(array, names, len(batch), K, N) for array, names in zip(others, letters, strict=True)]
    others, axes = zip(*arranged, strict=True)

    def over(fn: Callable, level: int, query_axis: int, key_axis: int | None) -> Callable:
        keys = [key_axis] * len(keyed)
        return jax.vmap(fn, (query_axis, *keys, *(levels[level] for levels in axes)))

    mapped = over(over(fn, -1, 1, None), -2, 1, 1)
    for level in reversed(range(len(batch))):
        mapped = over(mapped, level, 0, 0)
    results = mapped(query.reshape(*batch, T, K, N // K, H), *keyed, *others)
    return jax.tree.map(lambda x: x.reshape(*batch, N, *x.shape[len(batch) + 2 :]), results)


def cut(array: Any, letters: str, **indices: Any) -> Any:
    """`array` with the indices given along each axis of that letter, in place of all; where its size is 1, it serves
    all and stays.

    >>> cut(jnp.zeros((5, 1, 6, 7)), "*nts", n=[2, 3], t=[0, 1, 2], s=slice(4)).shape
    (5, 1, 3, 4)
    """
    first = array.ndim - len(letters.removeprefix("*"))
    for axis, letter in enumerate(letters.removeprefix("*"), first):
        if letter in indices and array.shape[axis] != 1:
            index = indices[letter]
            array = array[(slice(None),) * axis + (index if isinstance(index, slice) else jnp.asarray(index),)]
    return array


def cut_leaves(tree: Tree, **indices: Any) -> Tree:
    """A mask or a score with its own arrays `cut`."""
    leaves, structure = jax.tree.flatten(tree)
    leaves = [cut(leaf, letters, **indices) for leaf, letters in zip(leaves, tree.axes(), strict=True)]
    return jax.tree.unflatten(structure, leaves)
