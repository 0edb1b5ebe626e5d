"""What attention weights say, without ever forming them: sums over blocks, in memory that grows linearly with length.

The forward pass leaves each query's log-sum-exp, which makes a weight a function of one logit, exp(logit - lse), and
so each of these numbers a sum over blocks, taken in a pass of its own that leaves the output as it is. They can be
differentiated, all but the top keys and their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from attention_jax.arguments import integer_array, positions_for, real_array, static_int
from attention_jax.block_sizes import grid_for
from attention_jax.blocks.block_sum import BlockSum
from attention_jax.blocks.fold import Fold
from attention_jax.blocks.numerics import finite_or_zero
from attention_jax.blocks.softmax import in_order
from attention_jax.blocks.sweep import SamePairs, accumulator
from attention_jax.blockwise import canonical, canonical_array, pad
from attention_jax.checks import check_many_heads
from attention_jax.devices import platform_of
from attention_jax.dispatch import placed
from attention_jax.score_tree import check_rules
from attention_jax.typing import MaskLike, Positions, ScoreLike


class AttentionStatistics(NamedTuple):
    """Numbers that sum up attention weights `[*B, N, T, S]`, in float32 or better.

    A query that sees no key counts nowhere and has 0; one whose weights are NaN has NaN. A score is the mean weight
    that a head gives to the keys it is named after, over the queries that may see one; 0 if there is no such query.
    """

    entropy: jax.Array
    """`[*B, N, T]`, of each query's weights, in nats."""
    distance: jax.Array
    """`[*B, N, T]`, the mean distance `abs(t - s)` to the keys, in positions."""
    top_keys: jax.Array
    """int32 `[*B, N, T, top_k]`, the keys with the largest weights, largest first, of equal ones the first; -1 where
    there are no more."""
    top_weights: jax.Array
    """`[*B, N, T, top_k]`, their weights."""
    received: jax.Array
    """`[*B, N, S]`, the sum of the weights that each key is given."""
    previous_token: jax.Array
    """`[*B, N]`, weight of the key one position back."""
    first_token: jax.Array
    """`[*B, N]`, weight of the key at position 0."""
    duplicate_token: jax.Array | None
    """`[*B, N]`, weight of earlier keys with the query's own token; None where no tokens are given."""
    induction: jax.Array | None
    """`[*B, N]`, weight of keys that come after an earlier copy of the query's token (arXiv:2209.11895), one position
    after it, in another segment too."""


