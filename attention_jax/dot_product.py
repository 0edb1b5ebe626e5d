"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762), as the paper writes it.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(H)) V

One head of one example first; many heads are that function under `jax.vmap`, and so is a batch. What the paper leaves
open is decided so that nothing hidden by a mask can be felt: a masked key or value changes no bit of the output or of
any gradient, whatever it holds, and a query that sees no key gets 0.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp

from attention_jax.checks import (
    check_bias,
    check_dropout,
    check_many_heads,
    check_mask,
    check_one_head,
    check_scale,
)
from attention_jax.dropout import keep_positions
from attention_jax.mask_tree import static_int
from attention_jax.masks import causal


def attention_weights(query, key, *, mask=None, bias=None, scale=None, precision=None) -> jax.Array:
    """How much each query attends to each key: softmax(scale * query . key + bias) over the keys it may see.

    Args:
      query: `[T, H]`, floating point.
      key: `[S, H]`, same dtype.
      mask: `Mask` or bool `[T, S]`, True = may attend. Default: every query sees every key.
      bias: floating `[T, S]`, added to the scaled logits; -inf hides a key.
      scale: factor on query . key. Default: 1/sqrt(H).
      precision: of the matrix product, as in `jax.numpy.matmul`.

    Returns:
      `[T, S]` in the dtype of `query`. Rows sum to 1; a row that sees no key is 0; a row that sees a non-finite key, or
      whose logits overflow, is NaN. Logits and softmax are float32 (float64 for float64 inputs).

    Raises:
      TypeError: integer or bool inputs, a float mask, a bool bias.
      ValueError: shapes or dtypes that do not fit each other.

    >>> query, key = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(attention_weights(query, key, scale=1.0))
    [[0.7310586  0.26894143]]
    """
    query, key = check_one_head(query=query, key=key)
    shape = len(query), len(key)
    visible, bias = check_mask(mask, shape), check_bias(bias, shape)
    scale = check_scale(scale, query.shape[-1])
    weights, poisoned = _weights(query, key, visible, bias, scale=scale, precision=precision)
    return jnp.where(poisoned, jnp.nan, weights).astype(query.dtype)


def scaled_dot_product_attention(
    query, key, value, *, mask=None, bias=None, scale=None, dropout_rate=0.0, dropout_rng=None, precision=None
) -> jax.Array:
    """Attention of one head on one example: each query's average of the values, weighted by `attention_weights`.

    Args:
      query: `[T, H]`, floating point.
      key: `[S, H]`, same dtype.
      value: `[S, Hv]`, same dtype.
      mask: `Mask` or bool `[T, S]`, True = may attend. Default: every query sees every key.
      bias: floating `[T, S]`, added to the scaled logits; -inf hides a key.
      scale: factor on query . key. Default: 1/sqrt(H).
      dropout_rate: probability, in [0, 1), that a weight is dropped; the others grow by 1/(1 - rate).
      dropout_rng: random key, wanted when `dropout_rate` is not 0.
      precision: of the matrix products, as in `jax.numpy.matmul`.

    Returns:
      `[T, Hv]` in the dtype of `query`; 0 for a query that sees no key, NaN for one that sees a
      non-finite key or value.

    Raises:
      TypeError: integer or bool inputs, a float mask, a bool bias, a traced dropout rate.
      ValueError: shapes or dtypes that do not fit each other, a rate outside [0, 1) or without a key.

    >>> from attention_jax import causal
    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> with jnp.printoptions(precision=3):
    ...     print(scaled_dot_product_attention(x, x, x, mask=causal(), scale=1.0))
    [[1.    0.   ]
     [0.269 0.731]
     [0.788 0.788]]
    """
    query, key, value = check_one_head(query=query, key=key, value=value)
    shape = len(query), len(key)
    rate = check_dropout(dropout_rate, dropout_rng)
    return _one_head(
        query, key, value, check_mask(mask, shape), check_bias(bias, shape), dropout_rng,
        scale=check_scale(scale, query.shape[-1]), rate=rate, precision=precision,
    )  # fmt: skip


