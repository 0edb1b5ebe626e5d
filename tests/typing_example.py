"""The library as a type checker sees it, from outside: `mypy` checks this file, and nothing runs it."""

from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import PrecisionLike

import attention_jax
from attention_jax import (
    AttentionStatistics,
    KVCache,
    Mask,
    Score,
    alibi,
    alibi_slopes,
    attention,
    attention_and_lse,
    attention_statistics,
    attention_weights,
    causal,
    explain,
    key_lengths,
    segments,
    soft_cap,
)
from attention_jax.dispatch import Explanation
from attention_jax.generate import Text, generate
from attention_jax.modules import MultiHeadAttention, TransformerLM
from attention_jax.typing import MaskLike, ScoreLike


def functions(query: jax.Array, key: jax.Array, value: np.ndarray) -> None:
    mask = causal() & segments([0, 0, 0, 1, 1, 1])
    assert_type(mask, Mask)
    assert_type(~mask | np.ones((6, 6), bool), Mask)
    score = soft_cap(30.0) >> alibi(alibi_slopes(4)) >> (lambda logit, head, t, s: logit - abs(t - s))
    assert_type(score, Score)

    assert_type(attention(query, key, value, mask=mask, score=score, precision="highest"), jax.Array)
    assert_type(attention(query, key, value, mask=np.ones((6, 6), bool)), jax.Array)
    assert_type(attention(query, key, value, positions=(range(6), jnp.arange(6))), jax.Array)
    assert_type(attention_and_lse(query, key, value), tuple[jax.Array, jax.Array])
    assert_type(attention_weights(query, key, rows=[0, -1], heads=jnp.array([3])), jax.Array)
    assert_type(attention_statistics(query, key), AttentionStatistics)
    assert_type(explain(query, key, value), Explanation)


def modules(x: jax.Array, tokens: np.ndarray, lengths: jax.Array) -> None:
    layer = MultiHeadAttention(32, 4, rngs=nnx.Rngs(0))
    assert_type(layer(x, mask=key_lengths(lengths), rngs=nnx.Rngs(dropout=0)), jax.Array)
    assert_type(layer(x, return_weights=True), tuple[jax.Array, jax.Array])
    assert_type(layer(x, cache=layer.empty_cache(10, batch=(2,))), tuple[jax.Array, KVCache])
    assert_type(attention_jax.modules.FeedForward(32, rngs=nnx.Rngs(0))(x), jax.Array)

    model = TransformerLM(65, 16, 32, 4, 2, rngs=nnx.Rngs(0))
    assert_type(model(tokens, mask=key_lengths(lengths)), jax.Array)
    assert_type(generate(model, tokens, 5, rng=jax.random.key(0), lengths=[6, 4]), Text)


def own(x: jax.Array, mask: MaskLike | None, score: ScoreLike | None, precision: PrecisionLike = None) -> jax.Array:
    return attention(x, x, x, mask=mask, score=score, precision=precision)


def mistakes(x: jax.Array) -> None:
    attention_jax.atention(x, x, x)  # type: ignore[attr-defined]
    attention(x, x, x, mask="causal")  # type: ignore[arg-type]
    attention(x, x, x, causal=True)  # type: ignore[call-arg]
    explain(x, x, x).skipped + 1  # type: ignore[operator]
