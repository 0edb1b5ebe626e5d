"""What a step does with one head, mapped over the heads and examples that it takes, whose axes have letters."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class OfGroup(NamedTuple):
    """What has been made of `gathered` arrays, and so is no more to be summed over the heads of a group."""

    total: jax.Array


@jax.custom_batching.custom_vmap
def gathered(array: jax.Array) -> jax.Array:
    """In what `over_heads` maps, for an array that each head of a group has: those of all of them, one after another
    along the first axis. (`lax.all_gather` refuses the axis of a `vmap` inside `jax.shard_map` with its checks.)"""
    return array


@gathered.def_vmap
def _gathered(size: int, batched: Sequence[bool], array: jax.Array) -> tuple[jax.Array, bool]:
    return array.reshape(-1, *array.shape[2:]), False


def over_heads(fn: Callable, size: Callable[[str], int], axes: Sequence, out_axes: Sequence) -> Callable:
    """`fn(head, *operands)` of one head, for the numbers `[k, g]` of the heads, and for operands and outputs with the
    axes `axes` and `out_axes`, of which one head has those that are not in "xbkg".

    An output without one of these axes is summed over it, unless it is `OfGroup`.
    """
    for letter, outside in (("g", "xbk"), ("k", "xb"), ("b", "x"), ("x", "")):
        inside, inside_out = ([[a for a in names if a not in outside] for names in each] for each in (axes, out_axes))
        fn = _over(fn, letter, size(letter), inside, inside_out)
    return fn


def _over(fn: Callable, letter: str, size: int, axes: Sequence, out_axes: Sequence) -> Callable:
    where = [None if letter in "xb" else 0, *(names.index(letter) if letter in names else None for names in axes)]
    where_out = [names.index(letter) if letter in names else None for names in out_axes]
    mapped = jax.vmap(fn, tuple(where), tuple(axis or 0 for axis in where_out), axis_size=size)

    def summed(*operands: jax.Array) -> tuple[jax.Array, ...]:
        outputs = zip(mapped(*operands), where_out, strict=True)
        return tuple(_total(output) if axis is None else output for output, axis in outputs)

    def only_one(*operands: jax.Array) -> tuple[jax.Array, ...]:
        # as an axis it would keep XLA from seeing that two layouts are one
        blocks = [x if axis is None else jnp.squeeze(x, axis) for x, axis in zip(operands, where, strict=True)]
        outputs = zip(fn(*blocks), where_out, strict=True)
        return tuple(output if axis is None else jnp.expand_dims(output, axis) for output, axis in outputs)

    return only_one if size == 1 else summed


def _total(output: jax.Array | OfGroup) -> jax.Array:
    return output.total[0] if isinstance(output, OfGroup) else jnp.sum(output, 0)
