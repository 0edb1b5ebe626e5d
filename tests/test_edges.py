"""What lies at the edges of what a user may pass: functions that change what they read, filled-up blocks, wide windows,
other dtypes of positions, nothing at all."""

import gc
import weakref
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import suite
from jax.sharding import PartitionSpec as P
from x64 import x64_if

import attention_jax as aj
from attention_jax import scores
from attention_jax.blockwise import blockwise_attention, weighted_sums

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


X = normal(3, 11, 2, 4)  # query, key, value
SLOPES = jnp.array([0.5, 2.0])
BOTH = {"reference": aj.multi_head_attention, "blockwise": lambda *x, **o: blockwise_attention(*x, **o)[0]}


def gradients(attend, **rules):
    return jax.grad(lambda *x: jnp.sum(attend(*x, **rules) ** 2), (0, 1, 2))(*X)


def penalty(logit, head, t, s):
    return logit - SLOPES[head] * abs(t - s)


@pytest.mark.slow
def test_a_function_reads_what_it_has_captured_at_each_call():
    captured, new = SLOPES, 3.0 * SLOPES

    def score(logit, head, t, s):
        return logit - captured[head] * abs(t - s)

    def attend(query):
        return aj.attention(query, *X[1:], score=score)

    first, _ = attend(X[0]), jax.grad(lambda query: attend(query).sum())(X[0])
    suite.close(first, aj.attention(*X, score=aj.alibi(SLOPES)))
    captured = new
    suite.close(attend(X[0]), aj.attention(*X, score=aj.alibi(new)))
    suite.close(
        aj.attention_statistics(*X[:2], score=score).entropy,
        aj.attention_statistics(*X[:2], score=aj.alibi(new)).entropy,
    )


def test_a_function_reads_its_numbers_at_each_call():
    width = 2
    mask = aj.mask_from_function(lambda t, s: abs(t - s) <= width)
    suite.close(aj.attention(*X, mask=mask), aj.attention(*X, mask=aj.sliding_window(2, 2)))
    width = 4
    suite.close(aj.attention(*X, mask=mask), aj.attention(*X, mask=aj.sliding_window(4, 4)))


@pytest.mark.slow
def test_a_function_that_is_kept_leaks_no_tracer():
    kept = {}

    def score(logit, head, t, s):
        return logit - kept["slopes"][head] * abs(t - s)

    def loss(slopes):
        kept["slopes"] = slopes
        return jnp.sum(aj.attention(*X, score=score) ** 2)

    def by_rule(slopes):
        return jnp.sum(aj.attention(*X, score=aj.alibi(slopes)) ** 2)

    for slopes in (SLOPES, SLOPES + 1):
        suite.close(jax.value_and_grad(loss)(slopes), jax.value_and_grad(by_rule)(slopes), 1e-5)
        suite.close(jax.jit(jax.grad(loss))(slopes), jax.grad(by_rule)(slopes), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, aj.causal()])
@pytest.mark.parametrize(
    "score",
    [
        lambda w: lambda logit, head, t, s: logit * jnp.log(11 - s) + w * jnp.log(11 - s),
        lambda w: lambda logit, head, t, s: logit * jnp.sqrt(10 - t) + w * jnp.log(11 - t) * s,
        lambda w: lambda logit, head, t, s: jnp.where(logit > 0, jnp.sqrt(abs(logit)), logit) * w,
    ],
)
def test_what_fills_the_last_block_has_no_slope_of_its_own(mask, score):
    """A score that is finite at all positions there are need not be so behind them, or where a logit is 0."""

    def of_all(attend, **options):
        def loss(w, *x):
            return jnp.sum(attend(*x, mask=mask, score=score(w), **options) ** 2)

        return jax.jit(jax.grad(loss, (0, 1, 2, 3)))(0.7, *X)

    found, true = of_all(BOTH["blockwise"], block_sizes=(4, 3)), of_all(BOTH["reference"])
    assert all(np.isfinite(x).all() for x in true)
    suite.close(found, true, 1e-5)


