"""Rows of JAX's transformations: each has to compose with attention, and give the oracle's derivative."""

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.conformance import oracle
from attention_jax.conformance.implementation import NotOfferedError
from attention_jax.conformance.inputs import T, inputs, some_mask
from attention_jax.conformance.numbers import FLOAT32, GRADIENT, GRADIENT_NAMES
from attention_jax.conformance.verdict import near, row


def traceable(attend):
    if not attend.traceable:
        raise NotOfferedError("it is not a function of JAX arrays")
    return attend


def directions(arrays):
    return [jnp.roll(x, 1, axis=0) + 0.5 for x in arrays]


def gradient(attend, cotangent):
    def run(*arrays):
        return jax.vjp(attend, *arrays)[1](cotangent)

    return run


@row("jit", "the oracle's numbers")
def _(attend):
    query, key, value, _ = inputs()
    mask = jnp.asarray(some_mask(blind=None))
    output = jax.jit(lambda *arrays: traceable(attend)(*arrays[:3], mask=arrays[3]))(query, key, value, mask)
    near("output", output, oracle.attention(query, key, value, mask)[0], FLOAT32)


for which, name in enumerate(("query", "key", "value")):

    @row(f"vmap over {name}", "the oracle's numbers")
    def _(attend, which=which):
        arrays = list(inputs()[:3])
        axes = [0 if index == which else None for index in range(3)]
        stacked = [jnp.stack([x, x - 1]) if index == which else x for index, x in enumerate(arrays)]
        output = jax.vmap(traceable(attend), in_axes=axes)(*stacked)
        truths = []
        for change in (0, 1):
            changed = [x - change if index == which else x for index, x in enumerate(arrays)]
            truths.append(oracle.attention(*changed)[0])
        near("output", output, np.stack(truths), FLOAT32)


@row("jvp", "the oracle's tangent")
def _(attend):
    *arrays, _ = inputs()
    _, tangent = jax.jvp(traceable(attend), arrays, directions(arrays))
    near("tangent", tangent, oracle.tangent(lambda *x: oracle.attention(*x)[0], arrays, directions(arrays)), GRADIENT)


@row("Hessian-vector product", "the oracle's, to 1e-5")
def _(attend):
    *arrays, cotangent = inputs()
    ours = jax.jvp(gradient(traceable(attend), cotangent), arrays, directions(arrays))[1]
    step = 1e-5
    exact, along = ([np.asarray(x, np.float64) for x in some] for some in (arrays, directions(arrays)))
    ahead, behind = (
        oracle.gradients(*(x + sign * step * v for x, v in zip(exact, along, strict=True)), cotangent)[:3]
        for sign in (1, -1)
    )
    for name, one, more, less in zip(GRADIENT_NAMES, ours, ahead, behind, strict=True):
        near(name, one, (more - less) / (2 * step), 1e-5)


@row("jax.checkpoint", "the oracle's gradients")
def _(attend):
    *arrays, cotangent = inputs()
    ours = jax.jit(gradient(jax.checkpoint(traceable(attend)), cotangent))(*arrays)
    for one, true in zip(ours, oracle.gradients(*arrays, cotangent)[:3], strict=True):
        near("gradients", one, true, GRADIENT)


@row("scan", "the oracle's gradients")
def _(attend):
    query, key, value, cotangent = inputs()
    traceable(attend)

    def total(query):
        def step(sum, query):
            return sum + jnp.vdot(attend(query, key, value), cotangent), None

        return jax.lax.scan(step, 0.0, jnp.stack([query, query]))[0]

    near("d_query", jax.jit(jax.grad(total))(query), 2 * oracle.gradients(query, key, value, cotangent)[0], GRADIENT)


@row("shard_map over the batch", "the oracle's numbers")
def _(attend):
    *arrays, _ = inputs()
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    examples = jax.sharding.PartitionSpec("data")
    spread = jax.shard_map(traceable(attend), mesh=mesh, in_specs=(examples,) * 3, out_specs=examples)
    near("output", jax.jit(spread)(*arrays), oracle.attention(*arrays)[0], FLOAT32)


@row("gradient of the bias", "the oracle's")
def _(attend):
    query, key, value, cotangent = inputs()
    traceable(attend).refuse_unknown({"bias": None})
    bias = jnp.asarray(np.random.default_rng(5).normal(size=(2, 4, T, 9)), jnp.float32)
    ours = jax.grad(lambda bias: jnp.vdot(attend(query, key, value, bias=bias), cotangent))(bias)
    near("d_bias", ours, oracle.gradients(query, key, value, cotangent, bias=bias)[3], GRADIENT)


@row("gradient of the log-sum-exp", "the oracle's")
def _(attend):
    query, key, value, _ = inputs()
    traceable(attend).refuse_unknown({"with_lse": True})
    weight = jnp.asarray(np.random.default_rng(6).normal(size=(2, 4, T)), jnp.float32)
    along = directions([query])[0]
    ours = jax.grad(lambda query: jnp.vdot(attend(query, key, value, with_lse=True)[1], weight))(query)
    truth = oracle.tangent(lambda query: oracle.attention(query, key, value)[1], [query], [along])
    near("its change along a direction", jnp.vdot(ours, along), np.sum(truth * np.asarray(weight)), GRADIENT)
