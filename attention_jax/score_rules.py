"""The rules a score is made of: one node for each, and how it changes the logits of a block."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.checks import check_bias
from attention_jax.mask_rules import check_offset
from attention_jax.node import node, static
from attention_jax.score_tree import Score


@node
class Bias(Score):
    array: jax.Array

    def apply(self, logits: jax.Array, head: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return logits + self.array.astype(logits.dtype)

    def axes(self) -> list[str]:
        return ["*nts" if self.array.ndim > 2 else "ts"]

    def check(self, shape: tuple[int, ...]) -> None:
        check_bias(self.array, shape)


@node
class Alibi(Score):
    slopes: jax.Array
    offset: int | None = static()

    def apply(self, logits: jax.Array, head: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        distance = jnp.abs(rows[:, None] + (self.offset or 0) - columns[None, :])
        return logits - self.slopes.astype(logits.dtype) * distance.astype(logits.dtype)

    def axes(self) -> list[str]:
        return ["n"]

    def check(self, shape: tuple[int, ...]) -> None:
        check_offset("alibi()", self.offset, *shape[-2:])
        if self.slopes.shape != shape[-3:-2]:
            raise ValueError(f"alibi() has slopes {self.slopes.shape}, expected one a head, {shape[-3:-2]}")


@node
class RelativeBias(Score):
    table: jax.Array
    bidirectional: bool = static()
    max_distance: int = static()
    offset: int | None = static()

    def apply(self, logits: jax.Array, head: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        distance = columns[None, :] - rows[:, None] - (self.offset or 0)
        bucket = relative_bucket(distance, self.table.shape[0], self.max_distance, bidirectional=self.bidirectional)
        return logits + self.table.astype(logits.dtype)[bucket]

    def axes(self) -> list[str]:
        return [".n"]

    def check(self, shape: tuple[int, ...]) -> None:
        check_offset("relative_bias()", self.offset, *shape[-2:])
        if self.table.ndim != 2 or self.table.shape[1] != shape[-3]:
            raise ValueError(
                f"relative_bias() has a table {self.table.shape}, expected [buckets, N] with N = {shape[-3]} heads"
            )
        least = 4 if self.bidirectional else 2
        if self.table.shape[0] < least:
            raise ValueError(f"relative_bias() wants a table of at least {least} buckets, got {self.table.shape[0]}")
        exact = self.table.shape[0] // least  # distances that have a bucket of their own
        if self.max_distance <= exact:
            raise ValueError(
                f"relative_bias(max_distance={self.max_distance}) must be more than {exact}, the distances that have a "
                f"bucket of their own where there are {self.table.shape[0]}"
            )


@node
class SoftCap(Score):
    cap: jax.Array | np.ndarray

    def apply(self, logits: jax.Array, head: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        cap = jnp.asarray(self.cap, logits.dtype)
        most = jnp.finfo(logits.dtype).max * 1e-4  # of infinite ones, the slope by the cap would be NaN
        logits = jnp.clip(logits, -most, most)
        return cap * jnp.tanh(logits / cap)

    def axes(self) -> list[str]:
        return [""]


def relative_bucket(distance: jax.Array, buckets: int, max_distance: int, *, bidirectional: bool) -> jax.Array:
    """T5's bucket of each distance s - t: one for each small distance, then ever wider ones, growing by a ratio.

    >>> relative_bucket(jnp.array([0, -1, -7, -20, -500, 3]), 32, 128, bidirectional=False).tolist()
    [0, 1, 7, 17, 31, 0]
    """
    first = 0
    if bidirectional:
        buckets //= 2
        first = jnp.where(distance > 0, buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(max_distance / exact)
    wide = exact + (ratio * (buckets - exact)).astype(distance.dtype)
    return first + jnp.where(distance < exact, distance, jnp.minimum(wide, buckets - 1))