@pytest.mark.slow
def test_a_hidden_slope_that_is_not_finite_reaches_neither_query_nor_key():
    score = scores.score_from_function(lambda logit, head, t, s: logit * jnp.log(t - s + 2))  # NaN far behind the mask
    true, found = (gradients(attend, mask=aj.causal(), score=score) for attend in BOTH.values())
    assert all(np.isfinite(x).all() for x in true)
    suite.close(found, true, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mask", [aj.sliding_window(2**31 - 1, 0), aj.prefix(2**31) & aj.causal(), aj.sliding_window(10**12, 0)]
)
def test_a_window_wider_than_any_length_hides_nothing(mask):
    for attend in (BOTH["reference"], partial(BOTH["blockwise"], block_sizes=(4, 3))):
        suite.close(attend(*X, mask=mask), attend(*X, mask=aj.causal()))
        suite.close(gradients(attend, mask=mask), gradients(attend, mask=aj.causal()))
    suite.close(aj.attention(*X, mask=aj.sliding_window(5, 2**31 - 1)), aj.attention(*X, mask=aj.sliding_window(5, 11)))


@pytest.mark.slow
def test_a_mask_that_captures_what_is_differentiated_passes_no_gradient():
    def loss(query, implementation):
        mask = aj.mask_from_function(lambda t, s: query[t, 0, 0] > query[s, 1, 1])
        return jnp.sum(aj.attention(query, *X[1:], mask=mask, implementation=implementation) ** 2)

    found, true = (jax.grad(loss)(X[0], name) for name in ("blockwise", "reference"))
    suite.close(found, true)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint32", "int8"])
@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_positions_of_any_integer_dtype(implementation, dtype):
    places = (jnp.arange(11, dtype=dtype),) * 2
    for mask, score in (
        (aj.sliding_window(2, 1), aj.alibi(SLOPES)),
        (None, aj.relative_bias(normal(8, 2), max_distance=9)),
        (aj.mask_from_function(lambda t, s: X[0, s, 0, 0] > X[0, t, 0, 0] - 1), penalty),
    ):
        attend = partial(aj.attention, *X, mask=mask, score=score, implementation=implementation)
        suite.close(attend(positions=places), attend())
    found = aj.attention_statistics(*X[:2], positions=places)
    suite.close(found.distance, aj.attention_statistics(*X[:2]).distance)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32"])
def test_integers_of_a_dtype_that_ends_before_the_keys(dtype):
    x, number = normal(300, 12, 4), np.asarray(100, dtype)  # more than a step takes, so that blocks are asked for
    mask = aj.key_lengths(number)
    for attend in (partial(aj.attention, x, x, x), partial(aj.attention, x, x.at[200].set(jnp.nan), x)):
        suite.close(attend(mask=mask), aj.attention(x, x[:100], x[:100]), 1e-5)
        suite.close(attend(mask=~~mask), aj.attention(x, x[:100], x[:100]), 1e-5)
    suite.close(aj.attention_weights(x, x, rows=number[None]), aj.attention_weights(x[100:101], x))
    table = normal(300, 4)
    suite.close(jax.jit(aj.learned_positions)(table, number[None]), table[100:101])


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_nothing_is_promoted_in_silence(implementation):
    x = X.astype(jnp.bfloat16)
    score = aj.alibi(SLOPES) >> aj.soft_cap(3.0)

    def loss(*x):
        options = {"mask": aj.causal() & aj.key_lengths(7), "score": score, "implementation": implementation}
        output = aj.attention(*x, **options, dropout_rate=0.1, dropout_rng=jax.random.key(0))
        return jnp.sum(output.astype(jnp.float32))

    with jax.numpy_dtype_promotion("strict"):
        found = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*x)
    suite.close(found, jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*x), 0)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_one_row_of_positions_serves_every_example(implementation):
    query, key, value, _ = suite.inputs((6, 6, 2, 2, 4, 4, (3,)))
    attend = partial(aj.attention, mask=aj.causal() & aj.key_lengths([6, 3, 0]), implementation=implementation)
    row = jnp.arange(6)[None]
    suite.close(attend(query, key, value, positions=(row, row)), attend(query, key, value), 0)


def test_integers_beyond_the_default_dtype_are_many():
    assert aj.key_lengths(np.uint32(2**31 + 5)).to_array(1, 3).all()


