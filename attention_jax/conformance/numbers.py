"""Rows that compare numbers with the oracle's."""

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.conformance import oracle
from attention_jax.conformance.inputs import BATCH, N, S, T, float64, inputs, some_mask
from attention_jax.conformance.verdict import DeviationError, near, row, same_bits

FLOAT32, GRADIENT = 2e-6, 5e-6
GRADIENT_NAMES = ("d_query", "d_key", "d_value")


def output_is_right(attend, arrays, tolerance=FLOAT32, **options):
    query, key, value, _ = arrays
    near("output", attend(query, key, value, **options), oracle.attention(query, key, value, **options)[0], tolerance)


def gradients_are_right(attend, arrays, **options):
    *arrays, cotangent = arrays
    _, gradients = attend.output_and_gradients(arrays, cotangent, **options)
    truth = oracle.gradients(*arrays, cotangent, **options)[:3]
    for name, ours, true in zip(GRADIENT_NAMES, gradients, truth, strict=True):
        near(name, ours, true, GRADIENT)


@row("equal lengths", "the oracle's numbers")
def _(attend):
    output_is_right(attend, inputs(T=S))


@row("unequal lengths", "the oracle's numbers")
def _(attend):
    output_is_right(attend, inputs())


@row("mask of every example and head: output", "the oracle's numbers")
def _(attend):
    output_is_right(attend, inputs(), mask=some_mask(blind=None))


@row("mask of every example and head: gradients", "the oracle's numbers")
def _(attend):
    gradients_are_right(attend, inputs(), mask=some_mask(blind=None))


@row("row that sees no key: output", "0")
def _(attend):
    output_is_right(attend, inputs(), mask=some_mask())


@row("row that sees no key: gradients", "0, and others as if it were not there")
def _(attend):
    gradients_are_right(attend, inputs(), mask=some_mask())


@row("row that sees no key: log-sum-exp", "-inf")
def _(attend):
    query, key, value, _ = inputs()
    _, lse = attend(query, key, value, mask=some_mask(), with_lse=True)
    near("log-sum-exp", lse, oracle.attention(query, key, value, some_mask())[1], FLOAT32)


@row("left padding and causal", "0 in the padded rows")
def _(attend):
    padding = np.arange(T) >= np.array([0, 3])[:, None, None, None]
    output_is_right(attend, inputs(S=T), mask=np.tri(T, dtype=bool) & padding)


@row("row whose bias is -inf: output", "0")
def _(attend):
    output_is_right(attend, inputs(), bias=np.where(some_mask(), 0, -np.inf).astype(np.float32))


@row("row whose bias is -inf: gradients", "0, and others as if it were not there")
def _(attend):
    gradients_are_right(attend, inputs(), bias=np.where(some_mask(), 0, -np.inf).astype(np.float32))


@row("lowest finite bias on the only visible key", "all weight on that key")
def _(attend):
    bias, mask = np.zeros((T, S), np.float32), np.ones((T, S), bool)
    mask[2, 1:], bias[2, 0] = False, np.finfo(np.float32).min
    output_is_right(attend, inputs(), mask=mask, bias=bias)


@row("no keys: S = 0", "0")
def _(attend):
    output_is_right(attend, inputs(S=0))


@row("key length 0", "0")
def _(attend):
    query, key, value, _ = inputs()
    lengths = np.array([0, 5])
    truth, _ = oracle.attention(query, key, value, np.arange(S) < lengths[:, None, None, None])
    near("output", attend(query, key, value, key_lengths=jnp.asarray(lengths)), truth, FLOAT32)


@row("logits of 1e4", "the oracle's numbers")
def _(attend):
    output_is_right(attend, inputs(scale=1e4), tolerance=1e-2)  # a logit of 1e4 is itself rounded by 1e-3


@row("logits of 1e30", "the oracle's numbers")
def _(attend):
    output_is_right(attend, inputs(scale=1e30))


@row("logits that overflow float32", "NaN, and no number")
def _(attend):
    query, key, value, _ = inputs()
    output = attend(query * 1e30, key * 1e30, value)
    if jnp.isfinite(output).any():
        raise DeviationError(f"{jnp.isfinite(output).sum()} of {output.size} numbers are finite")


def poisoned_where_hidden(which, poison):
    """Inputs with `poison` in a key or value that no query sees, and the same without."""
    query, key, value, cotangent = inputs()
    mask = np.ones((T, S), bool)
    mask[:, 4] = False
    bad = [key, value]
    bad[which] = bad[which].at[:, 4, :, 2].set(poison)
    return ((query, *bad), (query, key, value)), cotangent, mask


