"""Masks' and scores' functions, made free of the arrays they have captured: those become operands, which are cut into
blocks, mapped over and differentiated as any other."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from attention_jax.blocks.grid import Grid
from attention_jax.mask_rules import Function
from attention_jax.mask_tree import Mask
from attention_jax.operation import vary, vary_like, varying
from attention_jax.retrace import evaluate, inner_jaxprs
from attention_jax.score_tree import Score, ScoreFunction


def hoisted(mask: Any, score: Any, grid: Grid, logit: jax.Array) -> tuple[Any, Any]:
    """Both with the functions in them called with what they have captured first; for blocks of the grid, and logits of
    the dtype of `logit`, which vary over the same mesh axes."""
    t, s = grid.size("t"), grid.size("s")
    logits = vary_like(jnp.zeros((t, s), logit.dtype), [logit])
    head, rows, columns = jnp.zeros((), int), jnp.arange(t)[:, None], jnp.arange(s)[None, :]
    return _hoist(mask, Function, rows, columns), _hoist(score, ScoreFunction, logits, head, rows, columns)


def holds_function(*parts: Any) -> bool:
    """Whether there is one in masks or scores. It is traced for one shape."""
    return any(
        isinstance(part, Function | ScoreFunction)
        or (isinstance(part, Mask | Score) and holds_function(*(getattr(part, each.name) for each in fields(part))))  # type: ignore[arg-type]
        for part in parts
    )


def _hoist(part: Any, kind: Any, *examples: jax.Array) -> Any:
    if part is None:
        return None
    if isinstance(part, kind):
        if isinstance(part.fn, Traced):
            return part
        # by a function of its own: for one it has seen, JAX would remember what that had captured then
        closed = jax.make_jaxpr(lambda *inputs: part.call(*inputs))(*examples)
        # once more, with what it has captured as inputs: from jax 0.12 on, a jaxpr holds its constants itself
        opened = jax.make_jaxpr(lambda captured, *inputs: jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, captured))(*inputs))
        jaxpr = opened(closed.consts, *examples)
        text = f"{jaxpr} {_digest(jaxpr.jaxpr)}"
        traced = Traced(_weak(part.fn), text, varying(examples[0]), len(closed.consts), jaxpr)
        return replace(part, fn=traced, captured=tuple(closed.consts))
    children = {
        field.name: _hoist(child, kind, *examples)
        for field in fields(part)
        if isinstance(child := getattr(part, field.name), Mask | Score)
    }
    return replace(part, **children) if children else part


@dataclass(frozen=True)
class Traced:
    """A traced function that is called with the arrays it captured first. It equals another trace of the same function
    in which nothing has changed, such as a number that the function reads."""

    fn: Any
    text: str
    axes: frozenset  # those of a mesh over which its inputs varied when it was traced
    count: int  # arrays that it captured
    jaxpr: Any = field(compare=False)

    def __call__(self, *operands: jax.Array) -> jax.Array:
        variables = zip(self.jaxpr.jaxpr.invars[: self.count], operands[: self.count], strict=True)
        captured = [array.astype(variable.aval.dtype) for variable, array in variables]
        inputs = [*captured, *operands[self.count :]]
        axes = self.axes.union(*map(varying, operands))
        if axes:
            return evaluate(self.jaxpr, [vary(x, axes) for x in inputs])[0]
        return jaxpr_as_fun(self.jaxpr)(*inputs)[0]


def _weak(fn: Any) -> Any:
    """What equals the like of the same function, and does not keep it alive, nor what it has captured: JAX holds on to
    all that it has compiled."""
    try:
        reference = weakref.WeakMethod(fn) if inspect.ismethod(fn) else weakref.ref(fn)
    except TypeError:
        return fn
    with contextlib.suppress(TypeError):  # an object with `__call__` may have no hash
        hash(reference)  # which it keeps for when the function is gone
    return reference


def _digest(jaxpr: Jaxpr) -> str:
    """Of the constants of the jaxprs inside, which its text does not show."""
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in _inner_constants(jaxpr))).hexdigest()


def _inner_constants(jaxpr: Jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        for inner in inner_jaxprs(equation):
            yield from getattr(inner, "consts", ())
            yield from _inner_constants(getattr(inner, "jaxpr", inner))