def test_integers_of_64_bits_are_held_where_jax_has_them():
    with x64_if(True):
        mask = aj.segments(np.array([1, 2**32 + 1, 1]), [2**32 + 1, 1])
        np.testing.assert_array_equal(mask.to_array(3, 2), [[False, True], [True, False], [False, True]])


def test_what_is_known_stays_known_inside_a_jit(capsys):
    cap, rows = jnp.float32(3.0), jnp.array([1, 2])

    @jax.jit
    def run(table):
        print(aj.causal())
        return aj.attention(*X, score=scores.soft_cap(cap)), aj.learned_positions(table, rows)

    table = normal(4, 3)
    suite.close(run(table), (aj.attention(*X, score=scores.soft_cap(3.0)), table[1:3]))
    assert capsys.readouterr().out == f"{aj.causal()}\n"
    with pytest.raises(ValueError, match="positions 1 to 2 do not fit"):
        run(table[:2])


@dataclass
class WithoutHash:
    factor: float

    def __call__(self, *inputs):
        return inputs[0] * self.factor if len(inputs) == 4 else inputs[0] * self.factor >= inputs[1]


@pytest.mark.slow
def test_an_object_without_a_hash_serves_as_a_function():
    rule = WithoutHash(2.0)
    for factor in (2.0, 0.5):
        rule.factor = factor
        rules = {"mask": aj.mask_from_function(rule), "score": aj.score_from_function(rule)}
        suite.close(blockwise_attention(*X, **rules)[0], aj.multi_head_attention(*X, **rules))
        suite.close(*(jax.jit(partial(gradients, attend, **rules))() for attend in BOTH.values()), 1e-5)
        suite.close(*(jax.vmap(partial(attend, **rules))(X, X, X) for attend in BOTH.values()))
    suite.close(aj.attention(*X, score=WithoutHash(2.0)), aj.attention(*X, score=lambda logit, head, t, s: 2 * logit))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
@pytest.mark.parametrize("mask", [None, aj.causal()], ids=str)
def test_a_cap_has_a_slope_at_what_a_bias_hides(implementation, mask):
    hidden = aj.bias(jnp.where(jnp.tri(11, dtype=bool), 0, -jnp.inf))

    def loss(cap, score):
        output = aj.attention(*X, mask=mask, score=score >> aj.soft_cap(cap), implementation=implementation)
        return jnp.sum(output**2)

    found, true = (jax.grad(loss)(0.7, score) for score in (hidden, aj.bias(jnp.where(jnp.tri(11) > 0, 0, -1e4))))
    suite.close(found, true, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(2, 1), (1, 3)])
