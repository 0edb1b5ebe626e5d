"""First and last position of a block of queries or keys: integers where they are known while tracing, else arrays."""

import jax
import jax.numpy as jnp
import numpy as np

Position = int | jax.Array | np.ndarray
Span = tuple[Position, Position]
Truth = bool | jax.Array | np.ndarray


def negation(truth: Truth) -> Truth:
    return not truth if isinstance(truth, bool) else ~truth


def overlap(one: Span, other: Span) -> Span:
    return _larger(one[0], other[0]), _smaller(one[1], other[1])


def hull(one: Span, other: Span) -> Span:
    return _smaller(one[0], other[0]), _larger(one[1], other[1])


def _smaller(a: Position, b: Position) -> Position:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else jnp.minimum(a, b)


def _larger(a: Position, b: Position) -> Position:
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else jnp.maximum(a, b)
