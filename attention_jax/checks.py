"""What every attention function asks of its inputs; each error names the argument, the shape wanted and the fix."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from attention_jax.arguments import ARRAYS, as_array, brief, broadcasts, check_real, index_array, integer_array
from attention_jax.mask_tree import Mask, as_mask

if TYPE_CHECKING:
    from attention_jax.typing import Integers, MaskLike

ONE_HEAD = "query [T, H], key [S, H], value [S, Hv]"
MANY_HEADS = "query [*B, T, N, H], key [*B, S, K, H], value [*B, S, K, Hv]"


def check_one_head(**arrays: Any) -> list[jax.Array]:
    """Query, key and (if given) value of one head and one example as arrays, or a `TypeError` / `ValueError`."""
    arrays = _check_dtypes(arrays)
    if any(array.ndim != 2 for array in arrays.values()):
        problem = "one head and one example are wanted; map others with jax.vmap, or call multi_head_attention"
        raise ValueError(_shape_error(problem, ONE_HEAD, arrays))
    query, key, value = (*arrays.values(), arrays["key"])[:3]
    if query.shape[1] != key.shape[1]:
        raise ValueError(_shape_error("query and key differ in head dim H", ONE_HEAD, arrays))
    if key.shape[0] != value.shape[0]:
        raise ValueError(_shape_error("key and value differ in length S", ONE_HEAD, arrays))
    return list(arrays.values())


def check_many_heads(query: ArrayLike, key: ArrayLike, value: ArrayLike) -> list[jax.Array]:
    """Query, key and value with heads and any batch dimensions as arrays, or a `TypeError` / `ValueError`."""
    arrays = _check_dtypes({"query": query, "key": key, "value": value})
    query, key, value = arrays.values()
    problem = None
    if len({array.ndim for array in arrays.values()}) > 1 or query.ndim < 3:
        problem = "each needs a head axis, and all the same batch dimensions"
    elif not query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
        problem = "the batch dimensions *B differ"
    elif query.shape[-1] != key.shape[-1]:
        problem = "query and key differ in head dim H"
    elif key.shape[-3:-1] != value.shape[-3:-1]:
        problem = "key and value differ in length S or heads K"
    elif key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]:
        problem = (
            f"the {query.shape[-2]} query heads are not a multiple of the {key.shape[-2]} key/value heads "
            "(if your arrays are [*B, heads, length, H], pass jnp.swapaxes(x, -3, -2) of each)"
        )
    if problem:
        raise ValueError(_shape_error(problem, MANY_HEADS, arrays))
    return [query, key, value]


def check_mask(mask: MaskLike | None, shape: tuple[int, ...]) -> jax.Array | None:
    """A mask (or bool array, or None) as a bool array for `shape`, `[T, S]` or `[*B, N, T, S]`; any axis may be 1."""
    if mask is None:
        return None
    mask = as_mask(mask)
    return _broadcast("mask", mask.to_array(*shape[-2:]), shape, f", made by {mask!r}")


def check_mask_shape(mask: Mask, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` if the mask is not one for `shape`, `[*B, N, T, S]`; without making its array."""
    jax.eval_shape(lambda: check_mask(mask, shape))  # not of the mask: JAX would keep its functions, and what they hold