def test_lengths_and_positions_broadcast_over_the_batch(lengths):
    x = normal(3, 2, 3, 5, 2, 4)
    places = (
        jnp.arange(5)[None, None] + jnp.arange(3)[None, :, None],
        jnp.arange(5)[None, None] + jnp.arange(2)[:, None, None],
    )
    mask = aj.key_lengths(RANDOM.integers(1, 6, lengths))
    wide = aj.key_lengths(jnp.broadcast_to(mask.lengths, (2, 3))) & aj.causal()
    for implementation in BOTH:
        attend = partial(aj.attention, *x, implementation=implementation)
        found = attend(mask=mask & aj.causal(), positions=places)
        suite.close(found, attend(mask=wide, positions=[jnp.broadcast_to(each, (2, 3, 5)) for each in places]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "rng", [jax.random.key(3, impl="rbg"), jax.random.PRNGKey(3), np.array([0, 3], "uint32")], ids=str
)
def test_dropout_by_keys_of_any_kind_goes_by_position_alone(rng):
    options = {"dropout_rate": 0.4, "dropout_rng": rng}
    query, key = normal(3, 13, 4, 5), normal(3, 11, 2, 5)
    true = aj.multi_head_attention(query, key, key, **options)
    for sizes in (None, (4, 3), (13, 2)):
        suite.close(blockwise_attention(query, key, key, **options, block_sizes=sizes)[0], true)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_a_scale_of_a_wider_dtype(dtype):
    with x64_if(True):
        query, key = normal(13, 4, 3).astype(dtype), normal(11, 2, 3).astype(dtype)

        def output(attend, scale):
            return attend(query, key, key, scale=scale).astype("float64")

        def slope(attend, scale):
            return jax.grad(lambda scale: jnp.sum(output(attend, scale) ** 2))(scale)

        def mapped(attend, scale):
            return jax.vmap(partial(output, attend))(scale * jnp.arange(3.0))

        for of in (output, slope, mapped):
            found, true = (
                jax.jit(partial(of, attend))(jnp.float64(0.3)) for attend in (suite.blockwise, aj.multi_head_attention)
            )
            assert found.dtype == jnp.float64
            suite.close(found, true, tolerance=(30 if of is slope else 2) * suite.TOLERANCES[dtype])
        for scale in (np.float64(0.3), np.asarray(0.3), jnp.float64(0.3)):
            assert suite.blockwise(query, key, key, scale=scale).dtype == dtype


@pytest.mark.slow
def test_implementations_agree_on_the_log_sum_exp_of_what_is_not_finite():
    for at in range(3):
        x = X.at[at, 4].set(jnp.nan)
        found, true = (
            aj.attention_and_lse(*x, mask=aj.causal(), implementation=implementation)[1] for implementation in BOTH
        )
        np.testing.assert_array_equal(np.isnan(found), np.isnan(true))
        assert np.isnan(true).any() and not np.isnan(true).all()


@pytest.mark.slow
@pytest.mark.parametrize(("H", "Hv"), [(0, 3), (3, 0)])
def test_no_channels(H, Hv):
    query, key, value = normal(7, 2, H), normal(5, 2, H), normal(5, 2, Hv)
    found, true = (
        aj.attention_and_lse(query, key, value, mask=aj.prefix(4), implementation=implementation)
        for implementation in BOTH
    )
    assert found[0].shape == (7, 2, Hv)
    suite.close(found[1:] if Hv == 0 else found, true[1:] if Hv == 0 else true)
    weights = aj.attention_weights(query, key, mask=aj.prefix(4))
    suite.close(aj.attention_statistics(query, key, mask=aj.prefix(4)).received, weights.sum(1))
    sums, total = weighted_sums(query, key, value, found[1], mask=aj.prefix(4))
    assert sums.shape == (7, 2, Hv)
    suite.close((sums, total), (found[0], jnp.ones_like(total)))


def test_a_map_over_nothing():
    found = jax.vmap(lambda query: aj.attention(query, *X[1:]))(X[:0])
    assert found.shape == (0, 11, 2, 4)
    assert jax.vmap(jax.grad(lambda query: aj.attention(query, *X[1:]).sum()))(X[:0]).shape == (0, 11, 2, 4)


@pytest.mark.slow
def test_a_sink_without_weight_where_nothing_is_seen():
    def loss(sinks):
        output, lse = aj.attention_and_lse(*X, mask=aj.causal(offset=-2))
        output, lse = scores.add_sinks(output, lse, sinks)
        return jnp.sum(output**2), (output, lse)

    (_, (output, lse)), d_sinks = jax.value_and_grad(loss, has_aux=True)(jnp.array([-jnp.inf, 0.5]))
    suite.close(output[:, 0], aj.attention(*X, mask=aj.causal(offset=-2))[:, 0])
    assert (output[:2] == 0).all() and (lse[0, :2] == -jnp.inf).all()
    assert d_sinks[0] == 0 and np.isfinite(d_sinks).all()


@pytest.mark.slow
@pytest.mark.parametrize("sink", [-np.inf, 0.5])
def test_a_log_sum_exp_with_a_sink_has_a_gradient_where_nothing_is_seen(sink):
    lse = jnp.array([[-jnp.inf, 1.0]])

    def total(lse, sinks):
        joined = scores.add_sinks(jnp.ones((2, 1, 3)), lse, sinks)[1]
        return jnp.sum(jnp.where(jnp.isfinite(joined), joined, 0))

    d_lse, d_sinks = jax.grad(total, (0, 1))(lse, jnp.array([sink], jnp.float32))
    share = 0 if sink == -np.inf else np.exp(sink) / (np.exp(sink) + np.e)
    suite.close(d_lse, jnp.array([[0, 1 - share]]))
    suite.close(d_sinks, jnp.array([share + (sink != -np.inf)]))


@pytest.mark.slow
@pytest.mark.parametrize("slope", [lambda d: 1 / (d + 1), lambda d: jnp.sqrt(d + 1.0), lambda d: jnp.log(d + 1.0)])
@pytest.mark.parametrize("block_sizes", [None, (4, 3)])
def test_second_derivatives_pass_by_what_a_score_does_to_hidden_pairs(slope, block_sizes):
    """Above the diagonal these slopes are not finite."""
    query, key, value = X
    rules = {"mask": aj.causal(), "score": lambda logit, head, t, s: logit * slope(t - s)}
    ours = partial(suite.blockwise, block_sizes=block_sizes)

    def loss(attend, query, key):
        return jnp.sum(attend(query, key, value, **rules) ** 2)

    def second(attend, query, key):
        def along(*x):
            return sum(jnp.vdot(value, gradient) for gradient in jax.grad(loss, (1, 2))(attend, *x))

        return jax.grad(along, (0, 1))(query, key)

    found, true = (jax.jit(partial(second, attend))(query, key) for attend in (ours, aj.multi_head_attention))
    assert all(jnp.isfinite(x).all() for x in true)
    suite.close(found, true, tolerance=1e-5)


WEIGHTS = jnp.array([0.5, 2.0])
TABLE = jnp.arange(11.0)


@jax.custom_jvp
def steep(x, w):
    """With thrice its slope."""
    return jnp.sin(x) * w


steep.defjvp(lambda x, d_x: (steep(*x), 3 * jax.jvp(lambda x, w: jnp.sin(x) * w, x, d_x)[1]))


@jax.custom_vjp
def passed_on(x, w):
    return x * w


passed_on.defvjp(lambda x, w: (x * w, None), lambda _, d: (d, d.sum()))


def in_each_other(logit, w):
    def step(x, y):
        return jax.nn.softplus(x) * y, None

    return jax.jit(jax.checkpoint(lambda x: jax.lax.scan(step, x, jax.nn.softplus(w))[0]))(logit)


INSIDE = {
    "arithmetic": lambda logit, w, head, t, s: logit * 2.0 - abs(t - s),
    "a captured number of each head": lambda logit, w, head, t, s: logit * w[head] - 1.0,
    "a constant array": lambda logit, w, head, t, s: logit + TABLE[s] * w[0] - TABLE[t],
    "a rule of its own": lambda logit, w, head, t, s: jax.nn.relu(logit) * 2 - 1.0 * s,
    "a jit": lambda logit, w, head, t, s: jax.jit(lambda x: x * 2.0 - w[1])(logit),
    "a loop": lambda logit, w, head, t, s: jax.lax.fori_loop(0, 3, lambda i, x: x * 0.9 + i, logit),
    "a choice": lambda logit, w, head, t, s: jax.lax.cond(head == 0, lambda x: x * 2.0, lambda x: x - 1.0, logit),
    "a choice of what is captured": lambda logit, w, head, t, s: jax.lax.switch(
        head, [lambda x: x * w[1], lambda x: w[0] + 0 * x], logit
    ),
    "a choice of what is captured or constant": lambda logit, w, head, t, s: logit * jax.lax.switch(
        head, [lambda x: jnp.sin(x * w[1]), lambda x: 2 * jnp.ones_like(x)], logit
    ),
    "a rule of its own for what is captured": lambda logit, w, head, t, s: logit * jax.nn.softplus(w)[head],
    "a rule of its own for both": lambda logit, w, head, t, s: steep(logit, w[head]),
    "a loop with what is captured": lambda logit, w, head, t, s: jax.lax.fori_loop(0, 3, lambda i, x: x * w[head] + i, logit),
    "a loop over what is captured": lambda logit, w, head, t, s: jax.lax.scan(lambda x, y: (x * 0.5 + y * logit, 2 * x), logit, w)[0],
    "a loop as long as what is captured says": lambda logit, w, head, t, s: logit + jax.lax.stop_gradient(
        jax.lax.while_loop(lambda x: jnp.sum(x) < 9.0 * w[0], lambda x: x + w, w)
    )[head],
    "a search": lambda logit, w, head, t, s: logit * w[0] + jnp.interp(t - 1.0 * s, jnp.array([-2.0, 3.0]), w),
    "a checkpoint": lambda logit, w, head, t, s: jax.checkpoint(lambda x: jnp.sin(x) * w[head])(logit),
    "many in each other": lambda logit, w, head, t, s: in_each_other(logit, w),
}  # fmt: skip


OF_WEIGHTS = [
    name for name in INSIDE if "captured" in name or name in ("a constant array", "a jit", "many in each other")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, spread",
    [pytest.param(name, True, id=f"weights of each-{name}") for name in OF_WEIGHTS]
    + [pytest.param(name, False, id=f"weights of all-{name}") for name in INSIDE],
)
def test_functions_inside_a_checked_shard_map(name, spread):
    devices = 2
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    x, cotangent = normal(3, devices, 11, 2, 4), normal(devices, 11, 2, 4)
    weights = jnp.stack([WEIGHTS, 3 - WEIGHTS]) if spread else WEIGHTS[None]
    ends = jnp.array([3, 8, 10])
    near = aj.mask_from_function(lambda t, s: t + 3 >= s)
    mask = near & aj.mask_from_function(lambda t, s: jnp.searchsorted(ends, t) >= jnp.searchsorted(ends, s))

    def loss(x, weights, cotangent):
        score = aj.score_from_function(
            lambda *logit_and_place: INSIDE[name](logit_and_place[0], weights[0], *logit_and_place[1:])
        )
        return jnp.vdot(blockwise_attention(*x, mask=mask, score=score, block_sizes=(4, 5))[0], cotangent)

    def gradients(x, weights, cotangent):
        return jax.grad(loss, (0, 1))(x, weights, cotangent)

    of_x, of_weights, of_output = P(None, "data"), P("data") if spread else P(), P("data")
    found = jax.jit(jax.shard_map(
        gradients, mesh=mesh, in_specs=(of_x, of_weights, of_output), out_specs=(of_x, of_weights),
    ))(x, weights, cotangent)  # fmt: skip
    alone = jax.jit(gradients)
    each = [
        alone(x[:, i : i + 1], weights[i : i + 1] if spread else weights, cotangent[i : i + 1]) for i in range(devices)
    ]
    join = jnp.concatenate if spread else sum
    suite.close(found, (jnp.concatenate([one[0] for one in each], 1), join([one[1] for one in each])), 1e-5)


@pytest.mark.slow
def test_what_cannot_be_followed_inside_a_checked_shard_map():
    def attend(x, weights, check):
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
        score = aj.score_from_function(lambda logit, head, t, s: passed_on(logit, weights[head]))
        return jax.shard_map(
            lambda x: blockwise_attention(*x, score=score)[0],
            mesh=mesh, in_specs=P(None, "data"), out_specs=P("data"), check_vma=check,
        )(x)  # fmt: skip

    x = normal(3, 1, 11, 2, 4)
    with pytest.raises(NotImplementedError, match="in custom_vjp_call, which cannot be followed: pass check_vma=False"):
        attend(x, WEIGHTS, check=True)
    score = aj.score_from_function(lambda logit, head, t, s: logit * WEIGHTS[head])
    suite.close(attend(x, WEIGHTS, check=False), blockwise_attention(*x, score=score)[0])


def test_a_change_that_a_jit_inside_hides_is_seen():
    kept = {"table": np.arange(11, dtype=np.float32)}

    def score(logit, head, t, s):
        return jax.jit(lambda logit, s: logit - jnp.asarray(kept["table"])[s])(logit, s)

    first = aj.attention(*X, score=score)
    kept["table"] = kept["table"][::-1].copy()
    suite.close(aj.attention(*X, score=score), aj.attention(*X, score=score, implementation="reference"))
    assert suite.error(first, aj.attention(*X, score=score)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["score", "mask"])
@pytest.mark.parametrize("implementation", BOTH)
def test_what_a_function_has_captured_is_let_go(rule, implementation):
    """JAX keeps what it has compiled; an array that was captured must not be kept with it."""

    def attended():
        captured = jnp.arange(11.0)
        functions = {
            "score": lambda logit, head, t, s: logit - captured[s],
            "mask": aj.mask_from_function(lambda t, s: captured[s] <= t),
        }
        aj.attention(*X, implementation=implementation, **{rule: functions[rule]})
        return weakref.ref(captured)

    kept = attended()
    gc.collect()
    assert kept() is None
