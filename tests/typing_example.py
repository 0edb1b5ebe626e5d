"""The library as a type checker sees it, from outside: `mypy` checks this file, and nothing runs it."""

from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

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

query = key = value = jnp.ones((2, 6, 4, 8))

mask = causal() & segments([0, 0, 0, 1, 1, 1])
assert_type(mask, Mask)
assert_type(~mask | np.ones((6, 6), bool), Mask)
score = soft_cap(30.0) >> alibi(alibi_slopes(4)) >> (lambda logit, head, t, s: logit - abs(t - s))
assert_type(score, Score)

assert_type(attention(query, key, value, mask=mask, score=score, precision="highest"), jax.Array)
assert_type(attention(np.asarray(query), key, value, mask=np.ones((6, 6), bool)), jax.Array)
assert_type(attention(query, key, value, positions=(range(6), jnp.arange(6))), jax.Array)
assert_type(attention_and_lse(query, key, value), tuple[jax.Array, jax.Array])
assert_type(attention_weights(query, key, rows=[0, -1], heads=jnp.array([3])), jax.Array)
assert_type(attention_statistics(query, key), AttentionStatistics)
assert_type(explain(query, key, value), Explanation)

layer = MultiHeadAttention(32, 4, rngs=nnx.Rngs(0))
x = jnp.ones((2, 6, 32))
assert_type(layer(x, mask=mask, rngs=nnx.Rngs(dropout=0)), jax.Array)
assert_type(layer(x, return_weights=True), tuple[jax.Array, jax.Array])
assert_type(attention_jax.modules.FeedForward(32, rngs=nnx.Rngs(0))(x), jax.Array)
assert_type(layer(x, cache=layer.empty_cache(10, batch=(2,))), tuple[jax.Array, KVCache])

model = TransformerLM(65, 16, 32, 4, 2, rngs=nnx.Rngs(0))
assert_type(model(jnp.zeros((2, 6), int), mask=key_lengths(jnp.array([6, 4]))), jax.Array)
assert_type(generate(model, np.zeros(3, int), 5, rng=jax.random.key(0), lengths=None), Text)


def own(mask: MaskLike | None, score: ScoreLike | None, precision: jax.lax.PrecisionLike = None) -> jax.Array:
    """A function of the reader's own, in the library's terms."""
    return attention(query, key, value, mask=mask, score=score, precision=precision)


attention_jax.atention(query, key, value)  # type: ignore[attr-defined]
attention(query, key, value, mask="causal")  # type: ignore[arg-type]
attention(query, key, value, causal=True)  # type: ignore[call-arg]
explain(query, key, value).skipped + 1  # type: ignore[operator]