def check_bias(bias: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array | None:
    """A bias (or None) as a floating array for `shape`, `[T, S]` or `[*B, N, T, S]`; any axis may be 1."""
    if bias is None:
        return None
    bias = as_array("bias", bias)
    if not jnp.issubdtype(bias.dtype, jnp.floating):
        fix = "pass a bool array as mask=" if bias.dtype == jnp.bool_ else "convert it, e.g. bias.astype(float)"
        raise TypeError(f"bias is added to the logits and must be floating point, got {bias.dtype}: {fix}")
    return _broadcast("bias", bias, shape)


def check_sequence(name: str, x: ArrayLike, D: int) -> jax.Array:
    """What a module was called with as an array `[*B, T, D]`, or a `ValueError`."""
    x = as_array(name, x)
    if x.ndim < 2 or x.shape[-1] != D:
        raise ValueError(f"{name} has shape {x.shape}, expected [*B, T, D] with D = {D}")
    return x


def check_dropout(rate: float, rng: jax.Array | None) -> float:
    """The dropout rate as a Python float in [0, 1), with a random key if it is not 0."""
    rate = check_dropout_rate(rate)
    if rate == 0:
        return rate
    if rng is None:
        raise ValueError(f"dropout_rate={rate} needs dropout_rng=, a key such as jax.random.key(0)")
    check_key("dropout_rng", rng)
    return rate


def check_key(name: str, rng: object) -> None:
    """Raise `TypeError` unless this is one random key."""
    if not isinstance(rng, jax.Array | np.ndarray):
        raise TypeError(f"{name} must be a key such as jax.random.key(0), got {rng!r}")
    key = jnp.issubdtype(rng.dtype, jax.dtypes.prng_key)
    if (rng.ndim, rng.dtype) != ((0, rng.dtype) if key else (1, jnp.uint32)):
        raise TypeError(
            f"{name} must be one key, such as jax.random.key(0), got {brief(rng)}: map over several by jax.vmap"
        )


def check_dropout_rate(rate: float) -> float:
    """The dropout rate as a Python float in [0, 1)."""
    if isinstance(rate, jax.core.Tracer):
        raise TypeError(
            f"dropout_rate must be static (a Python float known while tracing), got a traced "
            f"{rate.aval.str_short()}: "
            "close over it, or list it in jit's static_argnames"
        )
    try:
        rate = float(0.0 + rate)  # to a word nothing can be added, though float() would read it
    except (TypeError, ValueError):
        raise TypeError(f"dropout_rate must be a number, got {rate!r}: pass 0.0 for none") from None
    except OverflowError:
        rate = math.inf if rate > 0 else -math.inf
    if not 0 <= rate < 1:  # also refuses NaN
        raise ValueError(f"dropout_rate must be at least 0 and below 1, got {rate}")
    return rate


def check_scale(scale: ArrayLike | None, head_dim: int) -> Any:
    """The factor on query . key: 1/sqrt(H) unless given."""
    if scale is None:
        return 1 / math.sqrt(head_dim) if head_dim else 1.0
    if np.ndim(scale) != 0:
        raise ValueError(f"scale must be one number, got {np.shape(scale)}: multiply the query by an array instead")
    if not isinstance(scale, ARRAYS):
        raise TypeError(f"scale must be one number, got {scale!r}")
    check_real("scale", jnp.result_type(scale))
    if isinstance(scale, int) and abs(scale) > sys.float_info.max:
        raise ValueError(f"scale must be a number that a float can be, got an integer of {scale.bit_length()} bits")
    return scale


def check_indices(name: str, indices: Integers | None, size: int) -> jax.Array:
    """Integers `[number]` counted from the start, all of them if None; those known while tracing must exist."""
    if indices is None:
        return jnp.arange(size)
    known = None if isinstance(indices, jax.core.Tracer) else np.asarray(indices)
    indices = integer_array(name, indices)
    if indices.ndim != 1:
        raise TypeError(f"{name} must be a list of integers, got {brief(indices)}")
    if known is not None and (missing := known[(known < -size) | (known >= size)]).size:
        raise ValueError(f"{name} must lie in {-size} .. {size - 1}, got {missing[0]}")
    indices = index_array(indices)
    return jnp.where(indices < 0, indices + size, indices)


def check_auto(**arrays: Any) -> None:
    """Raise `ValueError` for an array that is spread over mesh axes of type Explicit, whose shardings no function here
    works out."""
    for name, array in arrays.items():
        spec = jax.typeof(array).sharding.spec
        if any(axis is not None for axis in spec):
            raise ValueError(
                f"{name} is spread over mesh axes of type Explicit, {spec}, and only Auto ones are followed: make the "
                "mesh by jax.sharding.Mesh or attention_jax.modules.make_mesh, or wrap the call in "
                "jax.sharding.auto_axes(fn, out_sharding=...) or jax.shard_map"
            )


def _check_dtypes(arrays: Mapping[str, Any]) -> dict[str, jax.Array]:
    arrays = {name: as_array(name, array) for name, array in arrays.items()}
    check_auto(**arrays)
    for name, array in arrays.items():
        if array.dtype.itemsize == 1 and jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must have 16 bits or more, got {array.dtype}: convert it, e.g. to bfloat16")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating point, got {array.dtype}: convert it, e.g. {name}.astype(float)")
    if len({array.dtype for array in arrays.values()}) > 1:
        dtypes = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
        raise ValueError(
            f"all of {', '.join(arrays)} must have one dtype, got {dtypes}: convert them to the one wanted"
        )
    return arrays


def _shape_error(problem: str, layout: str, arrays: Mapping[str, jax.Array]) -> str:
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    return f"{problem}: expected {layout}; got {shapes}"


def _broadcast(name: str, array: jax.Array, shape: tuple[int, ...], source: str = "") -> jax.Array:
    """`array` with all of `shape`'s axes, those of size 1 left so, if it is `[T, S]` or has them all.

    NumPy's own rule would also take `[B, T, S]`, and read it as one array a head wherever B == N.
    """
    if array.ndim in (2, len(shape)) and broadcasts(array.shape, shape):
        return array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    *batch, T, S = shape
    wanted = f"[T, S] = [{T}, {S}]"
    if batch:
        sizes = ", ".join([*map(str, batch[:-1]), f"{batch[-1]} or 1", str(T), str(S)])
        wanted += f", or [*B, N or 1, T, S] = [{sizes}]"
    fix = ""
    if len(batch) > 1 and array.shape == (*batch[:-1], T, S):
        fix = f": give it a head axis, {name}[..., None, :, :]"
    raise ValueError(f"{name} has shape {array.shape}{source}, expected {wanted}{fix}")
