"""This library's own implementations: the equation, the blocks, and the module."""

import operator
from functools import partial, reduce

import jax.numpy as jnp
import numpy as np

import attention_jax as aj
from attention_jax.checks import check_many_heads
from attention_jax.conformance.implementation import Implementation
from attention_jax.mask_tree import as_mask


def implementations() -> list[Implementation]:
    ways = {name: partial(by_function, name) for name in ("reference", "blockwise")} | {"module": by_module}
    return [
        Implementation(name, aj.__version__, attend, decode=partial(through_cache, attend))
        for name, attend in ways.items()
    ]


def by_function(
    implementation, query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, dropout_rate=0.0,
    dropout_rng=None, precision=None, with_lse=False, with_weights=False,
):  # fmt: skip
    mask, score = _mask(mask, causal, key_lengths), None if bias is None else aj.bias(bias)
    dropout = {"dropout_rate": dropout_rate, "dropout_rng": dropout_rng, "implementation": implementation}
    options = {"mask": mask, "score": score, "precision": precision}
    output, lse = aj.attention_and_lse(query, key, value, **dropout, **options)
    if with_weights:
        return output, aj.attention_weights(query, key, **options)
    return (output, lse) if with_lse else output


def by_module(query, key, value, *, mask=None, causal=False, key_lengths=None, with_lse=False, with_weights=False,
              bias=None, dropout_rate=0.0, dropout_rng=None):  # fmt: skip
    """Through `MultiHeadAttention`, with projections that only pick.

    It makes key and value of one context, so both stand side by side in it, and heads are twice as wide as they would
    have to be, the rest of them 0.
    """
    from flax import nnx

    from attention_jax.modules import MultiHeadAttention

    query, key, value = check_many_heads(query, key, value)
    (N, H), (K, Hv), dtype = query.shape[-2:], value.shape[-2:], query.dtype
    half = max(H, Hv)
    options = {"score": None if bias is None else aj.bias(bias), "scale": H**-0.5}
    options |= {"dropout_rate": dropout_rate, "dropout_rng": dropout_rng}
    seen = []

    def attend(*heads, mask):
        output, lse = aj.attention_and_lse(*heads, mask=mask, **options)
        seen.append(lse)
        return output

    module = MultiHeadAttention(
        2 * N * half, N, num_kv_heads=K, use_bias=False, attention_fn=attend, rngs=nnx.Rngs(0)
    )  # fmt: skip
    for name, first in (("key", 0), ("value", K * half)):
        kernel = np.zeros((2 * N * half, K, 2 * half), dtype)
        for k, channel in np.ndindex(K, half):
            kernel[first + k * half + channel, k, channel] = 1
        getattr(module, name).kernel = nnx.Param(jnp.asarray(kernel.reshape(2 * N * half, -1)))
    for name in ("query", "out"):
        getattr(module, name).kernel = nnx.Param(jnp.eye(2 * N * half, dtype=dtype))

    x = aj.merge_heads(_widen(query, 2 * half))
    context = [aj.merge_heads(_widen(part, half)) for part in (key, value)]
    context = _widen(jnp.concatenate(context, axis=-1), x.shape[-1])
    result = module(x, context, mask=_mask(mask, causal, key_lengths), return_weights=with_weights)
    output = (result[0] if with_weights else result).reshape(*query.shape[:-1], 2 * half)[..., :Hv]
    if with_weights:
        return output, result[1]
    return (output, seen[0]) if with_lse else output


def through_cache(attend, query, key, value, *, chunks, capacity):
    sizes = {"value_dim": value.shape[-1], "batch": key.shape[:-3], "dtype": key.dtype}
    cache = aj.KVCache.empty(capacity, *key.shape[-2:], **sizes)
    outputs, first = [], 0
    for T in chunks:
        now = slice(first, first + T)
        cache = cache.append(key[..., now, :, :], value[..., now, :, :])
        mask = aj.causal().place(*cache.positions(T))
        outputs.append(attend(query[..., now, :, :], cache.key, cache.value, mask=mask))
        first += T
    return jnp.concatenate(outputs, axis=-3)


def _mask(mask, causal, key_lengths):
    parts = [] if mask is None else [mask]
    parts += [aj.causal()] * causal
    parts += [] if key_lengths is None else [aj.key_lengths(key_lengths)]
    return reduce(operator.and_, map(as_mask, parts)) if parts else None


def _widen(array, size):
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, size - array.shape[-1])])
