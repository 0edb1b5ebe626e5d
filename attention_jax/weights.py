"""The weights themselves: for looking at, and only those asked for."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from attention_jax.axes import cut, cut_leaves, map_heads
from attention_jax.checks import (
    check_bias,
    check_indices,
    check_many_heads,
    check_one_head,
    check_scale,
)
from attention_jax.dispatch import placed
from attention_jax.dot_product import head_weights
from attention_jax.score_tree import apply_score, check_rules
from attention_jax.typing import Integers, MaskLike, Positions, ScoreLike


def attention_weights(
    query: ArrayLike,
    key: ArrayLike,
    *,
    mask: MaskLike | None = None,
    bias: ArrayLike | None = None,
    score: ScoreLike | None = None,
    positions: Positions | None = None,
    scale: ArrayLike | None = None,
    precision: PrecisionLike = None,
    rows: Integers | None = None,
    heads: Integers | None = None,
) -> jax.Array:
    """How much each query attends to each key: softmax(score(scale * query . key + bias)) over the keys it may see.

    Args:
      query: `[T, H]` of one head, or `[*B, T, N, H]`; floating point.
      key: `[S, H]`, or `[*B, S, K, H]` with N a multiple of K; same dtype.
      mask: `Mask`, or bool `[T, S]` or `[*B, N or 1, T, S]`, True = may attend. Default: every query sees every key.
      bias: floating `[T, S]` or `[*B, N or 1, T, S]`, added to the scaled logits; -inf hides a key.
      score: a change to the logits, after the bias: see `attention_jax.scores`.
      positions: where queries and keys stand for `mask` and `score`, integers `[*B, T]` and `[*B, S]`, as `attention`
        has them.
      scale: factor on query . key. Default: 1/sqrt(H).
      precision: of the matrix product, as in `jax.numpy.matmul`.
      rows: integers `[R]`, the queries whose weights are wanted, counted from the end if negative. Default: all T.
        Time and memory grow with what is asked for.
      heads: integers `[M]`, the heads wanted. Default: all N.

    Returns:
      `[T, S]` or `[*B, N, T, S]`, with R for T and M for N where they are given, in the dtype of `query`. Rows sum to
      1; a row that sees no key is 0; a row that sees a non-finite key, or whose logits overflow, is NaN. Logits and
      softmax are float32 (float64 for float64 inputs).

    Raises:
      TypeError: integer or bool inputs, a float mask, a bool bias, rows or heads that are not integers.
      ValueError: shapes or dtypes that do not fit each other, rows or heads that do not exist.

    >>> query, key = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(attention_weights(query, key, scale=1.0))
    [[0.7310586  0.26894143]]
    >>> query, key = jnp.ones((2, 5000, 4, 8)), jnp.ones((2, 5000, 2, 8))
    >>> attention_weights(query, key, rows=[0, -1], heads=[3]).shape
    (2, 1, 2, 5000)
    """
    if jnp.ndim(query) == 2:
        if heads is not None:
            raise ValueError(f"heads= wants query [*B, T, N, H], got one head, query {jnp.shape(query)}")
        query, key = (x[:, None] for x in check_one_head(query=query, key=key))
        return attention_weights(
            query, key, mask=mask, bias=bias, score=score, positions=positions, scale=scale, precision=precision,
            rows=rows,
        )[0]  # fmt: skip
    query, key, _ = check_many_heads(query, key, key)
    *batch, T, N, H = query.shape
    S, K = key.shape[-3:-1]
    shape = (*batch, N, T, S)
    options: dict[str, Any] = {"scale": check_scale(scale, H), "precision": precision}
    rows, heads, columns = check_indices("rows", rows, T), check_indices("heads", heads, N), jnp.arange(S)

    visible, score = check_rules(*placed(mask, score, positions, batch, T, S), shape)
    if visible is not None:
        visible = cut_leaves(visible, t=rows, n=heads).at(rows, columns)
        visible = visible.reshape((1,) * (len(shape) - visible.ndim) + visible.shape)
    bias = None if bias is None else cut(check_bias(bias, shape), "*nts", t=rows, n=heads)
    if 0 in (*batch, len(heads), len(rows), S):
        return jnp.zeros((*batch, len(heads), len(rows), S), query.dtype)
    arrays, tree = jax.tree.flatten(None if score is None else cut_leaves(score, t=rows, n=heads))

    def one_head(
        query: jax.Array,
        key: jax.Array,
        visible: jax.Array | None,
        bias: jax.Array | None,
        head: jax.Array,
        *arrays: jax.Array,
    ) -> jax.Array:
        change = partial(apply_score, jax.tree.unflatten(tree, arrays), head, rows, columns)
        weights, _, _, poisoned = head_weights(query, key, visible, bias, change, **options)
        return jnp.where(poisoned, jnp.nan, weights).astype(query.dtype)

    letters = ["*nts", "*nts", "n", *([] if score is None else score.axes())]
    query, key = query[..., rows[:, None], heads, :], key[..., heads // (N // K), :]
    weights = map_heads(one_head, query, [key], [visible, bias, heads, *arrays], letters)
    for indices, size, axis in ((rows, T, -2), (heads, N, -3)):  # those that are traced could not be refused
        exists = jnp.expand_dims((indices >= 0) & (indices < size), [a for a in range(-weights.ndim, 0) if a != axis])
        weights = jnp.where(exists, weights, jnp.nan)
    return weights