def attention_statistics(
    query: ArrayLike,
    key: ArrayLike,
    *,
    mask: MaskLike | None = None,
    score: ScoreLike | None = None,
    positions: Positions | None = None,
    scale: ArrayLike | None = None,
    precision: PrecisionLike = None,
    tokens: ArrayLike | None = None,
    top_k: int = 4,
    lse: ArrayLike | None = None,
) -> AttentionStatistics:
    """What `attention_weights` of the same arguments would say, at any length.

    Args:
      query, key, mask, score, positions, scale, precision: as `attention`.
      tokens: integers `[*B, T]`, for the scores that ask which tokens are the same; queries and keys have to be the
        same T tokens.
      top_k: how many keys to name for each query (static int).
      lse: `[*B, N, T]`, the log-sum-exp of the same arguments, as `attention_and_lse` returns it. Default: it is found
        in a pass over the keys.

    Raises:
      TypeError: integer or bool queries, tokens that are not integers, a traced `top_k`.
      ValueError: shapes or dtypes that do not fit each other.

    >>> from attention_jax import causal
    >>> query = jax.random.normal(jax.random.key(0), (100, 4, 8))
    >>> statistics = attention_statistics(query, query, mask=causal(), tokens=jnp.arange(100) % 7)
    >>> statistics.entropy.shape, statistics.top_keys.shape, statistics.induction.shape
    ((4, 100), (4, 100, 4), (4,))
    """
    query, key, _ = check_many_heads(query, key, key)
    *batch, T, N, _ = query.shape
    S, K = key.shape[-3:-1]
    top_k, tokens = static_int("top_k", top_k, minimum=0), _check_tokens(tokens, batch, T, S)
    mask, score = check_rules(*placed(mask, score, positions, batch, T, S), (*batch, N, T, S))
    if 0 in (*batch, T, N, S):
        return _of_nothing(batch, N, T, S, top_k, accumulator(query.dtype), tokens is not None)

    value = jnp.zeros((*key.shape[:-1], 1), key.dtype)
    grid = grid_for(mask, score, query.shape, value.shape, platform_of(query))
    problem = canonical(query, key, value, mask, score, scale, 0.0, None, precision, grid)
    if lse is not None and jnp.shape(lse) != (*batch, N, T):
        raise ValueError(f"lse must be [*B, N, T] = {[*batch, N, T]}, got {list(jnp.shape(lse))}")
    lse = problem.softmax()[1] if lse is None else problem.given(real_array("lse", lse).astype(accumulator(key.dtype)))
    real = jax.lax.broadcasted_iota(jnp.int32, lse.shape, 3) < T
    lse = jnp.where(real & (lse != -jnp.inf), lse, jnp.inf)  # so that a query that sees nothing has weights of 0

    extra = [(lse, "bkgt")]
    for array, letters in _positions_and_tokens(positions, tokens, batch, T, S):
        array, letters = canonical_array(array, letters, batch, K, N)
        extra.append((pad(array, letters, grid), letters))
    arrays, letters = zip(*extra, strict=True)
    known, known_axes = in_order(problem.rule, problem.operands, problem.axes)
    operands, axes = (*known[:-1], *arrays), (*known_axes[:-1], *letters)

    rule, of_query, of_key = StatisticsRule(problem.rule), (*lse.shape,), (*lse.shape[:3], grid.length("s"))
    patterns = 2 if tokens is None else 4
    out_axes = ("bkgt",) * (2 + 2 * patterns) + ("bkgs",)
    outputs = [jax.ShapeDtypeStruct(of_key if a == "bkgs" else of_query, lse.dtype) for a in out_axes]
    sums = BlockSum(rule, grid, axes, out_axes, tuple(outputs))(*operands)
    top = jax.ShapeDtypeStruct((*of_query, top_k), lse.dtype)
    top_keys = TopKeys(rule, grid, axes, ("bkgt.", "bkgt."), (top, top))
    top_weights, top_keys = top_keys(*operands) if top_k else [jnp.zeros(top.shape, top.dtype)] * 2
    unknown = jnp.broadcast_to(jnp.isnan(lse)[..., None], top.shape)  # not all devices' maxima keep NaN
    top_weights, top_keys = jnp.where(unknown, jnp.nan, top_weights), jnp.where(unknown, -1, top_keys)

    def heads(array, length, *rest):
        return array[:, :, :, :length].reshape(*batch, N, length, *rest)

    *sums, received = sums
    entropy, distance, *masses = (heads(array, T) for array in sums)
    scores = [_mean(masses[i], masses[i + patterns]) for i in range(patterns)] + [None, None]
    top_keys, top_weights = heads(top_keys, T, top_k).astype(jnp.int32), heads(top_weights, T, top_k)
    return AttentionStatistics(entropy, distance, top_keys, top_weights, heads(received, S), *scores[:4])


@dataclass(frozen=True)
class StatisticsRule(SamePairs):
    """One head's block of statistics. The operands are those of its `AttentionRule` but for the value; the log-sum-exp,
    the positions of queries and keys; and, if they are known, the tokens of queries, of keys, and before each key, and
    whether there is one before it."""

    def weigh(self, block, masked, operands):
        """`[t, s]`: the weights, -log of them, which are seen; and the other operands."""
        mask, score, _, (query, key, lse, *others) = self.rule.unpack(operands)
        query, key = map(finite_or_zero, (query, key))  # where they are not finite, lse is NaN
        logits = self.rule.logits(block, masked, mask, score, query, key)
        seen = logits > -jnp.inf
        logs = jnp.where(seen, logits - lse[:, None], 0)
        return jnp.where(seen, jnp.exp(logs), 0), -logs, seen, others

    def term(self, block, masked, *operands):
        """Sums along each query's keys: entropy, distance, weight of each pattern, and the number of its keys; and the
        sum along each key's queries."""
        weights, logs, seen, (rows, columns, *tokens) = self.weigh(block, masked, operands)
        distance = rows[:, None] - columns[None, :]
        patterns = [distance == 1, jnp.broadcast_to(columns == 0, distance.shape)]
        if tokens:
            own, others, before, follows = tokens
            patterns.append((own[:, None] == others[None, :]) & (distance > 0))
            patterns.append((own[:, None] == before[None, :]) & (distance >= 0) & follows[None, :])
        logs = jnp.where(weights == 0, 0, logs)  # of a weight too small for a number, too
        of_query = [weights * logs, weights * jnp.abs(distance)]
        of_query += [jnp.where(pattern, weights, 0) for pattern in patterns]
        of_query += [(pattern & seen).astype(weights.dtype) for pattern in patterns]
        return [*(jnp.sum(x, axis=1) for x in of_query), jnp.sum(weights, axis=0)]


