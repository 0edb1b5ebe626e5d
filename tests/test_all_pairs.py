"""Every pair of features meets in some case, and each case is compared with the float64 oracle: output, tangent,
gradient and Hessian-vector product, in all inputs and in what the score has captured."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import suite
from allpairspy import AllPairs
from x64 import x64_if

from attention_jax import scores
from attention_jax.dropout import keep_positions, seeds_of_heads

TABLE = np.random.default_rng(0).normal(size=(8, 6))


def distances(logits):
    T, S = logits.shape[-2:]
    return np.arange(T)[:, None] - np.arange(S)[None, :]


def per_head(numbers):
    return numbers[:, None, None]


def bucket_bias(logits, numbers):
    buckets = np.vectorize(lambda d: reference.bucket(-d, 8, 10, bidirectional=False))(distances(logits))
    table = numbers[None, :] * TABLE[:, : len(numbers)]
    return logits + np.moveaxis(table[buckets], -1, 0)


def one_a_head(shape):
    return np.random.default_rng(2).uniform(0.3, 1.3, shape[-3])


def bias_of_each_head(shape):
    return np.random.default_rng(1).normal(size=shape)


# name: (the numbers it captures, from the logits' shape; the score; the oracle's score). A bias is captured whole: of a
# number that it is multiplied with, the gradient is one sum, whose terms may be 60 times what is left of them.
SCORES = {
    "none": (one_a_head, lambda numbers: None, lambda logits, numbers: logits),
    "bias": (lambda shape: bias_of_each_head(shape[-2:]), scores.bias, np.add),
    "bias of each head": (bias_of_each_head, scores.bias, np.add),
    "alibi": (
        one_a_head,
        lambda numbers: scores.alibi(numbers, offset=0),
        lambda logits, numbers: logits - per_head(numbers) * np.abs(distances(logits)),
    ),
    "buckets": (
        one_a_head,
        lambda numbers: scores.relative_bias(
            numbers[None, :] * TABLE[:, : len(numbers)].astype(numbers.dtype), max_distance=10, offset=0
        ),
        bucket_bias,
    ),
    "soft cap, then alibi": (
        one_a_head,
        lambda numbers: scores.soft_cap(numbers[0] + 3) >> scores.alibi(numbers, offset=1),
        lambda logits, numbers: (
            (numbers[0] + 3) * np.tanh(logits / (numbers[0] + 3)) - per_head(numbers) * np.abs(distances(logits) + 1)
        ),
    ),
    "function": (
        one_a_head,
        lambda numbers: lambda logit, head, t, s: logit * numbers[head] + jnp.sin((t - s) * numbers[0]),
        lambda logits, numbers: logits * per_head(numbers) + np.sin(distances(logits) * numbers[0]),
    ),
}

FEATURES = {
    "mask": list(suite.MASKS),
    "score": list(SCORES),
    "lengths": [(5, 7), (7, 4), (1, 3), (6, 6)],
    "heads": [(1, 1), (3, 3), (4, 2), (6, 1)],
    "dims": [(3, 3), (2, 4), (4, 1)],
    "batch": [(), (2,), (2, 1)],
    "dtype": ["float32", "float64", "bfloat16", "float16"],
    "dropout": [0.0, 0.4],
    "precision": [None, "highest"],
}
CASES = [dict(zip(FEATURES, case, strict=True)) for case in AllPairs(list(FEATURES.values()))]


def tolerances(dtype):
    """Errors allowed; the oracle's own is about 1e-11 in Hessian-vector products."""
    output, gradient = suite.TOLERANCES[dtype], suite.GRADIENT_TOLERANCES[dtype]
    return {"output": output, "tangent": 2 * output, "gradient": gradient, "hessian_vector": max(2 * gradient, 1e-10)}


@pytest.mark.parametrize("case", [
    pytest.param(case, id="-".join(map(str, case.values())), marks=() if index == 10 else pytest.mark.slow)
    for index, case in enumerate(CASES)
])  # fmt: skip
def test_case(case):
    with x64_if(case["dtype"] == "float64"):
        wide = jnp.promote_types(case["dtype"], "float32")
        (T, S), (N, K), (H, Hv), batch = case["lengths"], case["heads"], case["dims"], case["batch"]
        make, truth = suite.MASKS[case["mask"]]
        shape, rate = (*batch, N, T, S), case["dropout"]
        numbers, score, true_score = SCORES[case["score"]]
        numbers = numbers(shape)
        mask, visible = make(T, S, N, batch), truth(T, S, N, batch)
        *inputs, cotangent = suite.inputs((T, S, N, K, H, Hv, batch), case["dtype"])
        inputs.append(jnp.asarray(numbers, wide))
        tangents = suite.inputs((T, S, N, K, H, Hv, batch), case["dtype"], seed=5)[:3]
        tangents.append(jnp.asarray(np.random.default_rng(6).normal(size=numbers.shape), wide))
        options = {"mask": mask, "precision": case["precision"]}
        if rate:
            options |= {"dropout_rate": rate, "dropout_rng": jax.random.key(7)}

        def modes(implementation, *inputs):
            def attend(query, key, value, numbers):
                return implementation(query, key, value, score=score(numbers), **options)

            def gradient(*inputs):
                return jax.vjp(attend, *inputs)[1](cotangent)

            output, tangent = jax.jvp(attend, inputs, tangents)
            gradients, hessian_vector = jax.jvp(gradient, inputs, tangents)
            return {
                "output": [output], "tangent": [tangent], "gradient": gradients, "hessian_vector": hessian_vector,
            }  # fmt: skip

        inputs, tangents = tuple(inputs), tuple(tangents)
        run = {
            name: jax.jit(partial(modes, implementation))(*inputs)
            for name, implementation in {
                "reference": suite.multi_head_attention, "blockwise": partial(suite.blockwise, block_sizes=(4, 4), tile=2),
                "one block": suite.one_block,
            }.items()
        }  # fmt: skip
        kept = np.asarray(dropped_ones(shape, rate))
        exact = [np.asarray(x.astype(jnp.promote_types(x.dtype, "float32")), np.float64) for x in (*inputs, *tangents)]
        known, directions = exact[:4], exact[4:]
        weight = np.asarray(cotangent.astype(jnp.promote_types(cotangent.dtype, "float32")), np.float64)

        oracle = partial(reference.attention_of_score, visible=visible, score=true_score, kept=kept)
        true = {
            "output": [oracle(*known)],
            "tangent": [reference.tangent(oracle, known, directions)],
            "gradient": reference.gradient(oracle, known, weight),
            "hessian_vector": reference.hessian_vector(oracle, known, directions, weight),
        }
        for name, results in run.items():
            for mode, tolerance in tolerances(case["dtype"]).items():
                for index, (ours, truth) in enumerate(zip(results[mode], true[mode], strict=True)):
                    assert suite.error(ours, truth) <= tolerance, (name, mode, index)


def dropped_ones(shape, rate):
    """What dropout makes of weights of 1."""
    *batch, N, T, S = shape
    if not rate:
        return jnp.ones(shape)
    seeds = seeds_of_heads(jax.random.key(7), *batch, N).reshape(-1, 2)
    kept = jax.vmap(lambda seed: keep_positions(seed, rate, jnp.arange(T), jnp.arange(S)))(seeds)
    return (kept / (1 - rate)).reshape(shape)
