"""A sum over blocks, which `jvp` and transposition turn into another sum over blocks."""

import operator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax

from attention_jax.blocks.sweep import SamePairs, Sweep, accumulator, reordered
from attention_jax.operation import tangent_of, transpose_of


@dataclass(frozen=True)
class BlockSum(Sweep):
    """The sum of `rule.term` over all blocks.

    Its tangent is again such a sum, and so is its transpose: differentiated any number of times, in either mode, it
    remains a loop over blocks that keeps none of them.
    """

    def run(self, *operands):
        of_keys = ["s" in axes for axes in self.out_axes]
        term = self.rule.term
        if isinstance(self.rule, Transposed) and self.grid.length("g") > 1:
            term = partial(term, of_group=True)

        def step(start, carry, take):
            def terms(tiles):
                zeros = self.zeros(operands)
                whole = [zero.reshape(shape) for zero, shape in zip(zeros, self.block_shapes(), strict=True)]
                terms = self.by_tile(term, self.axes, self.out_axes, start, take(), tiles, whole, operator.add)
                return [term.reshape(zero.shape) for term, zero in zip(terms, zeros, strict=True)]

            terms = self.by_kind(start, take, terms)
            carry = [c + t for c, t in zip(carry, _where(terms, of_keys, False), strict=True)]
            return carry, _where(terms, of_keys, True)

        return self.loop(operands, lambda: _where(self.zeros(operands), of_keys, False), step, lambda carry: carry)

    def jvp(self, primals, tangents):
        moving = tuple(index for index, tangent in enumerate(tangents) if tangent is not None)
        return self(*primals), self.tangent(moving)(*primals, *(tangents[index] for index in moving))

    def tangent(self, moving: tuple[int, ...]) -> "BlockSum":
        """The sum's tangent; operands are those of the sum, and the tangents of those in `moving`."""
        rule = Tangent(self.rule, len(self.axes), moving)
        return replace(self, rule=rule, axes=self.axes + tuple(self.axes[index] for index in moving))

    def transpose(self, cotangents, operands, linear):
        moving = tuple(index for index, ours in enumerate(linear) if ours)
        given = tuple(index for index, cotangent in enumerate(cotangents) if cotangent is not None)
        linear_ones = [(self.axes[index], operands[index]) for index in moving]
        types = tuple((*self.grid.head_shape(axes, x.shape), accumulator(x.dtype)) for axes, x in linear_ones)
        rule = Transposed(self.rule, len(self.axes), moving, types, given)
        known = [(self.axes[index], operands[index]) for index, ours in enumerate(linear) if not ours]
        known += [(self.out_axes[index], cotangents[index]) for index in given]
        if self.grid.steps("t") == 1 and not self.rule.first:
            # by columns, XLA transposes a lone block while it cuts it, slowly on a CPU
            known = [reordered("xbkg", *each) for each in known]
        axes, arrays = zip(*known, strict=True)
        turned = replace(
            self,
            rule=rule,
            axes=axes,
            out_axes=tuple(self.axes[index] for index in moving),
            outputs=tuple(jax.ShapeDtypeStruct(operands[index].shape, operands[index].dtype) for index in moving),
        )
        results = iter(turned(*arrays))
        return [next(results) if ours else None for ours in linear]


@dataclass(frozen=True)
class _Derived(SamePairs):
    count: int  # operands of `rule`
    moving: tuple[int, ...]  # those that have tangents, or are linear


@dataclass(frozen=True)
class Tangent(_Derived):
    """The tangent of a rule's term; the operands' tangents follow the operands."""

    def term(self, block, masked, *operands):
        operands, tangents = operands[: self.count], operands[self.count :]
        return tangent_of(partial(self.rule.term, block, masked), operands, self.moving, tangents)


@dataclass(frozen=True)
class Transposed(_Derived):
    """The transpose of a rule's term in its linear operands: the others come first, then the cotangents `given`."""

    types: tuple[tuple[str, tuple[int, ...], Any], ...]
    """Axes, shape in a whole block, and dtype of the linear ones."""
    given: tuple[int, ...]

    def term(self, block, masked, *operands, of_group=False):
        by_hand = getattr(self.rule.rule, "transposed_tangent", None) if isinstance(self.rule, Tangent) else None
        split = self.count - len(self.moving)
        known, cotangents = operands[:split], operands[split:]
        if by_hand and self.moving == tuple(range(self.rule.count, self.count)):
            given = dict(zip(self.given, cotangents, strict=True))
            return by_hand(block, masked, known, self.rule.moving, given, of_group)

        types = [jax.ShapeDtypeStruct(block.shape(*of_block), dtype) for *of_block, dtype in self.types]
        term = partial(self.rule.term, block, masked)
        return transpose_of(term, known, self.moving, types, self.given, cotangents)


def _where(values, which, wanted):
    return [value for value, marked in zip(values, which, strict=True) if marked == wanted]
