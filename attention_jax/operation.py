"""Operations that know their own derivative, transpose and batched form.

`jax.custom_vjp` gives up forward mode, and `jax.custom_jvp` leaves the backward pass to JAX's own transposition, which
cannot turn a loop round. An `Operation` says all of it, as a JAX primitive does, and so composes with every
transformation, to any order.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


class Operation(ABC):
    """A function from arrays to a list of arrays; subclasses are hashable, and equal ones are compiled once."""

    outputs: Sequence[jax.ShapeDtypeStruct]
    """What it returns."""

    @property
    def partitioned(self) -> bool:
        """Whether `run` holds what has its own rule for being spread over devices, as a kernel of cuDNN's does."""
        return False

    def __call__(self, *operands) -> list[jax.Array]:
        operands = tuple(vary_like(operand, operands) for operand in operands)
        return _primitive.bind(*operands, operation=self, holds=_partitioned() if self.partitioned else None)

    @abstractmethod
    def run(self, *operands) -> Sequence[jax.Array]:
        """The function itself, in JAX."""

    @abstractmethod
    def jvp(self, primals, tangents) -> tuple[Sequence, Sequence]:
        """Outputs and their tangents, linear in `tangents`; a tangent that is None is 0."""

    def transpose(self, cotangents, operands, linear: Sequence[bool]) -> list:
        """Cotangents of the operands marked linear, None for the others; a cotangent that is None is 0.

        In place of a linear operand stands its shape and dtype.
        """
        raise NotImplementedError(f"{type(self).__name__} is not linear in any operand")

    @abstractmethod
    def batch(self, operands, axes: Sequence[int | None]) -> tuple[Sequence, Sequence[int]]:
        """Outputs under `vmap` with these axes of the operands, and where the outputs' new axes are."""


def of_moving(fn: Callable, operands: Sequence, moving: Sequence[int]) -> tuple[Callable, Sequence]:
    """`fn` of the operands that move alone, and these."""

    def alone(*moved):
        everything = list(operands)
        for index, value in zip(moving, moved, strict=True):
            everything[index] = value
        return fn(*everything)

    return alone, [operands[index] for index in moving]


def tangent_of(fn: Callable, primals: Sequence, moving: Sequence[int], tangents: Sequence):
    """The tangent of what `fn` returns; those of the primals in `moving` are given."""
    fn, moved = of_moving(fn, primals, moving)
    return jax.jvp(fn, tuple(moved), tuple(tangents))[1]


def transpose_of(
    fn: Callable, known: Sequence, moving: Sequence[int], types: Sequence, given: Sequence[int], cotangents: Sequence
) -> Sequence:
    """What the operands of `fn` in `moving`, of these types, in which it is linear, take back from those of its outputs
    that are `given` cotangents; the other operands are `known`."""

    def alone(*moved):
        known_left, moved_left = iter(known), iter(moved)
        operands = [next(moved_left if index in moving else known_left) for index in range(len(known) + len(moved))]
        outputs = fn(*operands)
        return [outputs[index] for index in given]

    return jax.linear_transpose(alone, *types)(list(cotangents))


def vary_like(array, operands) -> jax.Array:
    """`array`, made to vary over the mesh axes of the operands, as `jax.shard_map` wants it of what a loop carries."""
    return vary(array, frozenset().union(*map(varying, operands)))


def vary(array, axes: frozenset) -> jax.Array:
    """`array`, made to vary over these mesh axes, too."""
    axes = axes - varying(array)
    if not axes:
        return array
    return lax.pcast(array, tuple(axes), to="varying") if hasattr(lax, "pcast") else lax.pvary(array, tuple(axes))  # type: ignore[attr-defined]


def varying(array) -> frozenset:
    """The mesh axes over which it varies, inside `jax.shard_map` with its checks."""
    return axes_of(jax.typeof(array))


def axes_of(aval) -> frozenset:
    """The same, of a type."""
    return aval.vma if hasattr(aval, "vma") else aval.mat.varying  # before and after jax 0.10


@cache
def _partitioned():
    """Such a thing, never run. JAX lowers a computation without knowing its devices unless it finds one among its
    equations, or in a jaxpr that one of them holds; what `run` will trace, it cannot find."""
    one = custom_partitioning(lambda x: x)
    one.def_partition(None, sharding_rule="i -> i")
    return jax.make_jaxpr(one)(jnp.zeros(1))


_primitive = Primitive("attention_operation")
_primitive.multiple_results = True


def _run(*operands, operation, holds):
    return list(operation.run(*operands))


def _abstract(*avals, operation, holds):
    def like_outputs(*operands):
        return [vary_like(jnp.zeros(output.shape, output.dtype), operands) for output in operation.outputs]

    return jax.make_jaxpr(like_outputs)(*avals).out_avals


def _jvp(primals, tangents, *, operation, holds):
    known = [None if type(tangent) is ad.Zero else tangent for tangent in tangents]
    return operation.jvp(primals, known)


def _transpose(cotangents, *operands, operation, holds):
    linear = [ad.is_undefined_primal(operand) for operand in operands]
    known = [None if type(cotangent) is ad.Zero else cotangent for cotangent in cotangents]
    values = [operand.aval if ours else operand for operand, ours in zip(operands, linear, strict=True)]
    return operation.transpose(known, values, linear)


def _batch(operands, axes, *, operation, holds):
    return operation.batch(operands, axes)


_primitive.def_impl(partial(jax.jit, static_argnames=("operation", "holds"))(_run))
_primitive.def_abstract_eval(_abstract)
mlir.register_lowering(_primitive, mlir.lower_fun(_run, multiple_results=True))
ad.primitive_jvps[_primitive] = _jvp
ad.primitive_transposes[_primitive] = _transpose
batching.primitive_batchers[_primitive] = _batch
