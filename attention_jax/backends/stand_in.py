"""A fast function that stands in for a slow one where it gives the same: its value, and its backward pass.

Foreign kernels have a gradient and no other derivative, and take only inputs that are finite. Here they keep what they
are fast at; forward mode, higher orders and what is not finite are the slow function's, which has them all.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from attention_jax.operation import Operation, of_moving, tangent_of, vary_like


@dataclass(frozen=True)
class StandIn(Operation):
    """`fast(*operands)` where all that floats is finite, else `slow(*operands)`; both return one array."""

    fast: Callable
    slow: Callable
    widen: Callable
    """What makes a batch dimension of a new axis: operands, the axis of each or None, and its size, to operands."""
    platform: str | None
    """What `fast` can be compiled for; None for any."""
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    partitioned: bool = False

    def run(self, *operands):
        return [self.either(self.fast, self.slow, operands)]

    def either(self, fast: Callable, slow: Callable, operands):
        """`fast` where the platform and what floats let it."""
        operands = [vary_like(operand, operands) for operand in operands]

        def checked(*operands):
            floats = [operand for operand in operands if jnp.issubdtype(operand.dtype, jnp.floating)]
            finite = jnp.stack([jnp.all(jnp.isfinite(operand)) for operand in floats]).all()
            return lax.cond(finite, fast, slow, *operands)

        if self.platform is None:
            return checked(*operands)
        return lax.platform_dependent(*operands, default=slow, **{self.platform: checked})

    def jvp(self, primals, tangents):
        moving = tuple(index for index, tangent in enumerate(tangents) if tangent is not None)
        differential = Differential(self, moving, self.outputs)
        return self(*primals), differential(*primals, *(tangents[index] for index in moving))

    def batch(self, operands, axes):
        V = next(operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None)
        wide = replace(self, outputs=tuple(_wide(output, V) for output in self.outputs))
        return wide(*self.widen(operands, axes, V)), [0]


@dataclass(frozen=True)
class _Derived(Operation):
    of: StandIn
    moving: tuple[int, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]

    @property
    def partitioned(self):
        return self.of.partitioned

    @abstractmethod
    def shapes(self, of: StandIn, primals) -> list[tuple[int, ...]]:
        """Of the operands that follow the primal ones."""

    @abstractmethod
    def over(self, of: StandIn, primals) -> "_Derived":
        """The same for another stand-in and its operands."""

    def split(self, operands):
        """The primal operands, and what follows them."""
        last = len(operands) - (len(self.moving) if isinstance(self, Differential) else 1)
        return operands[:last], operands[last:]

    def batch(self, operands, axes):
        V = next(operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None)
        count = len(self.split(operands)[0])
        whole = {*self.moving, *range(count, len(operands))}  # what has a tangent or is one gets the new axis
        operands = [
            jnp.broadcast_to(operand, (V, *operand.shape)) if axis is None and index in whole else operand
            for index, (operand, axis) in enumerate(zip(operands, axes, strict=True))
        ]
        axes = [0 if axis is None and index in whole else axis for index, axis in enumerate(axes)]
        of = replace(self.of, outputs=tuple(_wide(output, V) for output in self.of.outputs))
        widened = self.of.widen(operands[:count], axes[:count], V)
        others = [jnp.moveaxis(operand, axis, 0) for operand, axis in zip(operands[count:], axes[count:], strict=True)]
        others = [other.reshape(shape) for other, shape in zip(others, self.shapes(of, widened), strict=True)]
        wide = self.over(of, widened)
        results = zip(wide(*widened, *others), self.outputs, strict=True)
        return [result.reshape(V, *output.shape) for result, output in results], [0] * len(self.outputs)


class Differential(_Derived):
    """The tangent of a stand-in, by the slow function; operands are its own, and the tangents of the moving ones."""

    def shapes(self, of, primals):
        return [primals[index].shape for index in self.moving]

    def over(self, of, primals):
        return replace(self, of=of, outputs=of.outputs)

    def run(self, *operands):
        primals, tangents = self.split(operands)
        return [tangent_of(self.of.slow, primals, self.moving, tangents)]

    def jvp(self, primals, tangents):
        return self(*primals), _tangents(self.run, primals, tangents)

    def transpose(self, cotangents, operands, linear):
        primals, _ = self.split(operands)
        types = tuple(jax.ShapeDtypeStruct(operands[i].shape, operands[i].dtype) for i in self.moving)
        results = iter(Pullback(self.of, self.moving, types)(*primals, cotangents[0]))
        return [next(results) if ours else None for ours in linear]


class Pullback(_Derived):
    """The backward pass of a stand-in; operands are its own, and the cotangent of its output."""

    def shapes(self, of, primals):
        return [of.outputs[0].shape]

    def over(self, of, primals):
        moving = (primals[index] for index in self.moving)
        return replace(self, of=of, outputs=tuple(jax.ShapeDtypeStruct(each.shape, each.dtype) for each in moving))

    def run(self, *operands):
        return self.of.either(partial(self.pull, self.of.fast), partial(self.pull, self.of.slow), operands)

    def pull(self, fn: Callable, *operands):
        primals, (cotangent,) = self.split(operands)
        fn, moving = of_moving(fn, primals, self.moving)
        return jax.vjp(fn, *moving)[1](cotangent)

    def jvp(self, primals, tangents):
        return self(*primals), _tangents(partial(self.pull, self.of.slow), primals, tangents)

    def transpose(self, cotangents, operands, linear):
        primals, (cotangent,) = self.split(operands)
        known = [
            jnp.zeros(primals[index].shape, primals[index].dtype) if given is None else given
            for index, given in zip(self.moving, cotangents, strict=True)
        ]
        output = (jax.ShapeDtypeStruct(cotangent.shape, cotangent.dtype),)
        return [None] * len(primals) + list(Differential(self.of, self.moving, output)(*primals, *known))


def _tangents(fn: Callable, primals, tangents):
    moving = [index for index, tangent in enumerate(tangents) if tangent is not None]
    return list(tangent_of(fn, primals, moving, [tangents[index] for index in moving]))


def _wide(output: jax.ShapeDtypeStruct, size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size, *output.shape), output.dtype)
