"""The keys and values of what has been read so far, so that the next token costs one row of attention."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from attention_jax.arguments import as_array, broadcasts, integer_array, static_int
from attention_jax.mask_tree import as_mask
from attention_jax.typing import MaskLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens so far, in arrays of a fixed size; appending makes a new cache.

    A ring keeps the last `capacity` tokens only, which is all that a sliding window sees.

    Args:
      key: `[*B, capacity, K, H]`.
      value: `[*B, capacity, K, Hv]`.
      length: integers `[*B]`, how many tokens each example has been given; below 0 while that many more of them are
        padding, which nothing sees.
      ring: whether the latest tokens take the place of the oldest; otherwise there has to be room.

    Raises:
      ValueError: of the methods: no capacity, no room, tokens of other shapes or dtypes.

    >>> from attention_jax import attention, causal
    >>> cache = KVCache.empty(10, 2, 4, batch=(3,))
    >>> for T in (5, 1, 1):  # a prefill, and two tokens
    ...     query, key, value = jnp.ones((3, T, 4, 4)), jnp.ones((3, T, 2, 4)), jnp.ones((3, T, 2, 4))
    ...     cache = cache.append(key, value)
    ...     output = attention(query, cache.key, cache.value, mask=causal(), positions=cache.positions(T))
    >>> output.shape, cache.length.tolist()
    ((3, 1, 4, 4), [7, 7, 7])
    """

    key: jax.Array
    value: jax.Array
    length: jax.Array
    ring: bool = field(default=False, metadata={"static": True})

    @classmethod
    def empty(
        cls,
        capacity: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        batch: tuple[int, ...] = (),
        padding: ArrayLike = 0,
        dtype: DTypeLike | None = None,
        ring: bool = False,
    ) -> KVCache:
        """A cache with room for `capacity` tokens of K heads of H (and Hv) channels, in JAX's default floating
        dtype if none is given.

        Args:
          batch: the batch dimensions `*B`.
          padding: integers `[*B]`, how many of the first tokens of each example are padding: they take no room.

        Raises:
          TypeError: a batch that is not a tuple, other sizes that are not integers or are traced, padding that is not
            integers, a dtype that is not floating point.
          ValueError: a capacity or a number of heads below 1, padding below 0 or for another batch.
        """
        if not isinstance(batch, tuple | list):
            raise TypeError(f"batch must be a tuple of the batch dimensions, () or ({batch!r},), got {batch!r}")
        batch = tuple(static_int("batch", size, minimum=0) for size in batch)
        capacity = static_int("capacity", capacity, minimum=1)
        shape = *batch, capacity, static_int("num_kv_heads", num_kv_heads, minimum=1)
        dims = [static_int("head_dim", head_dim, minimum=0)]
        dims += dims if value_dim is None else [static_int("value_dim", value_dim, minimum=0)]
        key, value = (jnp.zeros((*shape, dim), dtype) for dim in dims)
        if not jnp.issubdtype(key.dtype, jnp.floating):
            raise TypeError(f"dtype must be floating point, got {key.dtype}")
        left = integer_array("padding", padding)
        if not isinstance(padding, jax.core.Tracer) and (np.asarray(padding) < 0).any():
            raise ValueError(f"padding must be at least 0, got {np.min(padding)}")
        if not broadcasts(np.shape(padding), batch):
            raise ValueError(f"padding must be [*B] = {list(batch)}, as batch= says, got {list(np.shape(padding))}")
        return cls(key, value, jnp.broadcast_to(-left.astype(jnp.int32), batch), ring)

    @property
    def capacity(self) -> int:
        """How many tokens there is room for."""
        return self.key.shape[-3]

    def append(self, key: ArrayLike, value: ArrayLike) -> KVCache:
        """The cache with T more tokens.

        Args:
          key: `[*B, T, K, H]`, in the cache's dtype.
          value: `[*B, T, K, Hv]`, likewise.

        Raises:
          ValueError: shapes or dtypes other than the cache's, or tokens beyond the capacity, or more at once than it,
            padding included. Where the length is traced and cannot be compared, the new keys and values of an example
            that has too many are NaN.
        """
        key, value = as_array("key", key), as_array("value", value)
        T = key.shape[-3] if key.ndim == self.key.ndim else 0
        for name, new, old in (("key", key, self.key), ("value", value, self.value)):
            wanted = *old.shape[:-3], T, *old.shape[-2:]
            if new.shape != wanted or new.dtype != old.dtype:
                raise ValueError(
                    f"{name} has {new.dtype}{list(new.shape)}, but the cache {old.dtype}{list(old.shape)}: expected "
                    f"[*B, T, K, .] = {[*old.shape[:-3], 'T', *old.shape[-2:]]} in the same dtype"
                )
        length = self.length + T
        known = not isinstance(length, jax.core.Tracer)
        if self.capacity < T or (known and not self.ring and (length > self.capacity).any()):
            held = f" on the {max(int(self.length.max()), 0)} it holds" if known else ""
            raise ValueError(f"{T} more tokens{held} do not fit in a capacity of {self.capacity}: make a larger cache")
        write = self._turn if self.ring else self._extend
        return KVCache(write(self.key, key), write(self.value, value), length, self.ring)

    def positions(self, T: int) -> tuple[jax.Array, jax.Array]:
        """Where the last T tokens stand, `[*B, T]`, and the keys, `[*B, capacity]`; below 0 where there is none."""
        T = static_int("positions(T)", T, minimum=0)
        length, slots = self.length[..., None], counted(0 * self.length, self.capacity)
        if self.ring:
            keys = length - 1 - (length - 1 - slots) % self.capacity
        else:
            keys = jnp.where(slots < length, slots + jnp.maximum(length - self.capacity, 0), -1)
        return counted(self.length - T, T), keys

    def check_mask(self, mask: MaskLike | None, T: int) -> None:
        """Refuse a mask that lets the first of T new tokens see what the last of them overwrite.

        Raises:
          ValueError: this is a ring, and too small for it.
        """
        if not self.ring:
            return
        before = look_back(mask)
        if before is None or before + T > self.capacity:
            asked = "which sees all that was read" if before is None else f"which asks for {before + T}"
            raise ValueError(
                f"a ring of {self.capacity} tokens holds too few for {T} at once under this mask, {asked}: append "
                "fewer, make a larger ring, or give a mask whose rule is a sliding_window"
            )

    def _extend(self, old: jax.Array, new: jax.Array) -> jax.Array:
        """`old` with `new` after each example's last token."""
        T = new.shape[-3]
        if 0 in new.shape:
            return old
        new = jnp.where((self.length + T > self.capacity)[..., None, None, None], jnp.nan, new).astype(old.dtype)
        if T > 1:
            first = jnp.minimum(self.length, self.capacity - T)
            return _choose(old, new, counted(-first, self.capacity))
        flat, rows, lengths = (
            old.reshape(-1, *old.shape[-3:]),
            new.reshape(-1, *new.shape[-3:]),
            self.length.reshape(-1),
        )

        def write(b: jax.Array, flat: jax.Array) -> jax.Array:  # one after the other, which is done in place
            row = lax.dynamic_slice_in_dim(rows, b, 1)
            return lax.dynamic_update_slice(flat, row, (b, jnp.maximum(lengths[b], 0), 0, 0))

        return lax.fori_loop(0, len(flat), write, flat).reshape(old.shape)

    def _turn(self, old: jax.Array, new: jax.Array) -> jax.Array:
        """`old` with `new` in the places of its oldest."""
        T = new.shape[-3]
        age = -counted(1 - T - self.length, self.capacity) % self.capacity  # 0 is the last token
        return _choose(old, new, T - 1 - age)


def counted(first: jax.Array, T: int) -> jax.Array:
    """`[*B, T]`, the T integers from `first` `[*B]` on."""
    return first[..., None] + jnp.arange(T).reshape((1,) * first.ndim + (T,))


def look_back(mask: MaskLike | None) -> int | None:
    """How many positions before its own a query sees at most; None if there is no end to it."""
    far = 2**30
    first, _ = (0, 0) if mask is None else as_mask(mask).columns_of((far, far), far + 1)
    return far - first if isinstance(first, int) and first > 0 else None


def _choose(old: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
    """`[*B, capacity, K, .]`, of `new` at `index` where it has so many, else of `old`."""
    there = (index >= 0) & (index < new.shape[-3])
    taken = jnp.take_along_axis(new, jnp.where(there, index, 0)[..., None, None], axis=-3)
    return jnp.where(there[..., None, None], taken, old)
