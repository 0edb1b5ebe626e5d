"""Rows of what has to be refused, and in which words."""

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.conformance import oracle
from attention_jax.conformance.inputs import BATCH, N, S, T, inputs
from attention_jax.conformance.verdict import DeviationError, refused, row


@row("causal with T != S", "an error that names the offset")
def _(attend):
    query, key, value, _ = inputs()
    try:
        refused(ValueError, ("offset",), attend, query, key, value, causal=True)
    except DeviationError as deviation:
        output = attend(query, key, value, causal=True)
        for offset, side in ((0, "starts"), (S - T, "ends")):
            truth, _ = oracle.attention(query, key, value, np.tri(T, S, offset, dtype=bool))
            if np.allclose(output, truth, atol=1e-5):
                raise DeviationError(f"{deviation}, with the {side} aligned") from None
        raise


for dtype in ("int32", "bool"):

    @row(f"{dtype} query, key, value", "TypeError")
    def _(attend, dtype=dtype):
        query, key, value, _ = ((x > 0).astype(dtype) for x in inputs())
        refused(TypeError, (dtype,), attend, query, key, value)


@row("mixed dtypes", "ValueError that names the arguments")
def _(attend):
    query, key, value, _ = inputs()
    refused(ValueError, ("query", "key"), attend, query, key.astype("bfloat16"), value.astype("bfloat16"))


@row("float mask", "TypeError that names bias=")
def _(attend):
    query, key, value, _ = inputs()
    refused(TypeError, ("bias=",), attend, query, key, value, mask=np.zeros((T, S), np.float32))


@row("mask [B, T, S] where B == N", "ValueError")
def _(attend):
    query, key, value, _ = inputs(batch=(N,))
    refused(ValueError, ("mask",), attend, query, key, value, mask=np.ones((N, T, S), bool))


@row("mask with the wrong number of heads", "ValueError with the shapes")
def _(attend):
    query, key, value, _ = inputs()
    refused(
        ValueError, ("mask", str((*BATCH, 3, T, S))), attend, query, key, value, mask=np.ones((*BATCH, 3, T, S), bool)
    )


@row("layout [B, N, T, H] by mistake", "ValueError that names the transpose")
def _(attend):
    query, key, value, _ = (jnp.swapaxes(x, 1, 2) for x in inputs())
    refused(ValueError, ("swapaxes",), attend, query, key, value)


@row("N not a multiple of K", "ValueError with the shapes")
def _(attend):
    query, key, value, _ = inputs(K=3)
    refused(ValueError, (str(query.shape), str(key.shape)), attend, query, key, value)


for rate in (1.0, 1.5, -0.1, float("nan")):

    @row(f"dropout rate {rate}", "ValueError")
    def _(attend, rate=rate):
        query, key, value, _ = inputs()
        options = {"dropout_rate": rate, "dropout_rng": jax.random.key(0)}
        refused(ValueError, ("dropout_rate",), attend, query, key, value, **options)


@row("traced dropout rate", "TypeError that says static")
def _(attend):
    query, key, value, _ = inputs()

    @jax.jit
    def run(rate):
        return attend(query, key, value, dropout_rate=rate, dropout_rng=jax.random.key(0))

    refused(TypeError, ("static",), run, 0.5)


@row("precision=", "reaches every product, or is not there")
def _(attend):
    query, key, value, _ = inputs()
    if not attend.has("precision"):
        return
    lowered = jax.jit(lambda *arrays: attend(*arrays, precision="highest")).lower(query, key, value)
    products = [line for line in lowered.as_text().splitlines() if "stablehlo.dot_general" in line]
    ignored = [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line]
    if ignored or not products:
        raise DeviationError(f"{len(ignored)} of {len(products)} products ignore it")


@row("cache overrun", "an error that names the capacity")
def _(attend):
    query, key, value, _ = inputs(S=T)
    refused(ValueError, ("capacity",), attend.through_cache, query, key, value, chunks=[1] * T, capacity=T - 2)


@row("cache overrun under jit", "an error, or NaN")
def _(attend):
    query, key, value, _ = inputs(S=T)

    @jax.jit
    def run(query, key, value):
        return attend.through_cache(query, key, value, chunks=[1] * T, capacity=T - 2)

    finite = jnp.isfinite(run(query, key, value)[:, T - 2 :])
    if finite.any():
        raise DeviationError(f"{finite.sum()} of {finite.size} numbers beyond the end are finite")
