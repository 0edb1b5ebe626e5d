"""One head's block of attention: logits, weights, weighted values, and what they take back.

`softmax` makes the passes over all blocks of it.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from attention_jax.blocks.block_form import BlockForm
from attention_jax.blocks.heads import OfGroup, gathered
from attention_jax.blocks.numerics import (
    exponentials,
    finite_or_nan,
    finite_or_zero,
    hidden_rests,
    softmax_of_few,
    summed,
    sums_of_zeros,
    turned,
)
from attention_jax.dropout import keep_positions


@dataclass(frozen=True)
class AttentionRule(BlockForm):
    """One head's block of attention. The operands are the arrays of the mask and of the score, dropout's seed if it
    acts, query, key and value; for `term`, then the log-sum-exp."""

    @property
    def positional(self) -> bool:
        return self.mask_arrays == 0

    @property
    def relative(self) -> bool:
        mask = self.mask_of()
        return mask is not None and mask.relative

    def mask_of(self, operands=None):
        """The mask, or what of it does not depend on its arrays."""
        return jax.tree.unflatten(
            self.mask_tree, [None] * self.mask_arrays if operands is None else operands[: self.mask_arrays]
        )

    def unpack(self, operands):
        """(mask, score's arrays, seed, the rest, of which the query or the key is scaled)."""
        scores = self.mask_arrays + self.score_arrays
        seed = operands[scores] if self.rate else None
        query, key, *rest = operands[scores + (self.rate > 0) :]
        rest = [query * self.scales[0], key * self.scales[1], *rest]
        return self.mask_of(operands), operands[self.mask_arrays : scores], seed, rest

    def cleaned(self, operands):
        """As `unpack`, with 0 for what is not finite in query, key and value: see `dot_product._finite_rows`. Done to
        blocks, which are in the cache, it costs next to nothing."""
        mask, score, seed, (*arrays, lse) = self.unpack(operands)
        return mask, score, seed, [*map(finite_or_zero, arrays), lse]

    def columns_of(self, rows, S):
        mask = self.mask_of()
        return (0, S - 1) if mask is None else mask.columns_of(rows, S)

    def some_every(self, rows, columns, *operands):
        mask = self.mask_of(operands)
        some, every = (True, True) if mask is None else mask.some_every(rows, columns)
        return some, every & (columns[1] < self.keys) if self.padded else every

    def seen(self, block, mask, logits, hidden=-jnp.inf):
        """The logits, `hidden` where a key is not seen."""
        real = (block.columns < self.keys)[None, :] if self.padded else True
        seen = jnp.broadcast_to(real if mask is None else real & mask.at(block.rows, block.columns), logits.shape)
        if self.few:  # as one row, which XLA makes a faster loop of
            return jnp.where(seen.ravel(), logits.ravel(), hidden).reshape(logits.shape)
        return jnp.where(seen, logits, hidden)

    def marked(self, key, value, masked):
        """The key; by rows, one whose value is not finite is not either, so that no query need look for it. A lone one
        is left to `mark`, unless it is tiny."""
        if self.poisons(masked):
            return finite_or_nan(key)
        if self.marks or not self.by_rows:
            return key
        marks = jax.lax.stop_gradient(value - value)
        return key + (marks if key.shape == value.shape else jnp.sum(marks, axis=-1, keepdims=True))

    def scored(self, block, products, arrays):
        if self.scoreless:
            return products
        score = jax.tree.unflatten(self.score_tree, arrays)
        # what fills the last block stands where the last query or key does: elsewhere a score may have no gradient
        rows, columns = jnp.minimum(block.rows, self.queries - 1), jnp.minimum(block.columns, self.keys - 1)
        # finite: a score of -inf hides what overflows, too
        return hidden_rests(score.apply(finite_or_zero(products), block.head, rows, columns))

    def mark(self, value):
        """For the product of a query and a lone key: 0, but NaN if the value is not finite. YNNPACK looks at it slowly,
        beside the key; this is a product, of so small a share of it that the sum of the largest is finite."""
        total = jnp.einsum("sh,h->s", value, jnp.full(value.shape[1], 2.0**-20, value.dtype))
        return jax.lax.stop_gradient(total - total)[None, :]

    def logits(self, block, masked, mask, score, query, key):
        """`[t, s]`, -inf where a key is not seen."""
        products = self.without_hidden(block, masked, mask, self.products(query, key))
        logits = self.scored(block, products, score)
        return self.seen(block, mask, logits) if masked else logits

    def finite(self, products, value):
        """Whether these products, and by columns these values, are finite."""
        finite = jnp.isfinite(products)
        return finite if self.by_rows else finite & jnp.all(jnp.isfinite(value), axis=0)[None, :]

    def checked(self, block, masked, mask, logits, finite):
        """The logits, -inf where a key is not seen, NaN where it is and they are not of what is finite."""
        if self.checks_at_once(masked):
            checked = finite_or_nan(logits)
        else:
            shown = finite if self.scoreless else finite | (logits == -jnp.inf)
            checked = jnp.where(shown, logits, jnp.nan)
        return self.seen(block, mask, checked) if masked else checked

    def without_hidden(self, block, masked, mask, products):
        """With constants in place of what is hidden, so that it takes nothing back through a score, whatever its slope
        there."""
        return self.seen(block, mask, products, 0) if masked and not self.scoreless else products

    def dropped(self, block, weights, seed):
        if seed is None:
            return weights
        keep = keep_positions(seed, self.rate, block.rows, block.columns)
        return jnp.where(keep, weights / (1 - self.rate), 0)

    def product(self, letters, one, other, known=None):
        """`einsum`, in which "hs" is a key or a value, by rows "sh". An old XLA leaves a batch of small products to
        one core of a CPU, and divides it where a sum is fused with them; so one of zeros is, by rows of the smaller of
        both, by columns of the key or the value: the other, or `known`. They are NaN for what is not finite in it,
        which is for `Softmax.find` to find in any case."""
        letters = letters.replace("hs", "sh") if self.by_rows else letters
        if self.summed:
            return summed(letters, one, other)
        if letters == "th,sh->ts" and self.turns(len(one), len(other)):
            return jnp.einsum("th,hs->ts", one, turned(other), precision=self.precision)
        if letters == "ts,sh->th" and self.weights_turned:
            product = jnp.einsum("hs,st->ht", turned(other), turned(one), precision=self.precision)
            return jax.lax.optimization_barrier(product).T
        product = jnp.einsum(letters, one, other, precision=self.precision)
        if not self.many_small:
            return product
        first, second, (row, column) = letters.replace("->", ",").split(",")
        if self.by_rows and one.size < other.size:
            return product + sums_of_zeros(f"{first}->{row}", one)[:, None]
        names, known = (second, other) if known is None else ("hs", known)
        return product + sums_of_zeros(f"{names}->{column}", known)[None, :]

    def products(self, query, key, keys="hs"):
        """Of queries and keys, scaled, before it is asked whether they are finite."""
        return self.product(f"th,{keys}->ts", query, key) * self.scales[2]

    def over_queries(self, queries, scores, known, of_group):
        """The sum over the queries, for each key; `of_group`, over those of all heads that share it. XLA's fast product
        on a CPU wants its left side row by row, for which the smaller array is turned."""
        if of_group:
            queries, scores = gathered(queries), gathered(scores)
        if self.by_rows:
            total = self.product("st,th->hs", turned(scores), queries)
        else:
            total = self.product("ht,ts->hs", turned(queries), scores, known)
        return OfGroup(total) if of_group else total

    def guarded(self, rows, lse):
        return jnp.where((lse < jnp.inf)[:, None], rows, 0) if self.guards else rows

    def term(self, block, masked, *operands):
        """Weighted values, and the sum of the weights, which is 1 if the log-sum-exp, taken as given, is theirs."""
        mask, score, seed, (query, key, value, lse) = self.cleaned(operands)
        below = self.logits(block, masked, mask, score, query, key) - lse[:, None]
        weights = jnp.exp(jnp.where((lse < jnp.inf)[:, None], below, -jnp.inf))
        sums, total = self.product("ts,hs->th", self.dropped(block, weights, seed), value), weights.sum(axis=-1)
        sums = self.guarded(sums, lse)
        return sums / jnp.where(total == 0, 1, total)[:, None] if self.normalised else sums, total

    def transposed_tangent(self, block, masked, operands, moving, cotangents, of_group):
        """The transpose of `term`'s tangent: the backward pass (arXiv:2205.14135, appendix B.4)."""
        mask, score, seed, (query, key, value, lse) = self.cleaned(operands)
        d_output, d_total = cotangents.get(0), cotangents.get(1)
        still = self.lone and d_total is None  # its weight is 1, whatever the logit: that takes nothing back
        if d_output is not None:
            d_output = self.guarded(d_output, lse)

        *_, (raw_query, raw_key, raw_value, _) = self.unpack(operands)
        poisons = self.poisons(masked)
        if poisons:
            key, value = finite_or_nan(raw_key), finite_or_nan(raw_value)
        as_before = self.few or self.alone  # made as in the forward pass, and so once for both where nothing loops
        found = _product(self, raw_query, self.marked(raw_key, raw_value, masked) if as_before or poisons else raw_key)
        if self.marks:
            found += self.mark(raw_value)
        products = self.without_hidden(block, masked, mask, found)
        logits, back_through_score = jax.vjp(partial(self.scored, block), products, score)
        if masked:
            logits = self.seen(block, mask, logits)
        if as_before:
            raw = self.scored(block, found, score)
            checked = self.checked(block, masked, mask, raw, self.finite(found, raw_value))
            weights = _own_weights(self, checked, self.seen(block, mask, raw) if masked else raw, logits, lse)
        else:
            # at most 1, where these products are rounded otherwise than those the log-sum-exp was made of; and where a
            # row is NaN, of which the cotangents are 0
            below = logits - lse[:, None]
            weights = jnp.exp(jnp.where(below < 0, below, 0))
        d_weights = 0 if d_output is None else self.dropped(block, self.product("th,hs->ts", d_output, value), seed)
        hides = masked or not self.scoreless

        def shown(x):  # a hidden weight is 0, but what it is multiplied with may have overflowed, or be NaN
            if poisons:
                return jnp.where((lse < jnp.inf)[:, None], x, 0)
            return jnp.where(logits == -jnp.inf, 0, x) if hides else x

        if self.normalised:
            lost = jnp.sum(shown(weights * d_weights), axis=-1)
            d_total = -lost if d_total is None else d_total - lost
        if d_total is not None:
            d_weights += d_total[:, None]
        d_logits, d_score = back_through_score(shown(weights * d_weights))
        if not self.scoreless:  # of what is hidden, it may have a slope that is not finite
            d_logits = shown(d_logits)
        d_logits = d_logits * self.scales[2]

        # a sum of zeros is fused with a product if no other asks for the same; in the tiles of a loop that did not pay
        apart = jnp.abs if self.first or not masked else jnp.asarray
        first = len(operands) - 4
        scores = range(self.mask_arrays, self.mask_arrays + self.score_arrays)
        gradients = {} if still else dict(zip(scores, d_score, strict=True))
        if first in moving and not still:
            d_query = self.product("ts,hs->th", d_logits, key) * self.scales[0]
            gradients[first] = shown(d_query) if poisons else d_query
        if first + 1 in moving and not still:
            gradients[first + 1] = self.over_queries(query, d_logits * self.scales[1], apart(key), of_group)
        if first + 2 in moving:
            weights = self.dropped(block, weights, seed)
            gradients[first + 2] = jnp.zeros_like(value)
            if d_output is not None:
                gradients[first + 2] = self.over_queries(d_output, weights, apart(value), of_group)
        # the mask's own arrays, if they are numbers, have none
        return [gradients[index] if index in gradients else jnp.zeros_like(operands[index]) for index in moving]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(rule, query, key):
    """As `Softmax.find` makes it, so that XLA makes it once for both where nothing loops; it takes nothing back through
    what is not finite."""
    return rule.products(query, key)


@_product.defjvp
def _product_jvp(rule, primals, tangents):
    query, key = map(finite_or_zero, primals)
    return _product(rule, *primals), jax.jvp(rule.products, (query, key), tangents)[1]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _own_weights(rule, checked, raw, logits, lse):
    """exp(logits - lse), as `Softmax.find` makes them, once for both as above; 0 in a row that is not finite."""
    if rule.few:
        weights = softmax_of_few(checked)
        return finite_or_zero(weights.ravel()).reshape(weights.shape)
    _, weights, total = exponentials(checked, raw)
    return finite_or_zero(weights / total[:, None])


@_own_weights.defjvp
def _own_weights_jvp(rule, primals, tangents):
    weights, (*_, d_logits, d_lse) = _own_weights(rule, *primals), tangents
    return weights, weights * (d_logits - d_lse[:, None])
