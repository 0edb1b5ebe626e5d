"""Exact attention in memory that grows linearly with length: the same equation as `dot_product.py`, block by block.

The forward pass is the online softmax of Milakov and Gimelshein (2018, arXiv:1805.02867), as in FlashAttention
(arXiv:2205.14135). With the log-sum-exp it leaves behind, each weight is exp(logit - lse), and the output's tangent is
a plain sum over blocks,

    d_output = sum_s weight (d_logit value + d_value) - d_lse output,    d_lse = sum_s weight d_logit,

which `blocks.BlockSum` differentiates, transposes and maps, to any order. Only the first backward pass, which training
waits for, is written by hand.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from attention_jax.axes import by_group
from attention_jax.blocks import BlockSum, Grid, Sweep, accumulator
from attention_jax.checks import check_dropout, check_many_heads, check_mask_shape, check_scale
from attention_jax.dropout import keep_positions
from attention_jax.mask_rules import Function
from attention_jax.mask_tree import Mask, as_mask
from attention_jax.scores import Score, ScoreFunction, check_score

QUERY_BLOCK, KEY_BLOCK = 512, 512
SCORES_A_STEP = 2**20


def blockwise_attention(
    query, key, value, *, mask=None, score=None, scale=None, dropout_rate=0.0, dropout_rng=None, precision=None,
    block_sizes: tuple[int, int] = (QUERY_BLOCK, KEY_BLOCK),
):  # fmt: skip
    """Output `[*B, T, N, Hv]` and log-sum-exp `[*B, N, T]`; arguments as `attention`, and the most queries and keys a
    block may have.

    >>> x = jnp.ones((1000, 2, 4))
    >>> output, lse = blockwise_attention(x, x, x)
    >>> output.shape, lse.shape
    ((1000, 2, 4), (2, 1000))
    """
    query, key, value = check_many_heads(query, key, value)
    rate = check_dropout(dropout_rate, dropout_rng)
    *batch, T, N, H = query.shape
    S, K, Hv = value.shape[-3:]
    mask = None if mask is None else as_mask(mask)
    score = check_score(score, (*batch, N, T, S))
    if mask is not None:
        check_mask_shape(mask, (*batch, N, T, S))
    if 0 in (*query.shape, *value.shape):
        return jnp.zeros((*batch, T, N, Hv), query.dtype), jnp.full((*batch, N, T), -jnp.inf, accumulator(query.dtype))
    grid = block_grid(query.shape, value.shape, block_sizes)
    dtype = accumulator(query.dtype)

    positions = jnp.arange(grid.size("t"))[:, None], jnp.arange(grid.size("s"))[None, :]
    mask = _hoist(mask, Function, *positions)
    score = _hoist(
        score, ScoreFunction, jnp.zeros((grid.size("t"), grid.size("s")), dtype), jnp.zeros((), int), *positions
    )
    operands, axes = [], []
    for part in (mask, score):
        for leaf, letters in zip(jax.tree.leaves(part), [] if part is None else part.axes(), strict=True):
            leaf, letters = _canonical(jnp.asarray(leaf), letters, batch, K, N)
            operands.append(_pad(leaf, letters, grid))
            axes.append(letters)
    rule = AttentionRule(
        mask=jax.tree.structure(mask),
        score=None if score is None else jax.tree.structure(score),
        masks=len(jax.tree.leaves(mask)),
        scores=len(jax.tree.leaves(score)),
        rate=rate,
        keys=S,
        padded=grid.length("s") != S,
        precision=precision,
    )
    if rate:
        seeds = jax.random.key_data(jax.random.split(dropout_rng, (*batch, N)))
        operands.append(seeds.reshape(grid.length("b"), K, N // K, -1))
        axes.append("bkg.")

    finite = jnp.isfinite(query)  # what is not must not reach the gradient of the scale
    scaled = jnp.where(finite, query, 0).astype(dtype) * check_scale(scale, H)
    query = jnp.where(finite, scaled, jnp.nan).reshape(grid.length("b"), T, K, N // K, H)
    key, value = (x.reshape(grid.length("b"), S, K, x.shape[-1]) for x in (key, value))
    for array, letters in ((query, "btkg."), (key, "bsk."), (value, "bsk.")):
        operands.append(_pad(array, letters, grid))
        axes.append(letters)
    b, t = grid.length("b"), grid.length("t")
    softmax = Softmax(
        rule,
        grid,
        tuple(axes),
        ("btkg.", "bkgt"),
        (jax.ShapeDtypeStruct((b, t, K, N // K, Hv), value.dtype), jax.ShapeDtypeStruct((b, K, N // K, t), dtype)),
        static_kind=rule.masks == 0,
    )
    output, lse = softmax(*operands)
    return output[:, :T].reshape(*batch, T, N, Hv), lse[..., :T].reshape(*batch, N, T)


@dataclass(frozen=True)
class AttentionRule:
    """One head's block of attention. The operands are the arrays of the mask and of the score, dropout's seed if it
    acts, query (scaled), key and value; for `term`, then the log-sum-exp."""

    mask: Any
    score: Any
    masks: int
    scores: int
    rate: float
    keys: int
    padded: bool  # whether there are more columns than keys
    precision: Any

    def unpack(self, operands):
        """(mask, score's arrays, seed, the rest)."""
        masks, scores = self.masks, self.masks + self.scores
        mask = jax.tree.unflatten(self.mask, operands[:masks])
        seeded = scores + (self.rate > 0)
        seed = operands[scores] if self.rate else None
        return mask, operands[masks:scores], seed, operands[seeded:]

    def span(self, outer, first, last, length):
        mask = jax.tree.unflatten(self.mask, [None] * self.masks)
        if mask is None:
            return 0, length - 1
        return (mask.columns_of if outer == "t" else mask.rows_of)((first, last), length)

    def some_every(self, rows, columns, *operands):
        mask, *_ = self.unpack(operands)
        some, every = (True, True) if mask is None else mask.some_every(rows, columns)
        return some, every & (columns[1] < self.keys) if self.padded else every

    def visible(self, block, mask):
        real = (block.columns < self.keys)[None, :]
        return real if mask is None else real & mask.at(block.rows, block.columns)

    def may_overflow(self, operands):
        """Whether anything is not finite, or a logit could be; False for all but broken inputs."""
        query, key, value = (jnp.max(jnp.abs(x)).astype(accumulator(x.dtype)) for x in self.unpack(operands)[-1])
        limit = jnp.finfo(query.dtype).max / operands[-2].shape[-1]
        return ~((query * key < limit) & (value < jnp.inf))

    def scored(self, block, logits, arrays):
        if self.score is None:
            return logits
        score = jax.tree.unflatten(self.score, arrays)
        finite = jnp.where(jnp.isfinite(logits), logits, 0)  # a score of -inf hides what overflows, too
        return score.apply(finite, block.head, block.rows, block.columns)

    def dropped(self, block, weights, seed):
        if seed is None:
            return weights
        keep = keep_positions(jax.random.wrap_key_data(seed), self.rate, block.rows, block.columns)
        return jnp.where(keep, weights / (1 - self.rate), 0)

    def product(self, one, other):
        return jnp.matmul(one, other, precision=self.precision)

    def term(self, block, masked, *operands):
        """Weighted values, and the sum of the weights; the log-sum-exp is taken as given."""
        mask, score, seed, (query, key, value, lse) = self.unpack(operands)
        query, key, value = map(_clean, (query, key, value))
        logits = self.scored(block, self.product(query, key.T), score)
        if masked:
            logits = jnp.where(self.visible(block, mask), logits, -jnp.inf)
        weights = jnp.exp(logits - lse[:, None])
        return self.product(self.dropped(block, weights, seed), value), jnp.sum(weights, axis=-1)

    def transposed_tangent(self, block, masked, operands, moving, cotangents):
        """The transpose of `term`'s tangent: the backward pass (arXiv:2205.14135, appendix B.4).

        Everything is held `[s, t]`, keys down: XLA's fast product on a CPU wants its left side row by row.
        """
        mask, score, seed, (query, key, value, lse) = self.unpack(operands)
        query, key, value = map(_clean, (query, key, value))
        d_output, d_total = cotangents.get(0), cotangents.get(1)

        def scored(logits, arrays):
            return self.scored(block, logits.T, arrays).T

        logits, back_through_score = jax.vjp(scored, self.product(key, query.T), score)
        if masked:
            logits = jnp.where(self.visible(block, mask).T, logits, -jnp.inf)
        weights = jnp.exp(logits - lse[None, :])
        d_weights = 0 if d_output is None else self.dropped_transposed(block, self.product(value, d_output.T), seed)
        d_weights = d_weights if d_total is None else d_weights + d_total[None, :]
        d_logits = weights * d_weights
        if masked or self.score is not None:  # a hidden weight is 0, but what it is multiplied with may have overflowed
            d_logits = jnp.where(logits == -jnp.inf, 0, d_logits)
        d_logits, d_score = back_through_score(d_logits)

        first = len(operands) - 4
        gradients = dict(zip(range(self.masks, self.masks + self.scores), d_score, strict=True))
        if first in moving:
            gradients[first] = self.product(key.T, d_logits).T
        if first + 1 in moving:
            gradients[first + 1] = self.product(d_logits, query)
        if first + 2 in moving:
            weights = self.dropped_transposed(block, weights, seed)
            gradients[first + 2] = jnp.zeros_like(value) if d_output is None else self.product(weights, d_output)
        return [gradients[index] for index in moving]

    def dropped_transposed(self, block, weights, seed):
        return weights if seed is None else self.dropped(block, weights.T, seed).T


@dataclass(frozen=True)
class Poison:
    """How many keys each query sees whose logit or value is not finite."""

    rule: AttentionRule

    def span(self, *args):
        return self.rule.span(*args)

    def some_every(self, *args):
        return self.rule.some_every(*args)

    def term(self, block, masked, *operands):
        mask, score, _, (query, key, value) = self.rule.unpack(operands)
        dtype = accumulator(value.dtype)
        raw = self.rule.product(query.astype(dtype), key.astype(dtype).T)
        logits = self.rule.scored(block, jnp.where(jnp.isfinite(raw), raw, 0), score)
        broken = ~jnp.isfinite(raw) | ~jnp.isfinite(logits) | ~jnp.all(jnp.isfinite(value), axis=-1)[None, :]
        broken &= logits != -jnp.inf
        if masked:
            broken &= self.rule.visible(block, mask)
        return [jnp.sum(broken, axis=-1, dtype=dtype)]


@dataclass(frozen=True)
class Softmax(Sweep):
    """Attention's output `[B, T, K, G, Hv]` and log-sum-exp `[B, K, G, T]`."""

    def run(self, *operands):
        carried = ("bkgt", "bkgt", "bkgt.")
        dtype = accumulator(self.outputs[1].dtype)
        lengths = [self.grid.size(letter) for letter in "bkgt"]
        Hv = self.outputs[0].shape[-1]

        def first():
            return [jnp.full(lengths, -jnp.inf, dtype), jnp.zeros(lengths, dtype), jnp.zeros((*lengths, Hv), dtype)]

        def step(start, carry, blocks):
            def online(masked):
                def one_head(block, *operands):
                    *operands, peak, total, sums = operands
                    return self.online(block, masked, operands, peak, total, sums)

                return list(self.by_head(one_head, self.axes + carried, carried, start, [*blocks, *carry]))

            return self.by_kind(start, blocks, carry, online), []

        def last(carry):
            peak, total, sums = carry
            nothing = total == 0
            total = jnp.where(nothing, 1, total)
            lse = jnp.where(nothing, -jnp.inf, peak + jnp.log(total))
            return [jnp.moveaxis(sums / total[..., None], 3, 1), lse]

        output, lse = self.loop(operands, "t", first, step, last)
        return lax.cond(
            self.rule.may_overflow(operands), self.poison, lambda *kept: list(kept[:2]), output, lse, *operands
        )

    def poison(self, output, lse, *operands):
        """NaN for the rows that see what is not finite."""
        count = BlockSum(
            Poison(self.rule), self.grid, self.axes, self.out_axes[1:], self.outputs[1:], self.static_kind
        )  # fmt: skip
        poisoned = count.run(*operands)[0] > 0
        rows = jnp.moveaxis(poisoned, -1, -3)[..., None]
        return [jnp.where(rows, jnp.nan, output), jnp.where(poisoned, jnp.nan, lse)]

    def online(self, block, masked, operands, peak, total, sums):
        rule = self.rule
        mask, score, seed, (query, key, value) = rule.unpack(operands)
        query, key, value = map(_clean, (query, key, value))
        logits = rule.scored(block, rule.product(query, key.T), score)
        if masked:
            logits = jnp.where(rule.visible(block, mask), logits, -jnp.inf)
        higher = jnp.maximum(peak, jnp.max(logits, axis=-1))
        safe = jnp.where(higher == -jnp.inf, 0, higher)
        weights = jnp.exp(logits - safe[:, None])
        shrink = jnp.exp(peak - safe)
        added = rule.product(rule.dropped(block, weights, seed), value)
        return higher, total * shrink + jnp.sum(weights, axis=-1), sums * shrink[:, None] + added

    def jvp(self, primals, tangents):
        output, lse = self(*primals)
        given = jnp.where(jnp.isfinite(lse), lse, jnp.inf)  # so that a row that sees nothing has weights of 0
        dtype = accumulator(lse.dtype)
        total = BlockSum(
            self.rule,
            self.grid,
            (*self.axes, self.out_axes[1]),
            self.out_axes,
            (jax.ShapeDtypeStruct(output.shape, dtype), jax.ShapeDtypeStruct(lse.shape, dtype)),
            self.static_kind,
        )
        moving = tuple(index for index, tangent in enumerate(tangents) if tangent is not None)
        d_output, d_lse = total.tangent(moving)(*primals, given, *(tangents[index] for index in moving))
        known = jnp.where(jnp.isfinite(output), output, 0).astype(dtype)
        d_output = d_output - jnp.moveaxis(d_lse, -1, -3)[..., None] * known
        return (output, lse), (d_output.astype(output.dtype), d_lse)


def _clean(x):
    """`x` in float32 or better, with 0 for what is not finite: see `dot_product._finite_rows`."""
    x = x.astype(accumulator(x.dtype))
    return jnp.where(jnp.isfinite(x), x, 0)


def block_grid(query_shape, value_shape, block_sizes: tuple[int, int]) -> Grid:
    """How the work is cut up: blocks of at most so many queries and keys, and as many heads and examples a step as keep
    all cores busy."""
    *batch, T, N, _ = query_shape
    S, K, _ = value_shape[-3:]
    B, G = math.prod(batch), N // K
    t, s = (_fit(length, most) for length, most in zip((T, S), block_sizes, strict=True))
    heads = max(SCORES_A_STEP // (t * s), 1)
    k = _divisor(K, heads // G)
    b = _divisor(B, heads // (G * k))
    return Grid((1, B, K, G, -(-T // t) * t, -(-S // s) * s), (1, b, k, G, t, s))


def _fit(length: int, most: int) -> int:
    """The block size that cuts `length` into the fewest blocks of at most `most`, and leaves the least over."""
    return -(-length // -(-length // most))


def _divisor(number: int, most: int) -> int:
    return max(divisor for divisor in range(1, number + 1) if number % divisor == 0 and divisor <= max(most, 1))


def _canonical(array, letters, batch, K, N):
    """`by_group`, with the batch dimensions made one; and the letters of what is left."""
    array, axes = by_group(array, letters, len(batch), K, N)
    names = "".join(a for a, axis in zip("kg", axes[-2:], strict=True) if axis == 0)
    names += letters.removeprefix("*").replace("n", "")
    if 0 in axes[: len(batch)]:
        rest = array.shape[array.ndim - len(names) :]
        sizes = [size if axis == 0 else 1 for size, axis in zip(batch, axes, strict=False)]
        array = jnp.broadcast_to(array.reshape(*sizes, *rest), (*batch, *rest)).reshape(-1, *rest)
        names = "b" + names
    return array, names


def _pad(array, letters, grid):
    widths = [
        (0, grid.length(letter) - size if letter in "ts" and size != 1 else 0)
        for letter, size in zip(letters, array.shape, strict=True)
    ]
    return jnp.pad(array, widths) if any(after for _, after in widths) else array


def _hoist(part: Mask | Score | None, kind: type, *examples):
    """`part` with every function in it made free of the arrays it has captured, which become arrays of its own."""
    if part is None:
        return None
    if isinstance(part, kind):
        closed = jax.make_jaxpr(part.fn)(*examples)
        return replace(part, fn=_Traced(closed.jaxpr), captured=tuple(closed.consts)) if closed.consts else part
    children = {
        field.name: _hoist(child, kind, *examples)
        for field in fields(part)
        if isinstance(child := getattr(part, field.name), Mask | Score)
    }
    return replace(part, **children) if children else part


@dataclass(frozen=True)
class _Traced:
    """A traced function that is called with the arrays it captured first."""

    jaxpr: Any

    def __call__(self, *operands):
        captured = len(self.jaxpr.constvars)
        return jaxpr_as_fun(ClosedJaxpr(self.jaxpr, list(operands[:captured])))(*operands[captured:])[0]
