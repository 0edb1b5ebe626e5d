"""What is asked of arguments that are numbers and positions; each error names the argument and the fix."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

if TYPE_CHECKING:
    from attention_jax.typing import Integers, Positions


FARTHEST = 2**29  # positions are int32, and so are sums of a few of them up to here
ARRAYS = jax.Array | np.ndarray | np.generic | bool | int | float | complex  # what JAX takes for one


def static_int(name: str, value: object, minimum: int | None = None) -> int:
    """`value` as a Python int, or a `TypeError` that says why an array or a traced value will not do."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} must be static (a Python int known while tracing), got the traced {value.aval.str_short()}: "
            "close over it or list it in jit's static_argnames; for bounds that depend on data use key_lengths, "
            "segments or mask_from_function"
        )
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        value = operator.index(value)
    except TypeError:  # of an array that is not one integer
        raise TypeError(
            f"{name} must be one integer, got {brief(np.asarray(value))}: it is the same for all examples; what "
            "differs goes by positions=, key_lengths, segments or mask_from_function"
        ) from None
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return value


def static_offset(name: str, value: object) -> int | None:
    """`value` as `static_int`, or None; a `ValueError` for one beyond all positions."""
    offset = None if value is None else static_int(name, value)
    if offset is not None and abs(offset) > FARTHEST:
        raise ValueError(f"{name} must lie in {-FARTHEST} .. {FARTHEST}, got {offset}")
    return offset


def positions_alike(positions: Positions) -> list[jax.Array]:
    """Those of queries and of keys in the default integer dtype, with the same batch dimensions."""
    if not isinstance(positions, tuple | list) or len(positions) != 2:
        raise TypeError(f"positions must be a pair, those of queries and those of keys, got {type(positions).__name__}")
    names = "positions of queries [*B, T]", "positions of keys [*B, S]"
    arrays = [integer_array(name, each) for name, each in zip(names, positions, strict=True)]
    farthest = jnp.iinfo(jnp.asarray(0).dtype).max
    for name, array, given in zip(names, arrays, positions, strict=True):
        known = jnp.iinfo(array.dtype).max > farthest and not isinstance(given, jax.core.Tracer)
        if known and (most := np.max(given, initial=0)) > farthest:
            raise ValueError(f"{name} must be at most {farthest}, got {most}")
    got = " and ".join(map(brief, arrays))
    if any(array.ndim == 0 for array in arrays):
        raise TypeError(f"positions are integers, of queries [*B, T] and of keys [*B, S]; got {got}")
    try:
        batch = jnp.broadcast_shapes(*(array.shape[:-1] for array in arrays))
    except ValueError:
        raise ValueError(f"positions are [*B, T] of queries and [*B, S] of keys, with the same *B; got {got}") from None
    return [jnp.broadcast_to(array.astype(int), (*batch, array.shape[-1])) for array in arrays]


def positions_for(positions: Positions | None, batch: Sequence[int], T: int, S: int) -> list[jax.Array]:
    """Those of T queries and S keys, by their index unless given; a `ValueError` for another number of them."""
    if positions is None:
        return [jnp.arange(T), jnp.arange(S)]
    arrays = positions_alike(positions)
    if not of_batch(arrays[0].shape[:-1], batch) or [array.shape[-1] for array in arrays] != [T, S]:
        got = " and ".join(map(brief, arrays))
        of_each = f", or [*B, T] = {[*batch, T]} and [*B, S] = {[*batch, S]}" if batch else ""
        raise ValueError(f"positions must be [T] = [{T}] and [S] = [{S}]{of_each}; got {got}")
    return arrays


def made_by(what: str, fn: Callable[..., Any], names: str, inputs: Sequence[Any], shape: Sequence[int]) -> jax.Array:
    """What a function of such names makes of pairs of positions, as an array that can be broadcast to `shape`."""
    try:
        inspect.signature(fn).bind(*inputs)
    except TypeError:
        raise TypeError(f"{what} is called with ({names}), and takes {inspect.signature(fn)}") from None
    except ValueError:
        pass  # it does not tell its signature
    try:
        made = fn(*inputs)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            f"{what} is traced, and gave NumPy an array that is: use jax.numpy, such as jnp.asarray(table)[t - s]"
        ) from error
    if not isinstance(made, ARRAYS):
        raise TypeError(f"{what} must return an array, got {type(made).__name__}")
    array = jnp.asarray(made)
    if not broadcasts(array.shape, shape):
        raise ValueError(f"{what} must return one number for each pair, {list(shape)}, got {list(array.shape)}")
    return array


def of_batch(shape: Sequence[int], batch: Sequence[int]) -> bool:
    """Whether the batch dimensions of an array are none, or as many as these, which they can be broadcast to."""
    return len(shape) in (0, len(batch)) and broadcasts(shape, batch)


def broadcasts(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether an array of this shape can be broadcast to the one wanted."""
    sizes = zip(shape[::-1], wanted[::-1], strict=False)
    return len(shape) <= len(wanted) and all(size in (1, other) for size, other in sizes)


def is_real(dtype: Any) -> bool:
    """Whether these are numbers that a logit can be: floating point, or integers."""
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def check_real(name: str, dtype: Any) -> None:
    """Raise `TypeError` unless these are real numbers."""
    if not is_real(dtype):
        raise TypeError(f"{name} must be real, got {dtype}")


def as_array(name: str, value: Any) -> jax.Array:
    """`value` as an array, or a `TypeError`."""
    problem = None
    if value is not None and not isinstance(value, str):
        try:
            return jnp.asarray(value)
        except (TypeError, ValueError) as error:  # such as of lists of unequal lengths
            problem = error
    raise TypeError(f"{name} must be an array, got {value!r:.60}") from problem


def real_array(name: str, value: ArrayLike) -> jax.Array:
    """`value` as an array of real numbers, or a `TypeError`."""
    array = as_array(name, value)
    check_real(name, array.dtype)
    return array


def integer_array(name: str, value: Integers) -> jax.Array:
    """`value` as an array of integers, or a `TypeError`; a `ValueError` where JAX has no room for one, and would make
    another of it."""
    value = np.zeros(0, int) if isinstance(value, list | tuple) and not value else value  # of which JAX makes floats
    try:
        array = jnp.asarray(value)
    except OverflowError:  # which a list raises, but no array
        array, value = jnp.asarray(0), np.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be integers, got {value!r}") from None
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {brief(array)}")
    limits = jnp.iinfo(array.dtype)
    if isinstance(value, np.ndarray | np.generic) and value.size:
        least, most = value.min(), value.max()
        if least < limits.min or most > limits.max:
            raise ValueError(
                f"{name} must lie in {limits.min} .. {limits.max}, as {array.dtype} in JAX, got {least} .. {most}: "
                "number them otherwise, or set jax_enable_x64"
            )
    return array


def index_array(array: ArrayLike) -> jax.Array:
    """Integers in the default integer dtype, and no larger than it goes. A small dtype does for what is said in it, and
    not for what that is compared with: to JAX, 299 is 43 in int8."""
    array, most = jnp.asarray(array), jnp.iinfo(jnp.asarray(0).dtype).max
    return (jnp.minimum(array, most) if jnp.iinfo(array.dtype).max > most else array).astype(int)


def brief(array: jax.Array | np.ndarray) -> str:
    """Dtype and shape, for messages."""
    return f"{array.dtype}{list(array.shape)}"
