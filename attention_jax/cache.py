"""The keys and values of what has been read so far, so that the next token costs one row of attention."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from attention_jax.mask_tree import Mask, static_int
from attention_jax.masks import causal_from


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens so far, in arrays of a fixed size; appending makes a new cache.

    Args:
      key: `[*B, capacity, K, H]`.
      value: `[*B, capacity, K, Hv]`.
      length: integers `[*B]`, how many tokens each example holds.

    >>> from attention_jax import attention
    >>> cache = KVCache.empty(10, 2, 4, batch=(3,))
    >>> for T in (5, 1, 1):  # a prefill, and two tokens
    ...     query, key, value = jnp.ones((3, T, 4, 4)), jnp.ones((3, T, 2, 4)), jnp.ones((3, T, 2, 4))
    ...     cache = cache.append(key, value)
    ...     output = attention(query, cache.key, cache.value, mask=cache.mask(T))
    >>> output.shape, cache.length.tolist()
    ((3, 1, 4, 4), [7, 7, 7])
    """

    key: jax.Array
    value: jax.Array
    length: jax.Array

    @classmethod
    def empty(
        cls, capacity: int, num_kv_heads: int, head_dim: int, *, value_dim: int | None = None, batch=(), dtype=None
    ):
        """A cache with room for `capacity` tokens of K heads of H (and Hv) channels; float32 if no dtype is given."""
        capacity = static_int("capacity", capacity, minimum=1)
        shape = *batch, capacity, num_kv_heads
        key = jnp.zeros((*shape, head_dim), dtype)
        value = jnp.zeros((*shape, head_dim if value_dim is None else value_dim), dtype)
        return cls(key, value, jnp.zeros(batch, jnp.int32))

    @property
    def capacity(self) -> int:
        return self.key.shape[-3]

    def append(self, key, value) -> "KVCache":
        """The cache with T more tokens.

        Args:
          key: `[*B, T, K, H]`, in the cache's dtype.
          value: `[*B, T, K, Hv]`, likewise.

        Raises:
          ValueError: shapes or dtypes other than the cache's, or tokens beyond the capacity. Where the length is
            traced and cannot be compared, all keys and values of an example that has too many become NaN.
        """
        T = key.shape[-3] if key.ndim == self.key.ndim else 0
        for name, new, old in (("key", key, self.key), ("value", value, self.value)):
            wanted = *old.shape[:-3], T, *old.shape[-2:]
            if new.shape != wanted or new.dtype != old.dtype:
                raise ValueError(
                    f"{name} has {new.dtype}{list(new.shape)}, but the cache {old.dtype}{list(old.shape)}: expected "
                    f"[*B, T, K, .] = {[*old.shape[:-3], 'T', *old.shape[-2:]]} in the same dtype"
                )
        length = self.length + T
        traced = isinstance(length, jax.core.Tracer)
        if self.capacity < T or (not traced and (length > self.capacity).any()):
            held = "" if traced else f" on the {int(self.length.max())} it holds"
            raise ValueError(f"{T} more tokens{held} do not fit in a capacity of {self.capacity}: make a larger cache")
        spoilt = length > self.capacity

        def write(old, new, first, spoilt):
            return jnp.where(spoilt, jnp.nan, lax.dynamic_update_slice(old, new, (first, 0, 0)))

        for _ in self.length.shape:
            write = jax.vmap(write)
        keys, values = (write(old, new, self.length, spoilt) for old, new in ((self.key, key), (self.value, value)))
        return KVCache(keys, values, length)

    def mask(self, T: int) -> Mask:
        """Which of the cache's keys the last T tokens see: those up to their own."""
        return causal_from(self.length - T)
