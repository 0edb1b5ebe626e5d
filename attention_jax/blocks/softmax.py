"""Attention as passes over blocks of it.

The forward pass is the online softmax of Milakov and Gimelshein (2018, arXiv:1805.02867), as in FlashAttention
(arXiv:2205.14135). With the log-sum-exp it leaves behind, each weight is exp(logit - lse), and the output's tangent is
a plain sum over blocks,

    d_output = sum_s weight (d_logit value + d_value) - d_lse output,    d_lse = sum_s weight d_logit,

which `block_sum.BlockSum` differentiates, transposes and maps, to any order. Where a block holds all keys, its own sums
may give d_lse output as well. Only the first backward pass, which training waits for, is written by hand.
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp

from attention_jax.blocks.block_sum import BlockSum
from attention_jax.blocks.fold import Fold
from attention_jax.blocks.numerics import (
    exponentials,
    exponentials_of_few,
    finite_or_nan,
    finite_or_zero,
    softmax_of_few,
)
from attention_jax.blocks.sweep import reordered


@dataclass(frozen=True)
class Softmax(Fold):
    """Attention's output `[B, T, K, G, Hv]`, without K or G if that is 1, and log-sum-exp `[B, K, G, T]`, in float32 or
    better: the gradient is a difference of near values, which a rounded output would spoil."""

    carried = ("xbkgt", "xbkgt", "xbkgt.")  # the highest logit, the sum of the weights, that of the weighted values

    def run(self, *operands):
        value, letters = operands[-1], self.axes[-1]
        if self.rule.by_rows or not letters.endswith("."):  # marked, or by columns
            return super().run(*operands)
        nans = jnp.sum(value - value, axis=-1)
        with_nans = replace(self, axes=(*self.axes, letters.replace("s", "").replace(".", "s")))
        return Fold.run(with_nans, *operands, jnp.moveaxis(nans, letters.index("s"), -1))

    def nothing(self):
        dtype, lengths = self.outputs[1].dtype, [self.grid.size(letter) for letter in "xbkgt"]
        peak, total = jnp.full(lengths, jnp.finfo(dtype).min, dtype), jnp.zeros(lengths, dtype)
        return [peak, total, jnp.zeros((*lengths, self.outputs[0].shape[-1]), dtype)]

    def finish(self, found):
        peak, total, sums = found
        lse, divisor = _log_sum(peak, total)
        return [jnp.moveaxis(sums / divisor[..., None], -2, 2), lse, total][: len(self.outputs)]

    def find(self, block, masked, *operands):
        rule = self.rule
        mask, score, seed, (query, key, value, *nans) = rule.unpack(operands)
        keys = "sh" if nans else "hs"
        if nans:  # of all keys at once: XLA finds them slowly in the pieces of a block where those are by rows
            key += nans[0][:, None]
        key = rule.marked(key, value, masked)
        products = rule.products(query, key, keys)
        if rule.marks:
            products += rule.mark(value)
        logits = rule.scored(block, products, score)
        finite = jnp.isfinite(products) if nans else rule.finite(products, value)
        checked = rule.checked(block, masked, mask, logits, finite)
        if rule.lone and rule.scoreless and seed is None:
            weights = 1 + (logits - logits)  # where they are finite the value is, too
            if masked:
                weights, value = rule.seen(block, mask, weights, 0), finite_or_zero(value)
            return checked[:, 0], jnp.ones_like(weights[:, 0]), rule.product("ts,hs->th", weights, value)
        logits = rule.seen(block, mask, logits) if masked else logits
        value = finite_or_nan(value) if rule.poisons(masked) else finite_or_zero(value)
        if rule.softmax_at_once:
            weights = softmax_of_few(checked)
            highest = jnp.max(weights, axis=-1)  # 1 over their sum: to ask for that one again would make it twice
            peak = jnp.where(highest == 0, -jnp.inf, -jnp.min(-checked, axis=-1) - jnp.log(highest))
            # NaN, where they are, also if all of a row are dropped
            total = jnp.ones_like(peak) if seed is None else 1 + (highest - highest)
        elif rule.few:
            weights, total = exponentials_of_few(checked)
            peak = -jnp.min(-checked, axis=-1)  # to ask for their maximum would keep YNNPACK from the exponentials
        else:
            peak, weights, total = exponentials(checked, logits)
        sums = rule.product(f"ts,{keys}->th", rule.dropped(block, weights, seed), value)
        if rule.poisons(masked):
            total += jnp.sum(sums - sums, axis=-1)
        return peak, total, sums

    def merge(self, one, other):
        peak = jnp.maximum(one[0], other[0])
        shrink, shrink_other = jnp.exp(one[0] - peak), jnp.exp(other[0] - peak)
        total = one[1] * shrink + other[1] * shrink_other
        return [peak, total, one[2] * shrink[..., None] + other[2] * shrink_other[..., None]]

    def jvp(self, primals, tangents):
        channels = self.outputs[0].shape[-1]
        grid = self.grid.derived()
        rule = replace(self.rule, derived=True).fitted(grid)
        (primals, axes), (tangents, _) = (in_order(rule, each, self.axes) for each in (primals, tangents))
        beside = replace(self, rule=rule, grid=grid, axes=axes)
        output, lse, *totals = (beside.with_totals() if rule.totals else beside)(*primals)
        # not where a row sees nothing, or what is not finite: it takes nothing back, not even NaN
        finite = totals[0] > 0.5 if totals else jnp.isfinite(lse)
        given = jnp.where(finite, lse, jnp.inf)  # so that its weights are 0
        sums = BlockSum(rule, grid, (*axes, self.out_axes[1]), self.out_axes[:2], self.outputs[:2])
        moving = tuple(index for index, tangent in enumerate(tangents) if tangent is not None)
        d_output, d_lse = sums.tangent(moving)(*primals, given, *(tangents[index] for index in moving))
        # of few keys without axes of length 1, and multiplied heads first, as in `term`: so nothing is copied for it
        letters = self.out_axes[0][:-1] if rule.few else "xbtkg"
        heads_first = "".join(a for a in "xbkgt" if a in letters)
        by_row, shape = ([grid.length(a) for a in each] for each in (heads_first, letters))
        rows = jnp.moveaxis(finite.reshape(by_row), -1, letters.index("t"))[..., None]
        d_output, d_lse = d_output.reshape(*shape, channels), jnp.where(finite, d_lse, 0)
        if not rule.normalised:
            # as a product of matrices, whose transpose XLA runs faster on a CPU than the sum of products it is
            order, known = letters, output.reshape(d_output.shape)
            if rule.few:
                order, known = heads_first, jnp.moveaxis(known, letters.index("t"), -2)
            product = f"{heads_first},{order}h->{letters}h"
            lost = jnp.einsum(product, d_lse.reshape(by_row), known, precision="highest")
            d_output -= jnp.where(rows, lost, 0) if rule.guards else lost
        if not rule.guards:
            d_output = jnp.where(rows, d_output, 0)
        tangents = d_output.reshape(output.shape), d_lse, *map(jnp.zeros_like, totals)
        return (output, lse, *totals)[: len(self.outputs)], tangents[: len(self.outputs)]

    def with_totals(self):
        """The same, with the sum of each row's exponentials as third output: at least 1, unless the row sees nothing,
        or what is not finite."""
        axes, outputs = self.out_axes[:2], self.outputs[:2]
        return replace(self, out_axes=(*axes, axes[1]), outputs=(*outputs, outputs[1]))


def in_order(rule, operands, axes):
    """Operands that end in key and value, or in None for a tangent that is 0, and their axes, with these two as blocks
    take them: `"xbk.s"`. By rows, blocks put them in order themselves."""
    if rule.by_rows:
        return operands, axes
    last = zip(axes[-2:], operands[-2:], strict=True)
    letters, arrays = zip(*((a, x) if x is None else reordered("xbk.s", a, x) for a, x in last), strict=True)
    return (*operands[:-2], *arrays), (*axes[:-2], *letters)


def _log_sum(peak, total):
    """The log-sum-exp, and the total with 1 in place of 0, where there is no weight."""
    blind = total == 0
    total = jnp.where(blind, 1, total)
    return jnp.where(blind, -jnp.inf, peak + jnp.log(total)), total
