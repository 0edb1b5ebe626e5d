"""Splash attention, the kernel for TPUs that comes with JAX: any rule on positions, by blocks, of which it skips the
empty ones; and segments."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.backends.kernel import Kernel, Options
from attention_jax.backends.translation import (
    CAUSAL,
    CAUSAL_WINDOW,
    LENGTHS,
    RULES,
    SEGMENTS,
    SOFT_CAP,
    MaskParts,
    band,
    rule_block,
)
from attention_jax.mask_tree import Mask

LANES = 128
BLOCK = 512


def attend(query: jax.Array, key: jax.Array, value: jax.Array, options: Options) -> jax.Array:
    """See `Kernel.attend`."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    (_, T, N, _), (_, S, _, Hv) = query.shape, value.shape
    (t, rows), (s, columns) = _blocks(T), _blocks(S)
    of_queries = "block_q", "block_q_dkv", "block_q_dq"
    of_keys = "block_kv", "block_kv_compute", "block_kv_dkv", "block_kv_dkv_compute", "block_kv_dq"
    sizes = splash_attention.BlockSizes(**dict.fromkeys(of_queries, t), **dict.fromkeys(of_keys, s))  # type: ignore[arg-type]
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([_mask(options.mask, (T, S), (rows, columns))] * N),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=options.soft_cap,
        interpret=options.platform != "tpu",
    )
    query = (query.astype(jnp.float32) * options.scale).astype(query.dtype)  # it scales nothing; in bfloat16 this
    # rounds once more, unless the scale is a power of two
    query, key, value = (
        jnp.pad(jnp.moveaxis(x, 1, 2), ((0, 0), (0, 0), (0, length - x.shape[1]), (0, -x.shape[3] % LANES)))
        for x, length in ((query, rows), (key, columns), (value, columns))
    )
    ids = _segment_ids(options.mask, query.shape[0], (T, S), (rows, columns))
    ids = None if ids is None else splash_attention.SegmentIds(*ids)
    output = jax.vmap(kernel)(query, key, value, ids)
    return jnp.moveaxis(output[:, :, :T, :Hv], 1, 2)


def _blocks(length: int) -> tuple[int, int]:
    """The size of a block, and the length that is a whole number of them."""
    count = -(-length // BLOCK)
    size = -(-length // (count * LANES)) * LANES
    return size, count * size


def _mask(mask: MaskParts, shape: tuple[int, int], padded: tuple[int, int]) -> Any:
    """The rule, where it is a band or nothing as one of the masks that the kernel computes, else by blocks."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    bounds, by_ids = band(mask.rule), mask.lengths is not None or mask.segments is not None
    low, high = bounds or (None, None)
    hidden = by_ids or shape[1] == padded[1] or (high is not None and shape[0] - 1 + high < shape[1])
    if bounds is None or not hidden:
        return _rule_class()(mask.rule, shape[1], padded)
    if bounds == (None, None):
        return splash_attention.FullMask(padded)
    if low is None:
        return splash_attention.CausalMask(padded, high)  # type: ignore[arg-type]
    return splash_attention.LocalMask(padded, (-low, high), 0)


@cache
def _rule_class() -> type:
    from jax.experimental.pallas.ops.tpu import splash_attention

    class Rule(splash_attention.Mask):
        """One of our masks on so many keys, evaluated block by block while tracing."""

        def __init__(self, rule: Mask | None, keys: int, shape: tuple[int, int]) -> None:
            self.rule, self.keys, self._shape = rule, keys, shape

        @property
        def shape(self) -> tuple[int, int]:
            return self._shape

        def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
            rows, columns = (np.arange(n)[part] for n, part in zip(self._shape, index, strict=True))
            real = np.broadcast_to(columns < self.keys, (len(rows), len(columns)))
            return real if self.rule is None else real & rule_block(self.rule, rows, columns)

    return Rule


def _segment_ids(
    mask: MaskParts, B: int, shape: tuple[int, int], padded: tuple[int, int]
) -> tuple[jax.Array, jax.Array] | None:
    """Ids of queries and keys that say what segments and lengths do: a query's is the rank of its segment, and a key's
    too, or -1 where no query sees it."""
    if mask.lengths is None and mask.segments is None:
        return None
    T, S = shape
    queries, keys = mask.segments or (jnp.zeros((B, T), jnp.int32), jnp.zeros((B, S), jnp.int32))
    keys = keys.astype(jnp.promote_types(queries.dtype, keys.dtype))
    known = jnp.sort(queries.astype(keys.dtype), axis=1)
    rank = jax.vmap(jnp.searchsorted)
    ranks, found = rank(known, keys), rank(known, queries.astype(keys.dtype))
    met = jnp.take_along_axis(known, jnp.minimum(ranks, T - 1), axis=1) == keys
    lengths = jnp.full((B,), S) if mask.lengths is None else mask.lengths
    ranks = jnp.where(met & (jnp.arange(S)[None, :] < lengths[:, None]), ranks, -1)
    found = jnp.pad(found, ((0, 0), (0, padded[0] - T)))
    ranks = jnp.pad(ranks, ((0, 0), (0, padded[1] - S)), constant_values=-1)
    return found.astype(jnp.int32), ranks.astype(jnp.int32)


SPLASH = Kernel(
    name="splash",
    attend=attend,
    package="jax",
    platforms=("tpu",),
    elsewhere=True,
    partitioned=False,
    dtypes=("float32", "bfloat16"),
    masks=(CAUSAL, CAUSAL_WINDOW, RULES, LENGTHS, SEGMENTS),
    scores=(SOFT_CAP,),
    x64=False,
)
