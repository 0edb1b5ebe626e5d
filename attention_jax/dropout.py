"""Dropout of attention weights, decided by each weight's own position.

A pattern drawn with `jax.random.bernoulli` over `[T, S]` can only be had whole. Here each position is hashed with the
random key, so that any block of the pattern can be made on its own, and is the same however the work is cut up.
"""

import jax
import jax.numpy as jnp


def keep_positions(rng: jax.Array, rate: float, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Bool `[len(rows), len(columns)]`: True, with probability 1 - rate, where the weight at (t, s) is kept.

    Args:
      rng: a random key; one for each batch element and head.
      rate: the probability of dropping, in [0, 1).
      rows, columns: integer vectors of query and key positions.
    """
    seeds = jax.random.bits(rng, (2,), jnp.uint32)
    row_hash = _mix(rows.astype(jnp.uint32) ^ seeds[0])
    column_hash = columns.astype(jnp.uint32) * jnp.uint32(0x9E3779B9) ^ seeds[1]
    return _mix(row_hash[:, None] ^ column_hash[None, :]) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _mix(x: jax.Array) -> jax.Array:
    """The 32-bit finaliser of MurmurHash3 (Appleby, public domain): every input bit changes half of the output's."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