@dataclass(frozen=True)
class TopKeys(Fold):
    """The largest weights and their keys, both as floating point; constants to differentiation."""

    carried = ("xbkgt.", "xbkgt.")

    def nothing(self):
        shape = [*(self.grid.size(letter) for letter in "xbkgt"), self.outputs[0].shape[-1]]
        return [jnp.full(shape, -1, self.outputs[0].dtype)] * 2

    def find(self, block, masked, *operands):
        weights, _, seen, _ = self.rule.weigh(block, masked, operands)
        keys = jnp.broadcast_to(block.columns.astype(weights.dtype), weights.shape)
        return self._largest(jnp.where(seen, weights, -1), keys)

    def merge(self, one, other):
        return self._largest(*(jnp.concatenate(both, axis=-1) for both in zip(one, other, strict=True)))

    def _largest(self, weights, keys):
        """By maxima and not by sorting, which is much slower on a CPU."""
        found = []
        for _ in range(self.outputs[0].shape[-1]):
            most = jnp.max(weights, axis=-1, keepdims=True)
            first = jnp.min(jnp.where(weights == most, keys, jnp.inf), axis=-1, keepdims=True)
            weights = jnp.where(keys == first, -1, weights)
            found.append((most, jnp.where(most >= 0, first, -1)))
        return [jnp.concatenate(columns, axis=-1) for columns in zip(*found, strict=True)]

    def finish(self, found):
        weights, keys = found
        return [jnp.where(keys < 0, 0, weights), keys]

    def jvp(self, primals, tangents):
        found = self(*primals)
        return found, [jnp.zeros_like(array) for array in found]


def _positions_and_tokens(positions, tokens, batch, T, S):
    queries, keys = positions_for(positions, batch, T, S)
    arrays = [(queries, "*t"), (keys, "*s")]
    if tokens is not None:
        before = jnp.roll(keys, 1, axis=-1)
        follows = (keys == before + 1) & (before >= 0)
        arrays += [(tokens, "*t"), (tokens, "*s"), (jnp.roll(tokens, 1, axis=-1), "*s"), (follows, "*s")]
    return arrays


def _check_tokens(tokens, batch, T, S):
    if tokens is None:
        return None
    tokens = integer_array("tokens", tokens)
    if T != S or tokens.shape not in ((T,), (*batch, T)):
        raise ValueError(
            f"tokens must be [*B, T] = {[*batch, T]}, the same for T = {T} queries and S = {S} keys; got "
            f"{list(tokens.shape)}"
        )
    return tokens


def _mean(masses, counts):
    """Over the queries `[*B, N, T]` that have such a key."""
    return jnp.sum(masses, -1) / jnp.maximum(jnp.sum(counts > 0, -1), 1)


def _of_nothing(batch, N, T, S, top_k, dtype, tokens):
    queries, scores = jnp.zeros((*batch, N, T), dtype), jnp.zeros((*batch, N), dtype)
    top_keys = jnp.full((*queries.shape, top_k), -1, jnp.int32)
    top_weights = jnp.zeros((*queries.shape, top_k), dtype)
    received = jnp.zeros((*batch, N, S), dtype)
    of_tokens = [scores, scores] if tokens else [None, None]
    return AttentionStatistics(queries, queries, top_keys, top_weights, received, scores, scores, *of_tokens)
