"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762), as the paper writes it.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(H)) V

One head of one example first; many heads are that function under `jax.vmap`, and so is a batch. What the paper leaves
open is decided so that nothing hidden by a mask can be felt: a masked key or value changes no bit of the output or of
any gradient, whatever it holds, and a query that sees no key gets 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from attention_jax.arguments import static_int
from attention_jax.axes import map_heads
from attention_jax.checks import (
    check_bias,
    check_dropout,
    check_many_heads,
    check_mask,
    check_one_head,
    check_scale,
)
from attention_jax.dropout import keep_positions, seeds_of_heads
from attention_jax.masks import causal
from attention_jax.score_tree import apply_score, check_rules
from attention_jax.typing import MaskLike, ScoreLike

Change = Callable[[jax.Array], jax.Array]


def scaled_dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mask: MaskLike | None = None,
    bias: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    precision: PrecisionLike = None,
) -> jax.Array:
    """Attention of one head on one example (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1): each query's average
    of the values, weighted by its `attention_weights`.

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
    seed = seeds_of_heads(dropout_rng) if rate else None  # type: ignore[arg-type]
    return _one_head(
        query, key, value, check_mask(mask, shape), check_bias(bias, shape), seed,
        scale=check_scale(scale, query.shape[-1]), rate=rate, precision=precision,
    )[0]  # fmt: skip


def causal_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, *, offset: int | None = None, **options: Any
) -> jax.Array:
    """`scaled_dot_product_attention` in which no query sees a later key, `mask=causal(offset=offset)`: the decoder's
    self-attention (arXiv:1706.03762, section 3.2.3).

    Args:
      query, key, value: `[T, H]`, `[S, H]`, `[S, Hv]`.
      offset: how many positions the first query stands after the first key; wanted when T != S.
      **options: bias, scale, dropout_rate, dropout_rng, precision.

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
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mask: MaskLike | None = None,
    bias: ArrayLike | None = None,
    score: ScoreLike | None = None,
    scale: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    precision: PrecisionLike = None,
) -> jax.Array:
    """`scaled_dot_product_attention` for every head, and for every batch element if there are any.

    With fewer key/value heads than query heads (K < N), each serves N/K neighbouring query heads: grouped-query
    attention (arXiv:2305.13245), or multi-query attention (arXiv:1911.02150) for K = 1.

    Args:
      query: `[*B, T, N, H]`, floating point; `*B` is any number of batch dimensions.
      key: `[*B, S, K, H]`, same dtype, N a multiple of K.
      value: `[*B, S, K, Hv]`, same dtype.
      mask: `Mask`, or bool `[T, S]` or `[*B, N or 1, T, S]`, True = may attend.
      bias: floating `[T, S]` or `[*B, N or 1, T, S]`, added to the scaled logits; -inf hides a key.
      score: a change to the logits, after the bias: see `attention_jax.scores`.
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
    return multi_head_attention_and_lse(
        query, key, value, mask=mask, bias=bias, score=score, scale=scale, dropout_rate=dropout_rate,
        dropout_rng=dropout_rng, precision=precision,
    )[0]  # fmt: skip


def multi_head_attention_and_lse(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mask: MaskLike | None = None,
    bias: ArrayLike | None = None,
    score: ScoreLike | None = None,
    scale: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    precision: PrecisionLike = None,
) -> tuple[jax.Array, jax.Array]:
    """`multi_head_attention`, and the log-sum-exp of each query's logits, `[*B, N, T]` in float32 or better."""
    query, key, value = check_many_heads(query, key, value)
    *batch, T, N, H = query.shape
    S, K = key.shape[-3:-1]
    shape = (*batch, N, T, S)
    mask, score = check_rules(mask, score, shape)
    arrays, tree = jax.tree.flatten(score)
    rate = check_dropout(dropout_rate, dropout_rng)
    options: dict[str, Any] = {"scale": check_scale(scale, H), "rate": rate, "precision": precision}

    def one_head(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        visible: jax.Array | None,
        bias: jax.Array | None,
        seed: jax.Array | None,
        head: jax.Array,
        *arrays: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        change = partial(apply_score, jax.tree.unflatten(tree, arrays), head, jnp.arange(T), jnp.arange(S))
        return _one_head(query, key, value, visible, bias, seed, change, **options)

    seeds = seeds_of_heads(dropout_rng, *batch, N) if rate else None  # type: ignore[arg-type]
    others = [check_mask(mask, shape), check_bias(bias, shape), seeds, jnp.arange(N), *arrays]
    letters = ["*nts", "*nts", "*n.", "n", *([] if score is None else score.axes())]
    output, lse = map_heads(one_head, query, (key, value), others, letters)
    return jnp.moveaxis(output, -2, -3), lse


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """Channels as heads.

    Args:
      x: `[*B, T, N * H]`.
      num_heads: N (static int).

    Returns:
      `[*B, T, N, H]`.

    Raises:
      TypeError: a traced number of heads.
      ValueError: the last dimension is not a multiple of `num_heads`.

    >>> split_heads(jnp.zeros((2, 5, 12)), 3).shape
    (2, 5, 3, 4)
    """
    if static_int("num_heads", num_heads, minimum=1) and (x.ndim == 0 or x.shape[-1] % num_heads):
        raise ValueError(f"cannot split the last dimension of x {x.shape} into num_heads={num_heads} equal heads")
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)


