"""A traced function, run inside `jax.shard_map` with its checks on arrays that vary over more mesh axes than those it
was traced with.

A trace says where an array begins to vary. Here all arrays vary from the start: what meets in an operation is made to
vary alike, and an operation that holds traces itself, such as a loop, is made anew of what these say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from attention_jax.operation import axes_of, vary, vary_like, varying


def evaluate(jaxpr: Any, operands: Sequence[jax.Array]) -> list[jax.Array]:
    """The outputs, which vary as all operands do.

    Raises:
      NotImplementedError: the function has a rule for its backward pass (`jax.custom_vjp`), and uses in it what it has
        captured.
    """
    inner, constants = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
    values = dict(zip((*inner.constvars, *inner.invars), (*constants, *operands), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in inner.eqns:
        inputs = [read(variable) for variable in equation.invars]
        values.update(zip(equation.outvars, _results(equation, inputs), strict=True))
    return [vary_like(read(variable), operands) for variable in inner.outvars]


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """The traces that an operation holds."""
    for param in equation.params.values():
        for each in param if isinstance(param, tuple | list) else (param,):
            if isinstance(each, ClosedJaxpr | Jaxpr):
                yield each


def _results(equation: Any, inputs: list[jax.Array]) -> list[jax.Array]:
    name = equation.primitive.name
    if name in ("pvary", "pcast"):
        return inputs
    if not any(inner_jaxprs(equation)):
        return _bind(equation, [vary_like(x, inputs) for x in inputs])
    if all(axes_of(old.aval) == varying(new) for old, new in zip(equation.invars, inputs, strict=True)):
        return _bind(equation, inputs)
    if name not in ANEW:
        raise NotImplementedError(
            f"inside jax.shard_map with its checks, a mask's or score's function uses what it has captured in {name}, "
            'which cannot be followed: pass check_vma=False to jax.shard_map, or implementation="reference"'
        )
    return ANEW[name](equation, [vary_like(x, inputs) for x in inputs])


def _bind(equation: Any, inputs: Sequence[jax.Array]) -> list[jax.Array]:
    params = equation.primitive.get_bind_params(equation.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # before and after jax 0.10
    results = equation.primitive.bind(*functions, *inputs, **params)
    return results if equation.primitive.multiple_results else [results]


def _call(equation: Any, inputs: list[jax.Array]) -> list[jax.Array]:
    return evaluate(equation.params["jaxpr"], inputs)


def _cond(equation: Any, inputs: list[jax.Array]) -> list[jax.Array]:
    index, *operands = inputs
    branches = equation.params["branches"]
    return lax.switch(index, [lambda *x, branch=branch: evaluate(branch, x) for branch in branches], *operands)


def _while(equation: Any, inputs: list[jax.Array]) -> list[jax.Array]:
    params, asked = equation.params, equation.params["cond_nconsts"]
    first = asked + params["body_nconsts"]
    return lax.while_loop(
        lambda carry: evaluate(params["cond_jaxpr"], [*inputs[:asked], *carry])[0],
        lambda carry: evaluate(params["body_jaxpr"], [*inputs[asked:first], *carry]),
        inputs[first:],
    )


def _scan(equation: Any, inputs: list[jax.Array]) -> list[jax.Array]:
    params, body = equation.params, equation.params["jaxpr"]
    inner = getattr(body, "jaxpr", body)
    # what is scanned over has an axis more outside
    scanned = sum(x.aval.ndim != y.aval.ndim for x, y in zip(equation.invars, inner.invars, strict=True))
    carried = sum(x.aval.ndim == y.aval.ndim for x, y in zip(equation.outvars, inner.outvars, strict=True))
    known, each = len(inputs) - scanned - carried, len(inputs) - scanned

    def step(carry: list[jax.Array], x: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        results = evaluate(body, [*inputs[:known], *carry, *x])
        return results[:carried], results[carried:]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, stacked = lax.scan(step, inputs[known:each], inputs[each:], **options)
    return [*carry, *stacked]


def _custom_jvp(equation: Any, inputs: list[jax.Array]) -> list[jax.Array]:
    """With its own rule, as JAX traces it where the arrays vary as they did."""
    examples = [vary(jnp.zeros(x.aval.shape, x.aval.dtype), axes_of(x.aval)) for x in equation.invars]
    moving = [i for i, x in enumerate(examples) if jnp.issubdtype(x.dtype, jnp.inexact)]

    def pushed(primals: list[jax.Array], moved: list[jax.Array]) -> Any:
        tangents: list[Any] = [np.zeros(x.shape, jax.dtypes.float0) for x in primals]
        for i, tangent in zip(moving, moved, strict=True):
            tangents[i] = tangent
        return jax.jvp(lambda *x: _bind(equation, x), tuple(primals), tuple(tangents))

    @jax.custom_jvp
    def call(*primals: jax.Array) -> list[jax.Array]:
        return evaluate(equation.params["call_jaxpr"], primals)

    @call.defjvp
    def rule(primals: tuple[jax.Array, ...], tangents: tuple[Any, ...]) -> Any:
        jaxpr = jax.make_jaxpr(pushed)(examples, [examples[i] for i in moving])
        results = evaluate(jaxpr, [*primals, *(tangents[i] for i in moving)])
        return results[: len(results) // 2], results[len(results) // 2 :]

    return call(*inputs)


ANEW: dict[str, Callable[[Any, list[jax.Array]], list[jax.Array]]] = {
    "jit": _call,
    "pjit": _call,
    "checkpoint": _call,
    "remat2": _call,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    "custom_jvp_call": _custom_jvp,
}
"""How each operation that holds traces is made anew."""
