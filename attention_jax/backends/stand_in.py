"""A fast function that stands in for a slow one where it gives the same: its value, and its backward pass.

Foreign kernels have a gradient and no other derivative, and take only inputs that are finite. Here they keep what they
are fast at; forward mode, higher orders and what is not finite are the slow function's, which has them all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from attention_jax.operation import Operation, vary_like


@dataclass(frozen=True)
class StandIn(Operation):
    """`fast(*operands)` where all that floats is finite, else `slow(*operands)`; both return one array."""

    fast: Callable
    slow: Callable
    outputs: tuple[jax.ShapeDtypeStruct, ...]

    def run(self, *operands):
        return [_if_finite(self.fast, self.slow, *operands)]

    def jvp(self, primals, tangents):
        moving = tuple(index for index, tangent in enumerate(tangents) if tangent is not None)
        differential = Differential(self, moving, self.outputs)
        return self(*primals), differential(*primals, *(tangents[index] for index in moving))

    def batch(self, operands, axes):
        outputs = _batched(self.outputs, operands, axes)
        wide = replace(self, fast=Mapped(self.fast, tuple(axes)), slow=Mapped(self.slow, tuple(axes)), outputs=outputs)
        return wide(*operands), [0]


@dataclass(frozen=True)
class _Derived(Operation):
    of: StandIn
    moving: tuple[int, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]

    def split(self, operands):
        """The primal operands, and what follows them."""
        last = len(operands) - (len(self.moving) if isinstance(self, Differential) else 1)
        return operands[:last], operands[last:]

    def partial(self, fn: Callable, primals) -> tuple[Callable, Sequence]:
        """`fn` of the moving operands alone, and these."""

        def of_moving(*moved):
            operands = list(primals)
            for index, value in zip(self.moving, moved, strict=True):
                operands[index] = value
            return fn(*operands)

        return of_moving, [primals[index] for index in self.moving]

    def batch(self, operands, axes):
        V = next(operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None)
        operands = [
            jnp.broadcast_to(operand, (V, *operand.shape)) if axis is None else jnp.moveaxis(operand, axis, 0)
            for operand, axis in zip(operands, axes, strict=True)
        ]
        primals, _ = self.split(operands)
        zeros = (0,) * len(primals)
        of = replace(
            self.of,
            fast=Mapped(self.of.fast, zeros),
            slow=Mapped(self.of.slow, zeros),
            outputs=_batched(self.of.outputs, primals, zeros),
        )
        wide = replace(self, of=of, outputs=_batched(self.outputs, primals, zeros))
        return wide(*operands), [0] * len(self.outputs)


class Differential(_Derived):
    """The tangent of a stand-in, by the slow function; operands are its own, and the tangents of the moving ones."""

    def run(self, *operands):
        primals, tangents = self.split(operands)
        fn, moving = self.partial(self.of.slow, primals)
        return [jax.jvp(fn, tuple(moving), tuple(tangents))[1]]

    def jvp(self, primals, tangents):
        return self(*primals), _tangents(self.run, primals, tangents)

    def transpose(self, cotangents, operands, linear):
        primals, _ = self.split(operands)
        types = tuple(jax.ShapeDtypeStruct(operands[i].shape, operands[i].dtype) for i in self.moving)
        results = iter(Pullback(self.of, self.moving, types)(*primals, cotangents[0]))
        return [next(results) if ours else None for ours in linear]


class Pullback(_Derived):
    """The backward pass of a stand-in; operands are its own, and the cotangent of its output."""

    def run(self, *operands):
        def by(fn):
            def pull(*operands):
                primals, (cotangent,) = self.split(operands)
                of_moving, moving = self.partial(fn, primals)
                return jax.vjp(of_moving, *moving)[1](cotangent)

            return pull

        return _if_finite(by(self.of.fast), by(self.of.slow), *operands)

    def jvp(self, primals, tangents):
        def slowly(*operands):
            operands, (cotangent,) = self.split(operands)
            of_moving, moving = self.partial(self.of.slow, operands)
            return jax.vjp(of_moving, *moving)[1](cotangent)

        return self(*primals), _tangents(slowly, primals, tangents)

    def transpose(self, cotangents, operands, linear):
        primals, (cotangent,) = self.split(operands)
        known = [
            jnp.zeros(primals[index].shape, primals[index].dtype) if given is None else given
            for index, given in zip(self.moving, cotangents, strict=True)
        ]
        output = (jax.ShapeDtypeStruct(cotangent.shape, cotangent.dtype),)
        return [None] * len(primals) + list(Differential(self.of, self.moving, output)(*primals, *known))


@dataclass(frozen=True)
class Mapped:
    """`jax.vmap` of a function; equal ones are equal, so that they are compiled once."""

    fn: Callable
    axes: tuple[int | None, ...]

    def __call__(self, *operands):
        return jax.vmap(self.fn, self.axes)(*operands)


def _if_finite(fast: Callable, slow: Callable, *operands) -> Any:
    floats = [operand for operand in operands if jnp.issubdtype(operand.dtype, jnp.floating)]
    finite = jnp.stack([jnp.all(jnp.isfinite(operand)) for operand in floats]).all()
    return lax.cond(finite, fast, slow, *(vary_like(operand, operands) for operand in operands))


def _tangents(fn: Callable, primals, tangents):
    moving = [index for index, tangent in enumerate(tangents) if tangent is not None]

    def of_moving(*moved):
        operands = list(primals)
        for index, value in zip(moving, moved, strict=True):
            operands[index] = value
        return list(fn(*operands))

    given = tuple(primals[index] for index in moving), tuple(tangents[index] for index in moving)
    return jax.jvp(of_moving, *given)[1]


def _batched(outputs, operands, axes) -> tuple[jax.ShapeDtypeStruct, ...]:
    V = next(operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None)
    return tuple(jax.ShapeDtypeStruct((V, *output.shape), output.dtype) for output in outputs)