for which, name in enumerate(("key", "value")):

    @row(f"NaN or inf in a masked {name}: output", "no bit changes")
    def _(attend, which=which):
        for poison in (jnp.nan, jnp.inf):
            (bad, good), _, mask = poisoned_where_hidden(which, poison)
            same_bits("output", attend(*bad, mask=mask), attend(*good, mask=mask))

    @row(f"NaN or inf in a masked {name}: gradients", "no bit changes")
    def _(attend, which=which):
        for poison in (jnp.nan, jnp.inf):
            (bad, good), cotangent, mask = poisoned_where_hidden(which, poison)
            gradients = (attend.output_and_gradients(arrays, cotangent, mask=mask)[1] for arrays in (bad, good))
            same_bits(", ".join(GRADIENT_NAMES), *gradients)


@row("float16, logits over 65504: output", "the oracle's numbers")
def _(attend):
    arrays = inputs(dtype="float16", scale=300)
    output_is_right(attend, [arrays[0], arrays[1] * 300, *arrays[2:]], tolerance=2**-10)


@row("float16, logits over 65504: weights", "the oracle's numbers")
def _(attend):
    query, key, _, _ = inputs(dtype="float16", scale=300)
    identity = np.broadcast_to(np.eye(S)[:, None], (*BATCH, S, N, S))
    truth = np.swapaxes(oracle.attention(query, key * 300, identity)[0], -2, -3)
    _, weights = attend(query, key * 300, key, with_weights=True)
    near("weights", weights, truth, 2**-9)


@row("bfloat16", "the oracle's numbers, rounded once")
def _(attend):
    output_is_right(attend, inputs(dtype="bfloat16"), tolerance=2**-8)


@row("float64", "the oracle's numbers, to 1e-14")
def _(attend):
    with float64():
        output_is_right(attend, inputs(dtype="float64"), tolerance=1e-14)


@row("GQA: N = 4, K = 2", "as with each key head twice")
def _(attend):
    output_is_right(attend, inputs(K=2))


@row("value head dim other than the key's", "the oracle's numbers")
def _(attend):
    output_is_right(attend, inputs(Hv=5))


for dims, batch in {"no": (), "three": (2, 1, 3)}.items():

    @row(f"{dims} batch dimensions", "the oracle's numbers")
    def _(attend, batch=batch):
        output_is_right(attend, inputs(batch=batch))


@row("mask [B, 1, 1, S]", "serves all heads and queries")
def _(attend):
    output_is_right(attend, inputs(), mask=np.arange(S) < np.array([4, 8])[:, None, None, None])


@row("dropout differs between examples and heads", "no two patterns alike")
def _(attend):
    query, key, value, _ = inputs(batch=(1,))
    query, key, value = (jnp.tile(x[:, :, :1], (2, 1, N, 1)) for x in (query, key, value))
    output = attend(query, key, value, dropout_rate=0.5, dropout_rng=jax.random.key(0))
    patterns = np.moveaxis(np.asarray(output), 2, 1).reshape(2 * N, -1)
    alike = [(i, j) for i in range(2 * N) for j in range(i) if np.array_equal(patterns[i], patterns[j])]
    if alike:
        raise DeviationError(f"{len(alike)} of {N * (2 * N - 1)} pairs of examples and heads have the same pattern")


@row("dropout does not depend on how the work is cut", "a part of the queries has a part of the pattern")
def _(attend):
    query, key, value, _ = inputs()
    options = {"dropout_rate": 0.5, "dropout_rng": jax.random.key(0)}
    near("output", attend(query[:, :4], key, value, **options), attend(query, key, value, **options)[:, :4], FLOAT32)


@row("log-sum-exp of bfloat16", "float32, the oracle's numbers")
def _(attend):
    query, key, value, _ = inputs(dtype="bfloat16")
    _, lse = attend(query, key, value, with_lse=True)
    near(f"{lse.dtype} log-sum-exp", lse, oracle.attention(query, key, value)[1], 1e-5)


@row("asking for the weights: output", "no bit changes")
def _(attend):
    query, key, value, _ = inputs(dtype="bfloat16")
    same_bits("output", attend(query, key, value, with_weights=True)[0], attend(query, key, value))


@row("cache: a prefill of several tokens, then decoding", "the full forward pass")
def _(attend):
    query, key, value, _ = inputs(S=T)
    truth, _ = oracle.attention(query, key, value, np.tri(T, dtype=bool))
    near("output", attend.through_cache(query, key, value, chunks=[3, 1, 2, 1], capacity=T), truth, FLOAT32)