def merge_heads(x: jax.Array) -> jax.Array:
    """Heads side by side, the inverse of `split_heads`.

    Args:
      x: `[*B, T, N, H]`.

    Returns:
      `[*B, T, N * H]`.

    Raises:
      ValueError: there are no heads to merge.

    >>> merge_heads(jnp.zeros((2, 5, 3, 4))).shape
    (2, 5, 12)
    """
    if x.ndim < 2:
        raise ValueError(f"cannot merge the heads of x {x.shape}: expected [*B, T, N, H]")
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def _one_head(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array | None,
    bias: jax.Array | None,
    seed: jax.Array | None,
    change: Change = lambda logits: logits,
    *,
    scale: Any,
    rate: float,
    precision: PrecisionLike,
) -> tuple[jax.Array, jax.Array]:
    (T, _), (S, Hv) = query.shape, value.shape
    weights, lse, visible, poisoned = head_weights(query, key, visible, bias, change, scale=scale, precision=precision)
    if rate:
        keep = keep_positions(seed, rate, jnp.arange(T), jnp.arange(S))  # type: ignore[arg-type]
        weights = jnp.where(keep, weights / (1 - rate), 0)
    value, finite = _finite_rows(value.astype(weights.dtype))
    output = jnp.matmul(weights, value, precision=precision)
    poisoned |= jnp.any(visible & ~finite, axis=-1, keepdims=True)
    answered = jnp.any(visible, axis=-1, keepdims=True) & ~poisoned  # no other row takes anything back
    output = jnp.where(jnp.broadcast_to(answered, (T, Hv)), output, jnp.where(poisoned, jnp.nan, 0))
    chex.assert_shape(output, (T, Hv))
    return output.astype(query.dtype), jnp.where(poisoned[:, 0], jnp.nan, lse)


def head_weights(
    query: jax.Array,
    key: jax.Array,
    visible: jax.Array | None,
    bias: jax.Array | None,
    change: Change,
    *,
    scale: Any,
    precision: PrecisionLike,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One head's weights `[T, S]`, all finite; log-sum-exp `[T]`; what is visible after all; and `[T, 1]`, which rows
    saw what is not finite, and so have no right answer."""
    dtype = np.promote_types(query.dtype, np.float32)
    query, query_finite = _finite_rows(query.astype(dtype))
    key, key_finite = _finite_rows(key.astype(dtype))
    products = jnp.einsum("th,sh->ts", query, key, precision=precision)
    visible = jnp.broadcast_to(True if visible is None else visible, products.shape)
    finite = query_finite.T & key_finite & jnp.isfinite(products)
    logits = jnp.asarray(scale, dtype) * jnp.where(visible & finite, products, 0)
    finite &= jnp.isfinite(logits)  # a scale may take them beyond the largest number
    logits = jnp.where(finite, logits, 0)
    logits = change(logits if bias is None else logits + jnp.where(visible, bias.astype(dtype), 0))
    visible &= logits != -jnp.inf  # a bias of -inf hides as a mask does
    poisoned = jnp.any(visible & ~(finite & jnp.isfinite(logits)), axis=-1, keepdims=True)
    weights, lse = _softmax(jnp.where(visible & finite & jnp.isfinite(logits), logits, -jnp.inf))
    chex.assert_shape(weights, (query.shape[0], key.shape[0]))
    return weights, jnp.where(poisoned[:, 0], jnp.nan, lse), visible, poisoned


def _softmax(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax and log-sum-exp over the last axis. An entry of -inf has weight 0 and passes no gradient; a row of
    nothing else has log-sum-exp -inf."""
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf))
    nothing = peak == -jnp.inf
    peak = jnp.where(nothing, 0, peak)
    exponential = jnp.exp(logits - peak)
    total = jnp.where(nothing, 1, jnp.sum(exponential, axis=-1, keepdims=True))
    lse = jnp.where(nothing, -jnp.inf, peak + jnp.log(total))
    return jnp.where(logits == -jnp.inf, 0, exponential / total), lse[:, 0]


def _finite_rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`x` with each row that holds a NaN or an infinity set to 0, and `[1, rows]`: which rows were finite.

    A product takes in every row, and 0 * NaN is NaN: what a mask hides has to be gone before the product, or it comes
    back through the weights' zeros, or through those of the gradient.
    """
    finite = jnp.all(jnp.isfinite(x), axis=-1, keepdims=True)
    return jnp.where(finite, x, 0), finite.T
