"""Dropout of attention weights, decided by each weight's own position.

A pattern drawn with `jax.random.bernoulli` over `[T, S]` can only be had whole. Here each position is hashed with the
random key, so that any block of the pattern can be made on its own, and is the same however the work is cut up.
"""

import jax
import jax.numpy as jnp


def seeds_of_heads(rng: jax.Array, *shape: int) -> jax.Array:
    """uint32 `[*shape, 2]`, a seed for each batch element and head. They are drawn at once, and by no `vmap` of ours:
    there some kinds of keys draw by how many are mapped over."""
    return jax.random.bits(rng, (*shape, 2), jnp.uint32)


def keep_positions(seed: jax.Array, rate: float, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Bool `[len(rows), len(columns)]`: True, with probability 1 - rate, where the weight at (t, s) is kept.

    Args:
      seed: uint32 `[2]`, of `seeds_of_heads`.
      rate: the probability of dropping, in [0, 1).
      rows, columns: integer vectors of query and key positions.
    """
    row_hash = _mix(rows.astype(jnp.uint32) ^ seed[0])
    column_hash = columns.astype(jnp.uint32) * jnp.uint32(0x9E3779B9) ^ seed[1]
    return _mix(row_hash[:, None] ^ column_hash[None, :]) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _mix(x: jax.Array) -> jax.Array:
    """The 32-bit finaliser of MurmurHash3 (Appleby, public domain): every input bit changes half of the output's."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
