"""A sum over what goes round a ring of devices, which `jvp` and transposition turn into another such sum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attention_jax.blocks.sweep import accumulator
from attention_jax.operation import Operation, tangent_of, transpose_of


class Ring(NamedTuple):
    """The devices along a mesh axis, each of which hands on to the next what goes round."""

    axis: str
    size: int

    def onward(self, arrays):
        """What the device before this one has handed on."""
        turn = [(device, (device + 1) % self.size) for device in range(self.size)]
        return lax.ppermute(arrays, self.axis, turn)

    def round(self, meet: Callable, found: Any, operands: Sequence, goes: Sequence[bool]) -> Any:
        """`found = meet(found, owner, *operands)` for each device as owner, whose operands those that go are."""

        def step(carry, turn):
            found, moved = carry
            owner, moving = (lax.axis_index(self.axis) - turn) % self.size, iter(moved)
            here = [next(moving) if go else operand for operand, go in zip(operands, goes, strict=True)]
            return (meet(found, owner, *here), self.onward(moved)), None

        moved = [operand for operand, go in zip(operands, goes, strict=True) if go]
        (found, _), _ = lax.scan(step, (found, moved), jnp.arange(self.size))
        return found


@dataclass(frozen=True)
class RingSum(Operation):
    """The sum of `rule.term(owner, *operands)` over a round, in float32 or better.

    An operand stays with its device, or goes round: a term has the owner's. So does an output. One that stays is a
    device's, summed over all owners that it meets; one that goes is an owner's, summed over all devices, each of which
    hands it on with its term, so that it is at home again in the end. The tangent is such a sum, too, and so is the
    transpose, in which cotangents go where the operands went.
    """

    rule: Any
    ring: Ring
    goes: tuple[bool, ...]
    outputs_go: tuple[bool, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]

    def run(self, *operands):
        def meet(sums, owner, *here):
            sums = [total + term for total, term in zip(sums, self.rule.term(owner, *here), strict=True)]
            return [self.ring.onward(each) if go else each for each, go in zip(sums, self.outputs_go, strict=True)]

        zeros = [jnp.zeros(output.shape, accumulator(output.dtype)) for output in self.outputs]
        sums = self.ring.round(meet, zeros, operands, self.goes)
        return [each.astype(output.dtype) for each, output in zip(sums, self.outputs, strict=True)]

    def jvp(self, primals, tangents):
        moving = tuple(index for index, tangent in enumerate(tangents) if tangent is not None)
        return self(*primals), self.tangent(moving)(*primals, *(tangents[index] for index in moving))

    def tangent(self, moving: tuple[int, ...]) -> "RingSum":
        """The sum's tangent; operands are those of the sum, and the tangents of those in `moving`."""
        rule = Tangent(self.rule, len(self.goes), moving)
        return replace(self, rule=rule, goes=self.goes + tuple(self.goes[index] for index in moving))

    def transpose(self, cotangents, operands, linear):
        moving = tuple(index for index, ours in enumerate(linear) if ours)
        known = tuple(index for index, ours in enumerate(linear) if not ours)
        given = tuple(index for index, cotangent in enumerate(cotangents) if cotangent is not None)
        types = tuple(jax.ShapeDtypeStruct(operands[index].shape, operands[index].dtype) for index in moving)
        turned = replace(
            self,
            rule=Transposed(self.rule, moving, types, given),
            goes=(*(self.goes[index] for index in known), *(self.outputs_go[index] for index in given)),
            outputs_go=tuple(self.goes[index] for index in moving),
            outputs=types,
        )
        results = iter(turned(*(operands[index] for index in known), *(cotangents[index] for index in given)))
        return [next(results) if ours else None for ours in linear]

    def batch(self, operands, axes):
        size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
        outputs = tuple(jax.ShapeDtypeStruct((size, *output.shape), output.dtype) for output in self.outputs)
        mapped = replace(self, rule=Mapped(self.rule, tuple(axes), size), outputs=outputs)
        return mapped(*operands), [0] * len(outputs)


@dataclass(frozen=True)
class Tangent:
    """The tangent of a rule's term; the operands' tangents follow the operands."""

    rule: Any
    count: int  # operands of `rule`
    moving: tuple[int, ...]  # those that have tangents

    def term(self, owner, *operands):
        primals, tangents = operands[: self.count], operands[self.count :]
        return tangent_of(partial(self.rule.term, owner), primals, self.moving, tangents)


@dataclass(frozen=True)
class Transposed:
    """The transpose of a rule's term in its linear operands: the others come first, then the cotangents `given`."""

    rule: Any
    moving: tuple[int, ...]
    types: tuple[jax.ShapeDtypeStruct, ...]
    given: tuple[int, ...]

    def term(self, owner, *operands):
        split = len(operands) - len(self.given)
        known, cotangents = operands[:split], operands[split:]
        return transpose_of(partial(self.rule.term, owner), known, self.moving, self.types, self.given, cotangents)


@dataclass(frozen=True)
class Mapped:
    """A rule's term under `vmap`."""

    rule: Any
    axes: tuple[int | None, ...]
    size: int

    def term(self, owner, *operands):
        return jax.vmap(self.rule.term, (None, *self.axes), axis_size=self.size)(owner, *operands)
