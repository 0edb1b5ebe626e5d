"""The arithmetic of a block, in the forms that XLA makes the fastest loops of on a CPU."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from attention_jax.devices import SAFE_SELECT


def finite_or_zero(x: jax.Array) -> jax.Array:
    """With 0 for what is not finite. The zeros are not a constant: a CPU's loop over short rows that has one runs a
    number at a time."""
    finite = jnp.isfinite(x)
    return jnp.where(finite, x, finite.astype(x.dtype) if SAFE_SELECT else 0)


def finite_or_nan(x: jax.Array) -> jax.Array:
    """With NaN for what is not finite. XLA copies what it also computes faster than what it only puts in order."""
    return x + (x - x)


@jax.custom_jvp
def hidden_rests(logits: jax.Array) -> jax.Array:
    """The logits, of which one that is -inf has no tangent, whatever it was made of: its weight is 0, times inf NaN."""
    return logits


@hidden_rests.defjvp
def _hidden_rests_jvp(primals: Sequence[jax.Array], tangents: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (logits,), (tangent,) = primals, tangents
    return hidden_rests(logits), jnp.where(logits == -jnp.inf, 0, tangent)


def exponentials(checked: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The highest of each row of logits, the exponentials of what the checked ones are below it, and the sum of each
    row of them."""
    # checked after the maximum, before which it is a pass more; not -inf, from which nothing is subtracted
    peak = jnp.maximum(jnp.max(logits, axis=-1), jnp.finfo(logits.dtype).min)
    weights = jnp.exp(checked - peak[:, None])
    return peak, weights, jnp.sum(weights, axis=-1)


def softmax_of_few(logits: jax.Array) -> jax.Array:
    """The weights, 0 in a row that sees nothing. YNNPACK makes one operation of it, if maximum and sum begin at their
    floors, and if nothing else asks for them."""
    weights, total = exponentials_of_few(logits)
    return weights / total[:, None]


def exponentials_of_few(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The exponentials of what the logits are below the highest of their row, and the sum of each row of them."""
    limits = jnp.finfo(logits.dtype)
    weights = jnp.exp(logits - _reduced(jax.lax.max, logits, limits.min)[:, None])
    return weights, _reduced(jax.lax.add, weights, limits.tiny)


def _reduced(operation: Callable, rows: jax.Array, first: ArrayLike) -> jax.Array:
    """Each row, and what comes first, made one number. Where a row has but one, XLA forgets what comes first."""
    first = jnp.asarray(first, rows.dtype)
    return jax.lax.reduce(rows, first, operation, (1,)) if rows.shape[1] > 1 else operation(rows[:, 0], first)


def summed(letters: str, one: jax.Array, other: jax.Array) -> jax.Array:
    """The product of two matrices, summed by a loop that XLA makes one with what comes before and after."""
    first, second, _ = letters.replace("->", ",").split(",")
    (letter,) = set(first) & set(second)
    one, other = (x if axes[1] == letter else x.T for axes, x in ((first, one), (second, other)))
    return jnp.sum(one[:, None, :] * other[None, :, :], axis=-1)


def sums_of_zeros(letters: str, x: jax.Array) -> jax.Array:
    """0, but NaN where something in the sum is not finite; nothing is taken back through it."""
    return jnp.einsum(letters, jax.lax.stop_gradient(x - x))


def turned(x: jax.Array) -> jax.Array:
    """Its transpose, in memory too."""
    return jax.lax.optimization_barrier(x.T)