def causal_attention(query, key, value, *, offset=None, **options) -> jax.Array:
    """`scaled_dot_product_attention` in which no query sees a later key: `mask=causal(offset=offset)`.

    Args:
      query, key, value: `[T, H]`, `[S, H]`, `[S, Hv]`.
      offset: how many positions the first query stands after the first key; wanted when T != S.
      **options: `bias`, `scale`, `dropout_rate`, `dropout_rng`, `precision`.

    Returns:
      `[T, Hv]`.

    Raises:
      ValueError: T != S without an offset, and as `scaled_dot_product_attention`.

    >>> x = jnp.eye(3)
    >>> print(causal_attention(x, x, x)[0])
    [1. 0. 0.]
    """
    return scaled_dot_product_attention(query, key, value, mask=causal(offset=offset), **options)


def multi_head_attention(
    query, key, value, *, mask=None, bias=None, scale=None, dropout_rate=0.0, dropout_rng=None, precision=None
) -> jax.Array:
    """`scaled_dot_product_attention` for every head, and for every batch element if there are any.

    With fewer key/value heads than query heads (K < N), each serves N/K neighbouring query heads: grouped-query
    attention (arXiv:2305.13245), or multi-query attention (arXiv:1911.02150) for K = 1.

    Args:
      query: `[*B, T, N, H]`, floating point; `*B` is any number of batch dimensions.
      key: `[*B, S, K, H]`, same dtype, N a multiple of K.
      value: `[*B, S, K, Hv]`, same dtype.
      mask: `Mask`, or bool `[T, S]` or `[*B, N or 1, T, S]`, True = may attend.
      bias: floating `[T, S]` or `[*B, N or 1, T, S]`, added to the scaled logits.
      scale: factor on query . key. Default: 1/sqrt(H).
      dropout_rate: probability, in [0, 1), that a weight is dropped, independently in each head and batch element.
      dropout_rng: random key, wanted when `dropout_rate` is not 0.
      precision: of the matrix products, as in `jax.numpy.matmul`.

    Returns:
      `[*B, T, N, Hv]` in the dtype of `query`.

    Raises:
      TypeError, ValueError: as `scaled_dot_product_attention`; also if N is not a multiple of K, and for a mask
        `[B, T, S]`, in which B could be taken for N.

    >>> query, key, value = jnp.ones((5, 7, 4, 8)), jnp.ones((5, 9, 2, 8)), jnp.ones((5, 9, 2, 3))
    >>> multi_head_attention(query, key, value).shape
    (5, 7, 4, 3)
    """
    query, key, value = check_many_heads(query, key, value)
    *batch, T, N, H = query.shape
    S, K = key.shape[-3:-1]
    rate = check_dropout(dropout_rate, dropout_rng)
    one_head = partial(_one_head, scale=check_scale(scale, H), rate=rate, precision=precision)

    query = query.reshape(*batch, T, K, N // K, H)
    visible, visible_axes = _by_group(check_mask(mask, (*batch, N, T, S)), len(batch), K, N)
    bias, bias_axes = _by_group(check_bias(bias, (*batch, N, T, S)), len(batch), K, N)
    rngs = jax.random.split(dropout_rng, (*batch, K, N // K)) if rate else None

    def over(attend, query_axis, key_axis):
        axes = query_axis, key_axis, key_axis, visible_axes.pop(), bias_axes.pop(), 0
        return jax.vmap(attend, axes, query_axis)

    attend = over(over(one_head, 1, None), 1, 1)  # a group of query heads shares its key and value
    for _ in batch:
        attend = over(attend, 0, 0)
    output = attend(query, key, value, visible, bias, rngs)
    return output.reshape(*batch, T, N, value.shape[-1])


def split_heads(x, num_heads: int) -> jax.Array:
    """`[*B, T, N * H]` -> `[*B, T, N, H]`.

    Raises:
      ValueError: the last dimension is not a multiple of `num_heads`.

    >>> split_heads(jnp.zeros((2, 5, 12)), 3).shape
    (2, 5, 3, 4)
    """
    if static_int("num_heads", num_heads, minimum=1) and x.shape[-1] % num_heads:
        raise ValueError(f"cannot split the last dimension of x {x.shape} into num_heads={num_heads} equal heads")
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)


def merge_heads(x) -> jax.Array:
    """`[*B, T, N, H]` -> `[*B, T, N * H]`, the inverse of `split_heads`.

    >>> merge_heads(jnp.zeros((2, 5, 3, 4))).shape
    (2, 5, 12)
    """
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def _by_group(scores, batch_dims, K, N):
    """`scores`, `[*B, N, T, S]` with any axis possibly 1, without those of *B and N; and what `vmap` over *B, K and G
    maps of it."""
    if scores is None:
        return None, [None] * (batch_dims + 2)
    *batch, heads, T, S = scores.shape
    sizes = [*batch, *((K, N // K) if heads == N else (1, 1))]
    return scores.reshape(*(size for size in sizes if size != 1), T, S), [None if size == 1 else 0 for size in sizes]


def _one_head(query, key, value, visible, bias, rng, *, scale, rate, precision):
    (T, _), (S, Hv) = query.shape, value.shape
    weights, poisoned = _weights(query, key, visible, bias, scale=scale, precision=precision)
    if rate:
        keep = keep_positions(rng, rate, jnp.arange(T), jnp.arange(S))
        weights = jnp.where(keep, weights / (1 - rate), 0)
    value, finite = _finite_rows(value.astype(weights.dtype))
    output = jnp.matmul(weights, value, precision=precision)
    poisoned |= jnp.any(_visible(visible, bias) & ~finite, axis=-1, keepdims=True)
    output = jnp.where(jnp.broadcast_to(poisoned, (T, Hv)), jnp.nan, output)
    chex.assert_shape(output, (T, Hv))
    return output.astype(query.dtype)


def _weights(query, key, visible, bias, *, scale, precision):
    """Weights `[T, S]`, all finite, and `[T, 1]`: which rows saw something that is not, and have no right answer."""
    dtype, visible = jnp.promote_types(query.dtype, jnp.float32), _visible(visible, bias)
    query, query_finite = _finite_rows(query.astype(dtype))
    key, key_finite = _finite_rows(key.astype(dtype))
    products = jnp.einsum("th,sh->ts", query, key, precision=precision)
    logits = scale * jnp.where(visible, products, 0)
    if bias is not None:
        logits = logits + jnp.where(visible, bias.astype(dtype), 0)
    finite = query_finite.T & key_finite & jnp.isfinite(logits)
    poisoned = jnp.any(visible & ~finite, axis=-1, keepdims=True)
    weights = _softmax(jnp.where(visible & finite, logits, -jnp.inf))
    chex.assert_shape(weights, (query.shape[0], key.shape[0]))
    return weights, poisoned


def _visible(visible, bias):
    """Bool, broadcasting to `[T, S]`: a bias of -inf hides as a mask does."""
    visible = jnp.ones((1, 1), bool) if visible is None else visible
    return visible if bias is None else visible & (bias > -jnp.inf)


def _softmax(logits):
    """Softmax over the last axis, in which -inf gives 0, and so does a row of nothing else; both pass no gradient."""
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf))
    exponential = jnp.exp(logits - jnp.where(peak == -jnp.inf, 0, peak))
    total = jnp.sum(exponential, axis=-1, keepdims=True)
    return jnp.where(logits == -jnp.inf, 0, exponential / jnp.where(total == 0, 1, total))


def _finite_rows(x):
    """`x` with each row that holds a NaN or an infinity set to 0, and `[1, rows]`: which rows were finite.

    A product takes in every row, and 0 * NaN is NaN: what a mask hides has to be gone before the product, or it comes
    back through the weights' zeros, or through those of the gradient.
    """
    finite = jnp.all(jnp.isfinite(x), axis=-1, keepdims=True)
    return jnp.where(finite, x, 0), finite.T
