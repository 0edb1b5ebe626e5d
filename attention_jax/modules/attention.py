"""Attention as Flax NNX modules: one head, many heads, and the textbook's way from one to the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from attention_jax.arguments import static_int
from attention_jax.cache import KVCache, counted
from attention_jax.checks import check_sequence
from attention_jax.dispatch import attention
from attention_jax.dot_product import merge_heads
from attention_jax.modules.layers import Dropout, Linear, ModuleList, dropout_key
from attention_jax.projections import project_fused, project_separate
from attention_jax.typing import MaskLike


class SingleHeadAttention(nnx.Module):
    """Projections to one query, key and value a position, and attention over them.

    Args:
      embed_dim: D of the input.
      head_dim: H, also the output's last dimension.
      use_bias: whether the projections have biases.
      dropout_rate: of the attention weights.
      rngs: initialises the parameters.

    Raises:
      TypeError: sizes that are not integers.
      ValueError: a size below 1, `dropout_rate` not in [0, 1); of a call: an input whose last dimension is not D.

    >>> x = jnp.ones((2, 5, 8))
    >>> SingleHeadAttention(8, 4, rngs=nnx.Rngs(0))(x).shape
    (2, 5, 4)
    """

    def __init__(
        self, embed_dim: int, head_dim: int, *, use_bias: bool = True, dropout_rate: float = 0.0, rngs: nnx.Rngs
    ) -> None:
        embed_dim = static_int("embed_dim", embed_dim, minimum=1)
        head_dim = static_int("head_dim", head_dim, minimum=1)
        linear = partial(Linear, embed_dim, head_dim, axes=("embed", "head_dim"), use_bias=use_bias, rngs=rngs)
        self.query, self.key, self.value = linear(), linear(), linear()
        self.dropout_rate = Dropout(dropout_rate).rate

    @overload
    def __call__(
        self, x: ArrayLike, context: ArrayLike | None = None, *, mask: MaskLike | None = None,
        rngs: nnx.Rngs | None = None, return_weights: Literal[False] = False,
    ) -> jax.Array: ...  # fmt: skip

    @overload
    def __call__(
        self, x: ArrayLike, context: ArrayLike | None = None, *, mask: MaskLike | None = None,
        rngs: nnx.Rngs | None = None, return_weights: Literal[True],
    ) -> tuple[jax.Array, jax.Array]: ...  # fmt: skip

    def __call__(
        self,
        x: ArrayLike,
        context: ArrayLike | None = None,
        *,
        mask: MaskLike | None = None,
        rngs: nnx.Rngs | None = None,
        return_weights: bool = False,
    ) -> Any:
        """Each position of `x` attends to `context`, or to `x` itself.

        Args:
          x: `[*B, T, D]`.
          context: `[*B, S, D]`.
          mask: `Mask`, or bool `[T, S]` or `[*B, 1, T, S]`.
          rngs: a `dropout` stream; without it there is no dropout.
          return_weights: whether to return the weights too, before dropout.

        Returns:
          `[*B, T, H]`; with `return_weights`, also `[*B, T, S]`.
        """
        x = check_sequence("x", x, self.query.in_features)
        context = x if context is None else check_sequence("context", context, self.query.in_features)
        query, key, value = (
            layer(source)[..., None, :]
            for layer, source in ((self.query, x), (self.key, context), (self.value, context))
        )
        dropout = _dropout_arguments(self.dropout_rate, rngs)
        output = attention(query, key, value, mask=mask, **dropout)[..., 0, :]
        if return_weights:
            return output, recover_weights(attention, query, key, mask)[..., 0, :, :]
        return output


class ConcatenatedHeads(nnx.Module):
    """The textbook's multi-head attention: a stack of single heads side by side, concatenated and projected.

    Slow, since each head makes its own small products, and the same function as `MultiHeadAttention`: see
    `to_multi_head`.

    Args:
      embed_dim: D of input and output.
      num_heads: N; each head has D / N channels.
      rngs: initialises the parameters.

    Raises:
      ValueError: D is not a multiple of N; of a call: an input whose last dimension is not D.

    >>> x = jax.random.normal(jax.random.key(0), (5, 8))
    >>> heads = ConcatenatedHeads(8, 2, rngs=nnx.Rngs(0))
    >>> print(jnp.allclose(heads(x), heads.to_multi_head()(x), atol=1e-6))
    True
    """

    def __init__(self, embed_dim: int, num_heads: int, *, rngs: nnx.Rngs) -> None:
        head_dim = _head_dim(embed_dim, num_heads)
        self.heads = ModuleList([SingleHeadAttention(embed_dim, head_dim, rngs=rngs) for _ in range(num_heads)])
        self.out = Linear(embed_dim, embed_dim, axes=("heads", "embed"), rngs=rngs)

    def __call__(self, x: ArrayLike, context: ArrayLike | None = None, *, mask: MaskLike | None = None) -> jax.Array:
        """`[*B, T, D]` (and `[*B, S, D]`) -> `[*B, T, D]`."""
        return self.out(jnp.concatenate([head(x, context, mask=mask) for head in self.heads], axis=-1))

    def to_multi_head(self) -> MultiHeadAttention:
        """A `MultiHeadAttention` of the same function: the heads' kernels side by side."""
        D = self.out.in_features
        attention = MultiHeadAttention(D, len(self.heads), rngs=nnx.Rngs(0))
        for name in ("query", "key", "value"):
            layers, together = [getattr(head, name) for head in self.heads], getattr(attention, name)
            together.kernel[...] = jnp.concatenate([layer.kernel[...] for layer in layers], axis=-1)
            together.bias[...] = jnp.concatenate([layer.bias[...] for layer in layers], axis=-1)
        nnx.update(attention.out, nnx.state(self.out))
        return attention


