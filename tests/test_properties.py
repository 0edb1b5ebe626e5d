"""Random shapes, dtypes, mask and score expressions, against the float64 oracle.

A failing case is printed as one line that runs it again: `python -c "from test_properties import *; Case(...).run()"`,
from this folder.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import suite
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from x64 import x64_if

import attention_jax as aj


def oracle_masks(T, S):
    """The masks' own names, for truth by plain arrays."""
    t, s = np.arange(T)[:, None], np.arange(S)[None, :]
    return {
        "causal": lambda offset: s <= t + offset,
        "sliding_window": lambda left, right, offset: (s >= t + offset - left) & (s <= t + offset + right),
        "prefix": lambda n: (s < n) & (t >= 0),
        "key_lengths": lambda n: (s < n) & (t >= 0),
        "segments": lambda seed, other: ids(seed, T)[:, None] == ids(other, S)[None, :],
        "every": lambda step: (t * s) % step != 1,
    }


OUR_MASKS = {
    "causal": aj.causal,
    "sliding_window": aj.sliding_window,
    "prefix": aj.prefix,
    "key_lengths": aj.key_lengths,
    "every": lambda step: aj.mask_from_function(lambda t, s: (t * s) % step != 1),
}


def ids(seed, length):
    return np.sort(np.random.default_rng(seed).integers(0, 3, length))


class OracleScore:
    """A function of logits `[*B, N, T, S]`, composed by `>>`."""

    def __init__(self, fn):
        self.fn = fn

    def __rshift__(self, other):
        return OracleScore(lambda logits: other.fn(self.fn(logits)))


def oracle_scores(T, S, N):
    distance = np.arange(T)[:, None] - np.arange(S)[None, :]
    slopes = slopes_of(N)[:, None, None]
    return {
        "soft_cap": lambda cap: OracleScore(lambda logits: cap * np.tanh(logits / cap)),
        "alibi": lambda offset: OracleScore(lambda logits: logits - slopes * np.abs(distance + offset)),
        "bias": lambda seed: OracleScore(lambda logits: logits + numbers(seed, (T, S))),
        "per_head": lambda: OracleScore(lambda logits: logits * slopes + 0.1 * distance),
    }


def our_scores(T, S, N, dtype):
    slopes = jnp.asarray(slopes_of(N), dtype)
    return {
        "soft_cap": aj.soft_cap,
        "alibi": lambda offset: aj.alibi(slopes, offset=offset),
        "bias": lambda seed: aj.bias(jnp.asarray(numbers(seed, (T, S)), dtype)),
        "per_head": lambda: aj.score_from_function(lambda logit, head, t, s: logit * slopes[head] + 0.1 * (t - s)),
    }


def slopes_of(N):
    return 2.0 ** -np.arange(N)


def numbers(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    T: int
    S: int
    N: int
    K: int
    H: int
    Hv: int
    batch: tuple
    dtype: str
    mask: str
    score: str
    blocks: tuple

    def run(self):
        T, S, N, K, H, Hv, batch = self.T, self.S, self.N, self.K, self.H, self.Hv, self.batch
        with x64_if(self.dtype == "float64"):
            wide = jnp.promote_types(self.dtype, "float32")
            masks = OUR_MASKS | {"segments": lambda seed, other: aj.segments(ids(seed, T), ids(other, S))}
            mask = eval(self.mask, masks) if self.mask else None
            score = eval(self.score, our_scores(T, S, N, wide)) if self.score else None
            *arrays, _ = suite.inputs((T, S, N, K, H, Hv, batch), self.dtype)
            tangents = suite.inputs((T, S, N, K, H, Hv, batch), self.dtype, seed=9)[:3]
            visible = np.broadcast_to(eval(self.mask, oracle_masks(T, S)) if self.mask else True, (T, S))
            true_score = eval(self.score, oracle_scores(T, S, N)).fn if self.score else lambda logits: logits
            oracle = partial(
                reference.attention_of_score, numbers=None, visible=visible, score=lambda x, _: true_score(x)
            )
            exact, along = ([np.asarray(x.astype(wide), np.float64) for x in some] for some in (arrays, tangents))
            truth = oracle(*exact), reference.tangent(oracle, exact, along)
            for name, attend in suite.IMPLEMENTATIONS.items():
                options = {} if name == "reference" else {"block_sizes": self.blocks}
                attend = partial(attend, mask=mask, score=score, **options)
                ours = jax.jit(partial(jax.jvp, attend))(tuple(arrays), tuple(tangents))
                for what, one, true, factor in zip(("output", "tangent"), ours, truth, (2, 4), strict=True):
                    assert suite.error(one, true) <= factor * suite.TOLERANCES[self.dtype], (name, what)


def calls(name, *arguments):
    return st.tuples(*arguments).map(lambda values: f"{name}({', '.join(map(str, values))})")


small = st.integers(-4, 9)
positive = st.integers(0, 9)
rules = st.one_of(
    small.map(lambda offset: f"causal(offset={offset})"),
    st.tuples(positive, positive, small).map(lambda x: f"sliding_window({x[0]}, {x[1]}, offset={x[2]})"),
    calls("prefix", positive),
    calls("key_lengths", positive),
    calls("segments", positive, positive),
    calls("every", st.integers(2, 4)),
)
masks = st.one_of(
    st.just(""),
    st.recursive(
        rules,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from("&|"), inner).map(lambda x: f"({x[0]} {x[1]} {x[2]})"),
            inner.map(lambda mask: f"~{mask}"),
        ),
        max_leaves=4,
    ),
)
one_score = st.one_of(
    calls("soft_cap", st.sampled_from([1.5, 4.0])),
    calls("alibi", small),
    calls("bias", positive),
    st.just("per_head()"),
)
score_expressions = st.lists(one_score, max_size=3).map(" >> ".join)


@st.composite
def cases(draw):
    K = draw(st.integers(1, 3))
    return Case(
        T=draw(st.integers(1, 12)), S=draw(st.integers(1, 12)), N=K * draw(st.integers(1, 3)), K=K,
        H=draw(st.integers(1, 6)), Hv=draw(st.integers(1, 6)), batch=draw(st.sampled_from([(), (2,), (1, 2)])),
        dtype=draw(st.sampled_from(["float32", "float64", "bfloat16", "float16"])), mask=draw(masks),
        score=draw(score_expressions), blocks=(draw(st.integers(1, 12)), draw(st.integers(1, 12))),
    )  # fmt: skip


@pytest.mark.slow
def test_a_row_that_sees_nothing_in_blocks_of_one_key():
    Case(2, 3, 1, 1, 1, 1, (), "float32", "segments(0, 0)", "", (2, 1)).run()


def check(case):
    note(f'python -c "from test_properties import *; {case!r}.run()"')
    case.run()


LIMITS = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}


@pytest.mark.slow
@settings(max_examples=4, **LIMITS)
@given(cases())
def test_a_few_cases(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=60, **LIMITS)
@given(cases())
def test_many_cases(case):
    check(case)
