"""Arrays that come with a mask, a score or dropout, arranged for a loop or `jax.vmap` over batch and heads."""

import jax


def by_group(array: jax.Array | None, letters: str, batch_dims: int, K: int, N: int):
    """An array with its batch dimensions first, then N as K and N // K, each left out where it is 1.

    Args:
      array: with the axes `letters`: `*` any batch dimensions, `n` heads, others as they are. None gives None.
      letters: e.g. `"*nts"`; see `Mask.axes`.
      batch_dims: how many there are.
      K, N: key/value heads and query heads.

    Returns:
      The array, and for each batch dimension, K and N // K: 0 if it is there, to be mapped by `vmap` from the outside
      in, or None.

    >>> array, axes = by_group(jax.numpy.zeros((5, 1, 6, 7, 8)), "*nts", 2, 2, 6)
    >>> array.shape, axes
    ((5, 2, 3, 7, 8), [0, None, 0, 0])
    """
    if array is None:
        return None, [None] * (batch_dims + 2)
    names = letters.removeprefix("*")
    lead = array.ndim - len(names)
    if "n" in names:
        array = jax.numpy.moveaxis(array, lead + names.index("n"), lead)
    heads = (K, N // K) if "n" in names and array.shape[lead] == N else (1, 1)
    sizes = [*(array.shape[:lead] or [1] * batch_dims), *heads]
    rest = array.shape[lead + ("n" in names) :]
    return array.reshape(*(size for size in sizes if size != 1), *rest), [0 if size != 1 else None for size in sizes]