class MultiHeadAttention(nnx.Module):
    """Multi-head attention (arXiv:1706.03762), of a sequence to itself or to another.

    Args:
      embed_dim: D of input and output; each head has D / N channels.
      num_heads: N, query heads.
      num_kv_heads: K, key/value heads (arXiv:2305.13245); N if not given.
      use_bias: whether the projections have biases.
      fused: project query, key and value by one kernel `[D, (N + 2 K) H]`; for self-attention only.
      dropout_rate: of the attention weights, and of the output.
      rotary: turns queries and keys by their positions, called with `[*B, T, N, H]` and positions `[T]` or `[*B, T]`;
        e.g. `partial(rotary_embedding, frequencies=rotary_frequencies(H))`.
      qk_norm: normalise each query and key to unit root mean square, with a learned scale (arXiv:2302.05442).
      attention_fn: called with `query, key, value, mask=`, with `dropout_rate=, dropout_rng=` when they act, and with
        `positions=` when there is a cache; for `return_weights` it has to take values of any head dim.
      rngs: initialises the parameters.

    Raises:
      TypeError: sizes that are not integers.
      ValueError: D is not a multiple of N, N not one of K, or `dropout_rate` not in [0, 1).

    >>> from attention_jax import causal
    >>> attention = MultiHeadAttention(32, 4, num_kv_heads=2, rngs=nnx.Rngs(0))
    >>> output, weights = attention(jnp.ones((3, 5, 32)), mask=causal(), return_weights=True)
    >>> output.shape, weights.shape
    ((3, 5, 32), (3, 4, 5, 5))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        use_bias: bool = True,
        fused: bool = False,
        dropout_rate: float = 0.0,
        rotary: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
        qk_norm: bool = False,
        attention_fn: Callable[..., jax.Array] = attention,
        rngs: nnx.Rngs,
    ) -> None:
        H = _head_dim(embed_dim, num_heads)
        K = num_heads if num_kv_heads is None else static_int("num_kv_heads", num_kv_heads, minimum=1)
        if num_heads % K:
            raise ValueError(f"num_heads={num_heads} must be a multiple of num_kv_heads={num_kv_heads}")
        self.num_heads, self.num_kv_heads = num_heads, K
        linear = partial(Linear, embed_dim, use_bias=use_bias, rngs=rngs)
        if fused:
            self.qkv = linear((num_heads + 2 * K) * H, axes=("embed", "qkv"))
        else:
            self.query = linear(num_heads * H, axes=("embed", "heads"))
            self.key, self.value = (linear(K * H, axes=("embed", "kv_heads")) for _ in range(2))
        self.out = linear(embed_dim, axes=("heads", "embed"))
        self.fused = fused
        self.query_norm = nnx.RMSNorm(H, rngs=rngs) if qk_norm else None
        self.key_norm = nnx.RMSNorm(H, rngs=rngs) if qk_norm else None
        self.dropout = Dropout(dropout_rate)
        self.rotary = rotary
        self.attention_fn = attention_fn

    @overload
    def __call__(
        self, x: ArrayLike, context: ArrayLike | None = None, *, mask: MaskLike | None = None,
        positions: jax.Array | None = None, cache: None = None, rngs: nnx.Rngs | None = None,
        return_weights: Literal[False] = False,
    ) -> jax.Array: ...  # fmt: skip

    @overload
    def __call__(
        self, x: ArrayLike, context: ArrayLike | None = None, *, mask: MaskLike | None = None,
        positions: jax.Array | None = None, cache: None = None, rngs: nnx.Rngs | None = None,
        return_weights: Literal[True],
    ) -> tuple[jax.Array, jax.Array]: ...  # fmt: skip

    @overload
    def __call__(
        self, x: ArrayLike, *, mask: MaskLike | None = None, positions: jax.Array | None = None, cache: KVCache,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[jax.Array, KVCache]: ...  # fmt: skip

    def __call__(
        self,
        x: ArrayLike,
        context: ArrayLike | None = None,
        *,
        mask: MaskLike | None = None,
        positions: jax.Array | None = None,
        cache: KVCache | None = None,
        rngs: nnx.Rngs | None = None,
        return_weights: bool = False,
    ) -> Any:
        """Each position of `x` attends to `context`, or to `x` itself and to what a cache holds.

        Args:
          x: `[*B, T, D]`.
          context: `[*B, S, D]`.
          mask: `Mask`, or bool `[T, S]` or `[*B, N or 1, T, S]`. With a cache, a rule on the positions of all that was
            read: `causal()`, `sliding_window(...)`, `~key_lengths(padding)`, ...
          positions: integer `[T]` or `[*B, T]`, of `x` for `rotary`; if not given, 0 .. T-1 or from the cache's length
            on. Those of a `context` are 0 .. S-1.
          cache: what was read before `x`: see `empty_cache`.
          rngs: a `dropout` stream; without it there is no dropout.
          return_weights: whether to return the weights too, before dropout and in float32 or better.

        Returns:
          `[*B, T, D]`; with `cache`, also the cache with `x`; with `return_weights`, also `[*B, N, T, S]`. The output's
          bits are the same with weights or without.

        Raises:
          TypeError: `rngs` that are none.
          ValueError: shapes that do not fit, a `context` given to a fused projection, a cache that has no room, or one
            together with a `context` or `return_weights`.
        """
        x = check_sequence("x", x, self.out.out_features)
        context = None if context is None else check_sequence("context", context, self.out.out_features)
        query, key, value = self._project(x, context)
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)  # type: ignore[misc]
        T, placed = x.shape[-2], {}
        if self.rotary is not None:
            if positions is None:
                positions = jnp.arange(T) if cache is None else counted(cache.length, T)
            query = self.rotary(query, positions)
            key = self.rotary(key, positions if context is None else jnp.arange(key.shape[-3]))
        elif positions is not None:
            raise ValueError("positions= only acts through a rotary embedding: build the module with rotary=")
        if cache is not None:
            if context is not None or return_weights:
                raise ValueError("cache= goes with self-attention alone: call without context= and return_weights=")
            cache.check_mask(mask, T)
            cache = cache.append(key, value)
            key, value, placed = cache.key, cache.value, {"positions": cache.positions(T)}
        dropout = _dropout_arguments(self.dropout.rate, rngs)
        heads = self.attention_fn(query, key, value, mask=mask, **placed, **dropout)
        output = self.dropout(self.out(merge_heads(heads)), rngs)
        if cache is not None:
            return output, cache
        if return_weights:
            return output, recover_weights(self.attention_fn, query, key, mask)
        return output

    def empty_cache(self, capacity: int, **options: Any) -> KVCache:
        """A `KVCache` for this module's keys and values, in the dtype of its parameters; `**options` as for
        `KVCache.empty`: `batch`, `padding`, `ring`.

        >>> from attention_jax import causal
        >>> attention = MultiHeadAttention(32, 4, num_kv_heads=2, rngs=nnx.Rngs(0))
        >>> cache = attention.empty_cache(10, batch=(3,))
        >>> for T in (5, 1):
        ...     output, cache = attention(jnp.ones((3, T, 32)), mask=causal(), cache=cache)
        >>> output.shape, cache.length.tolist()
        ((3, 1, 32), [6, 6, 6])
        """
        H, dtype = self.out.in_features // self.num_heads, self.out.kernel[...].dtype
        return KVCache.empty(capacity, self.num_kv_heads, H, dtype=dtype, **options)

    def _project(self, x: jax.Array, context: jax.Array | None) -> tuple[jax.Array, ...]:
        heads: dict[str, Any] = {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads}
        if self.fused:
            if context is not None:
                raise ValueError("a fused projection makes query, key and value of one input: build with fused=False")
            return project_fused(x, *_weights_of(self.qkv), **heads)
        kernels, biases = zip(*map(_weights_of, (self.query, self.key, self.value)), strict=True)
        return project_separate(x, x if context is None else context, kernels, biases, **heads)


def recover_weights(
    attention_fn: Callable[..., jax.Array], query: jax.Array, key: jax.Array, mask: MaskLike | None
) -> jax.Array:
    """The weights `[*B, N, T, S]` of any `attention_fn`: attention is linear in the value, and these are what it makes
    of the identity."""
    attention_fn = getattr(attention_fn, "watched", attention_fn)  # this is no call to be noted: see `inspection`
    query, key = (x.astype(np.promote_types(x.dtype, np.float32)) for x in (query, key))
    S, K = key.shape[-3:-1]
    identity = jnp.broadcast_to(jnp.eye(S, dtype=key.dtype)[:, None, :], (S, K, S))
    identity = jnp.broadcast_to(identity.reshape((1,) * (key.ndim - 3) + (S, K, S)), (*key.shape[:-1], S))
    try:
        return jnp.swapaxes(attention_fn(query, key, identity, mask=mask), -3, -2)
    except jax.errors.UnexpectedTracerError:
        raise
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"return_weights=True asks attention_fn to attend to values {identity.shape}, the identity, which it "
            f"refused ({error}): use one that takes any value head dim, such as attention_jax.attention"
        ) from error


def _dropout_arguments(rate: float, rngs: nnx.Rngs | None) -> dict[str, Any]:
    return {"dropout_rate": rate, "dropout_rng": dropout_key(rngs)} if rate and rngs is not None else {}


def _weights_of(linear: nnx.Linear) -> tuple[jax.Array, jax.Array | None]:
    return linear.kernel[...], None if linear.bias is None else linear.bias[...]


def _head_dim(embed_dim: int, num_heads: int) -> int:
    if static_int("embed_dim", embed_dim, minimum=1) % static_int("num_heads", num_heads, minimum=1):
        raise ValueError(f"embed_dim={embed_dim} must be a multiple of num_heads={num_heads}")
    return embed_dim // num_heads
