"""Block by block is the same function: in every mode of differentiation, for every block size, under every map."""

import itertools
import math
import re
from dataclasses import replace
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import suite
from x64 import x64_if

import attention_jax as aj
from attention_jax import scores
from attention_jax.block_sizes import CPU, block_grid, grid_for
from attention_jax.blocks.steps import few_keys, many_small, summed, tiny
from attention_jax.blocks.tiles import tiles_at
from attention_jax.blockwise import blockwise_attention, canonical
from attention_jax.devices import device_of
from attention_jax.score_rules import relative_bucket

SHAPE = (13, 17, 4, 2, 8, 5, (2,))
IDS = suite.segment_ids((2,), 13, 1), suite.segment_ids((2,), 17, 2)
MASKS = {
    "none": None,
    "causal": aj.causal(offset=-2),  # two rows see nothing
    "window": aj.sliding_window(4, 1, offset=2),
    "segments": aj.segments(*IDS) & aj.causal(offset=4),
    "array": aj.mask_from_array(np.random.default_rng(0).random((2, 1, 13, 17)) < 0.5) | aj.prefix(3),
}
BIAS = np.random.default_rng(3).normal(size=(2, 1, 13, 17)).astype(np.float32)
POISONS = [*itertools.product((0, 1, 2), (np.nan, np.inf, -np.inf))]
TABLE = np.random.default_rng(4).normal(size=(8, 4)).astype(np.float32)
SCORES = {
    "none": lambda slopes: None,
    "alibi": lambda slopes: scores.alibi(slopes, offset=0),
    "soft cap, then bias": lambda slopes: scores.soft_cap(slopes[0] + 2) >> scores.bias(slopes[1] * BIAS),
    "buckets": lambda slopes: scores.relative_bias(slopes[None, :] * TABLE, max_distance=10, offset=0),
    "function": lambda slopes: lambda logit, head, t, s: logit * slopes[head] + jnp.sin((t - s) * slopes[0]),
}
SLOPES = jnp.array([0.5, -1.0, 2.0, 0.25])


@pytest.fixture(scope="module")
def arrays():
    return suite.inputs(SHAPE)


def both(mask, score, **options):
    """The reference and the blockwise implementation as functions of query, key, value and a score's slopes."""

    def reference(query, key, value, slopes):
        return aj.multi_head_attention(query, key, value, mask=mask, score=score(slopes), **options)

    def blockwise(query, key, value, slopes, block_sizes=(5, 4)):
        options_ = {**options, "block_sizes": block_sizes}
        return blockwise_attention(query, key, value, mask=mask, score=score(slopes), **options_)[0]

    return reference, blockwise


def modes(attend, query, key, value, cotangent, slopes):
    """Gradient, tangent, tangent of the gradient, and gradient of the gradient, in all inputs at once."""
    inputs = query, key, value, slopes
    tangents = tuple(jnp.roll(x, 1, axis=0) for x in inputs)

    def total(*inputs):
        return jnp.vdot(attend(*inputs), cotangent)

    def gradient(*inputs):
        return jax.grad(total, (0, 1, 2, 3))(*inputs)

    def of_gradient(*inputs):
        return sum(jnp.vdot(one, other) for one, other in zip(gradient(*inputs), tangents, strict=True))

    return {
        "gradient": gradient(*inputs),
        "tangent": jax.jvp(attend, inputs, tangents)[1],
        "tangent of the gradient": jax.jvp(gradient, inputs, tangents)[1],
        "gradient of the gradient": jax.grad(of_gradient, (0, 1, 2, 3))(*inputs),
    }


@pytest.mark.slow
@pytest.mark.parametrize("mask, score", list(zip(MASKS, reversed(SCORES), strict=True)))
def test_every_mode_of_differentiation(mask, score, arrays):
    """Reverse over reverse among them, which `test_all_pairs.py` leaves out; the truth is the reference in float64."""
    dropout = {"dropout_rate": 0.3, "dropout_rng": jax.random.key(1)} if mask in ("none", "segments") else {}
    reference, blockwise = both(MASKS[mask], SCORES[score], **dropout)
    with x64_if(True):
        truth = jax.jit(partial(modes, reference))(*(x.astype("float64") for x in (*arrays, SLOPES)))
    ours = jax.jit(partial(modes, blockwise))(*arrays, SLOPES)
    for mode in truth:
        suite.close(ours[mode], truth[mode], tolerance=1e-5)


@pytest.mark.parametrize(
    "block_sizes", [*(pytest.param(x, marks=pytest.mark.slow) for x in ((1, 3), (64, 64))), (6, 17)]
)
def test_every_block_size(block_sizes, arrays):
    dropout = {"dropout_rate": 0.5, "dropout_rng": jax.random.key(3)}
    reference, blockwise = both(MASKS["segments"], SCORES["function"], **dropout)
    suite.close(
        jax.jit(partial(blockwise, block_sizes=block_sizes))(*arrays[:3], SLOPES), reference(*arrays[:3], SLOPES)
    )


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, aj.causal(offset=5)], ids=repr)
def test_what_fills_the_last_block_is_never_seen(mask):
    """Nor where the mask shows all of a tile in other blocks that stand as far from their queries."""
    query, key, value, _ = suite.inputs((16, 17, 4, 2, 6, 6, ()))
    ours = suite.blockwise(query, key, value, mask=mask, block_sizes=(4, 4), tile=1)
    suite.close(ours, aj.multi_head_attention(query, key, value, mask=mask))


@pytest.mark.slow
@pytest.mark.parametrize(
    "which",
    ["everything", "query", "mask", "value", "slopes", "rng"],
)
def test_vmap_over_any_argument(which, arrays):
    """And over its gradient, and over two at once."""
    query, key, value, cotangent = (x[0] for x in arrays)
    ids = jnp.stack([suite.segment_ids((), 13, seed) for seed in range(3)]), suite.segment_ids((), 17, 5)
    rngs = jax.random.split(jax.random.key(0), 3)

    def stacked(x, name):
        return jnp.stack([x, 2 * x, x - 1]) if which in (name, "everything") else x

    def gradient(attention, query, value, ids, slopes, rng):
        def total(query, key, value, slopes):
            score = scores.alibi(slopes, offset=0)
            mask = aj.segments(ids, suite.segment_ids((), 17, 5))
            options = {"mask": mask, "score": score, "dropout_rate": 0.2, "dropout_rng": rng}
            return jnp.vdot(attention(query, key, value, **options), cotangent)

        return jax.value_and_grad(total, (0, 1, 2, 3))(query, key, value, slopes)

    inputs = {
        "query": stacked(query, "query"),
        "value": stacked(value, "value"),
        "mask": ids[0] if which in ("mask", "everything") else ids[0][0],
        "slopes": stacked(SLOPES, "slopes"),
        "rng": rngs if which in ("rng", "everything") else rngs[0],
    }
    axes = [0 if which in (name, "everything") else None for name in inputs]
    mapped = [
        jax.jit(jax.vmap(partial(gradient, attention), in_axes=axes))(*inputs.values())
        for attention in (suite.blockwise, aj.multi_head_attention)
    ]
    suite.close(*mapped, tolerance=5e-6)


@pytest.mark.slow
def test_vmap_within_vmap(arrays):
    query, key, value, _ = (x[0] for x in arrays)
    queries, keys = jnp.stack([query, -query]), jnp.stack([key, key + 1, 2 * key])
    limits = jnp.array([[3, 9, 17], [0, 1, 12]])

    def attend(attention, query, key, limit):
        return jax.grad(lambda query: jnp.sum(attention(query, key, value, mask=aj.key_lengths(limit)) ** 2))(query)

    ours, theirs = (
        jax.jit(jax.vmap(jax.vmap(partial(attend, attention), in_axes=(None, 0, 0)), in_axes=(0, None, 0)))(
            queries, keys, limits
        )
        for attention in (suite.blockwise, aj.multi_head_attention)
    )
    suite.close(ours, theirs)


@pytest.mark.slow
def test_checkpoint_scan_and_eager_calls(arrays):
    query, key, value, _ = arrays
    attend = partial(suite.blockwise, mask=MASKS["causal"])

    def loss(query):
        return jnp.sum(jax.checkpoint(lambda query: attend(query, key, value))(query) ** 2)

    truth = jax.grad(lambda query: jnp.sum(aj.multi_head_attention(query, key, value, mask=MASKS["causal"]) ** 2))(
        query
    )
    suite.close(jax.jit(jax.grad(loss))(query), truth)

    def total(query):
        return jax.lax.scan(lambda sum, x: (sum + loss(x), None), 0.0, jnp.stack([query, query]))[0]

    suite.close(jax.jit(jax.grad(total))(query), 2 * truth)
    suite.close(attend(query, key, value), aj.multi_head_attention(query, key, value, mask=MASKS["causal"]))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_shard_map_over_the_batch(implementation, arrays):
    """Each device has some examples; the slopes are everyone's."""
    query, key, value, cotangent = arrays
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    ours, shared = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def attend(query, key, value, lengths, slopes):
        mask, score = aj.causal(offset=4) & aj.key_lengths(lengths), scores.alibi(slopes, offset=0)
        return aj.attention(query, key, value, mask=mask, score=score, implementation=implementation)

    def gradient(attend):
        def total(query, key, slopes):
            return jnp.vdot(attend(query, key, value, jnp.array([17, 3]), slopes), cotangent)

        return jax.jit(jax.grad(total, (0, 1, 2)))(query, key, SLOPES)

    spread = jax.shard_map(attend, mesh=mesh, in_specs=(ours, ours, ours, ours, shared), out_specs=ours)
    suite.close(gradient(spread), gradient(attend))


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
@pytest.mark.parametrize("tile", [4, CPU.tile])
def test_log_sum_exp_is_exact_and_differentiable(implementation, tile, arrays, monkeypatch):
    monkeypatch.setattr("attention_jax.block_sizes.CPU", CPU._replace(tile=tile))
    query, key, value, _ = (x.astype(jnp.bfloat16) for x in arrays)

    def ours(query, key):
        return aj.attention_and_lse(query, key, value, mask=MASKS["causal"], implementation=implementation)[1]

    def truth(query, key):
        query, key = query.astype(jnp.float32), jnp.repeat(key.astype(jnp.float32), 2, axis=-2)
        logits = jnp.einsum("btnh,bsnh->bnts", query, key) / math.sqrt(8)
        visible = jnp.broadcast_to(MASKS["causal"].to_array(13, 17), logits.shape)
        return jax.nn.logsumexp(jnp.where(visible, logits, -jnp.inf)[:, :, 2:], axis=-1)

    lse = jax.jit(ours)(query, key)
    assert lse.dtype == jnp.float32 and lse.shape == (2, 4, 13) and (lse[..., :2] == -jnp.inf).all()
    suite.close(lse[..., 2:], truth(query, key))
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 11)), jnp.float32)
    slopes, true_slopes = (
        jax.jit(jax.grad(lambda *x, fn=fn: jnp.vdot(fn(*x)[..., -11:], weights), (0, 1)))(query, key)
        for fn in (ours, truth)
    )
    suite.close(slopes, true_slopes, tolerance=2**-7)


@pytest.mark.slow
def test_parts_are_joined_by_their_log_sum_exp(arrays):
    query, key, value, _ = arrays
    (one, lse), (other, other_lse) = (
        aj.attention_and_lse(query, key[:, part], value[:, part], implementation="blockwise")
        for part in (slice(0, 6), slice(6, 17))
    )
    share = jnp.moveaxis(jax.nn.sigmoid(lse - other_lse), -1, -2)[..., None]
    suite.close(one * share + other * (1 - share), aj.multi_head_attention(query, key, value))


@pytest.mark.slow
def test_sinks_are_keys_without_a_value(arrays):
    query, key, value, _ = arrays
    sinks = jnp.array([0.3, -1.0, 2.0, 0.0])
    with_keys = [jnp.concatenate([x, jnp.zeros_like(x[:, :1])], axis=1) for x in (key, value)]
    bias = jnp.zeros((1, 4, 13, 18)).at[..., -1].set(jnp.broadcast_to(sinks[None, :, None], (1, 4, 13)))
    for implementation in ("reference", "blockwise"):
        output, _ = scores.add_sinks(*aj.attention_and_lse(query, key, value, implementation=implementation), sinks)
        suite.close(output, aj.multi_head_attention(query, *with_keys, bias=jnp.broadcast_to(bias, (2, 4, 13, 18))))
    slopes = jax.grad(lambda sinks: jnp.sum(scores.add_sinks(*aj.attention_and_lse(query, key, value), sinks)[0]))(
        sinks
    )
    assert (jnp.abs(slopes) > 1e-4).all()


def test_buckets_are_those_of_t5():
    distances = [
        d for d in range(-300, 301) if abs(d) not in (16, 32, 64, 128)
    ]  # there the logarithm is a whole number
    for buckets, bidirectional in ((32, False), (32, True), (20, True)):
        ours = relative_bucket(jnp.array(distances), buckets, 128, bidirectional=bidirectional)
        assert ours.tolist() == [reference.bucket(d, buckets, 128, bidirectional) for d in distances]


def temporary_bytes(fn, T):
    x = jax.ShapeDtypeStruct((1, T, 2, 16), jnp.float32)
    return jax.jit(fn).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes


def loss(query, key, value):
    return jnp.sum(aj.attention(query, key, value, mask=aj.causal() & aj.key_lengths(jnp.array([900]))) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    ["gradient", "forward", "tangent", "tangent of the gradient"],
)
def test_memory_grows_linearly(mode):
    gradient = jax.grad(loss, (0, 1, 2))
    fn = {
        "forward": loss,
        "gradient": gradient,
        "tangent": lambda *x: jax.jvp(loss, x, x)[1],
        "tangent of the gradient": lambda *x: jax.jvp(gradient, x, x)[1],
    }[mode]
    short, long = (temporary_bytes(fn, T) for T in (8192, 16384))
    assert 0 < long <= 2.1 * short


@pytest.mark.slow
def test_many_queries_on_one_key_head_take_no_more_memory():
    def bytes_of(N, K):
        query, key = (jax.ShapeDtypeStruct((1, 4096, heads, 16), jnp.float32) for heads in (N, K))
        attend = jax.jit(partial(aj.attention, mask=aj.causal()))
        return attend.lower(query, key, key).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(64, 1) <= 1.5 * bytes_of(64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("mask, blocks", [(None, 64), (aj.causal(), 36), (aj.key_lengths(np.array(17)), 24)])
def test_empty_blocks_are_skipped(mask, blocks):
    """At trace time or at run time: the score is asked for as many blocks as hold something."""
    visits = []

    def score(logit, head, t, s):
        jax.debug.callback(lambda: visits.append(None))
        return logit

    x = jnp.ones((64, 1, 4))
    jax.block_until_ready(blockwise_attention(x, x, x, mask=mask, score=score, block_sizes=(8, 8)))
    jax.effects_barrier()
    assert len(visits) == blocks


def test_empty_blocks_are_skipped_under_vmap():
    visits = []

    def score(logit, head, t, s):
        jax.debug.callback(lambda: visits.append(None))
        return logit

    def attend(length):
        return blockwise_attention(x, x, x, mask=aj.key_lengths(length), score=score, block_sizes=(8, 8))

    x = jnp.ones((64, 1, 4))
    jax.block_until_ready(jax.vmap(attend)(jnp.array([0, 17, 40])))
    jax.effects_barrier()
    assert len(visits) == 8 * (0 + 3 + 5)


@pytest.mark.slow
def test_gradients_of_low_precision(arrays):
    """Where one key has all the weight, the gradient is the difference of two equals, neither of which may be rounded."""
    query, key, value, cotangent = (x.astype(jnp.bfloat16) for x in arrays)
    dropout = {"dropout_rate": 0.4, "dropout_rng": jax.random.key(0)}
    _, backward = jax.vjp(lambda query: aj.attention(query, key, value, mask=aj.prefix(1), **dropout), query)
    assert jnp.abs(backward(cotangent)[0].astype(float)).max() < 1e-5


@pytest.mark.slow
def test_two_runs_are_equal_bit_for_bit(arrays):
    run = jax.jit(partial(suite.output_and_gradients, partial(suite.blockwise, mask=MASKS["segments"])))
    suite.same_bits(run(*arrays), run(*arrays))


def test_any_two_calls_can_be_told_apart(arrays):
    """A jit cache compares what it is asked for with what it holds, and an error there would be the caller's."""
    query, key, value, *_ = arrays
    gain = query.sum()
    functions = lambda logit, head, t, s: logit - s, lambda logit, head, t, s: logit * gain
    operations = []
    for mask in (None, aj.causal(offset=4), aj.key_lengths([3, 5]), aj.mask_from_function(lambda t, s: t > s)):
        for score in (None, scores.soft_cap(5.0), *functions):
            for rate in (0.0, 0.5):
                options = {"mask": mask, "score": score, "dropout_rate": rate, "dropout_rng": jax.random.key(0)}
                traced = jax.make_jaxpr(partial(aj.attention, **options))(query, key, value)
                operations += [x.params["operation"] for x in traced.jaxpr.eqns if "operation" in x.params]
    assert len(operations) == 32
    assert [[one == other for one in operations] for other in operations] == np.eye(32, dtype=bool).tolist()


def test_what_a_mask_does_to_an_only_block_is_known_in_a_loop_over_heads():
    x = jax.ShapeDtypeStruct((256, 64, 8, 4), jnp.float32)
    program = jax.jit(partial(aj.attention, mask=aj.causal())).lower(x, x, x).as_text()
    assert "stablehlo.while" in program
    assert "stablehlo.case" not in program


@pytest.mark.parametrize("mask, length, on_cpu, on_gpu", [
    (aj.sliding_window(0, 0), 4096, 256, 1024),
    (aj.sliding_window(256, 0), 4096, 256, 1024),
    (aj.sliding_window(700, 0), 4096, 512, 1024),
    (aj.sliding_window(3000, 0), 4096, 1024, 2048),
    (aj.causal() & aj.sliding_window(600, 0), 1024, 512, 1024),
    (aj.causal() & aj.segments(np.zeros(1500, int)), 1500, 750, 1500),
    (aj.causal(), 300, 300, 300),
    (None, 4096, 1024, 2048),
])  # fmt: skip
def test_size_of_blocks(mask, length, on_cpu, on_gpu):
    for platform, size in (("cpu", on_cpu), ("cuda", on_gpu), ("tpu", on_gpu)):
        grid = grid_for(mask, None, (length, 2, 64), (length, 2, 64), platform)
        assert (grid.size("t"), grid.size("s")) == (size, size)


@pytest.mark.parametrize("shape, platform, heads", [
    ((1, 4096, 8, 64), "cpu", 1),
    ((8, 256, 8, 64), "cpu", 8),
    ((16, 128, 4, 32), "cpu", 64),
    ((2, 4096, 16, 64), "cuda", 8),
    ((2, 1024, 16, 64), "tpu", 32),
])  # fmt: skip
def test_heads_and_examples_in_a_step(shape, platform, heads):
    grid = grid_for(aj.causal(), None, shape, shape, platform)
    assert grid.size("b") * grid.size("k") * grid.size("g") == heads


@pytest.mark.parametrize("shape, alone", [
    ((4, 256, 8, 64), True), ((4, 256, 8, 65), False), ((1, 1200, 1, 64), False),
])  # fmt: skip
def test_a_step_is_larger_beside_derivatives_if_it_is_all(shape, alone):
    grid = grid_for(aj.causal(), None, shape, shape, "cpu")
    assert not grid.alone
    assert grid.derived().alone == alone
    several = grid.of_examples(2, apart=False)
    assert several.derived().sizes == several.sizes


@pytest.mark.parametrize("count, alone", [(4, True), (5, False)])
def test_so_are_those_of_a_vmap(count, alone):
    shape = 1, 256, 8, 64
    grid = grid_for(aj.causal(), None, shape, shape, "cpu")
    assert not grid.of_examples(count, apart=False).alone
    assert grid.of_examples(count, apart=False).derived().alone == alone
    assert grid.derived().of_examples(count, apart=False).alone == alone
    assert not grid.of_examples(count, apart=True).derived().alone


@pytest.mark.parametrize("T, S, mask, blocks", [
    (4096, 77, None, (4096, 77)), (8190, 77, None, (4095, 77)), (8192, 77, None, (4096, 77)),
    (8209, 77, None, (4105, 77)), (9000, 200, None, (2250, 200)), (16, 8192, None, (16, 8192)),
    (16, 65536, None, (16, 8192)), (300, 9000, aj.causal(offset=8700), (300, 1500)), (1, 8192, None, (1, 1024)),
    (16, 8192, aj.key_lengths(np.array(99)), (16, 1024)), (16, 8192, aj.sliding_window(99, 0, offset=0), (16, 256)),
])  # fmt: skip
def test_blocks_are_longer_where_queries_or_keys_are_few(T, S, mask, blocks):
    grid = grid_for(mask, None, (T, 4, 64), (S, 2, 128), "cpu")
    assert (grid.size("t"), grid.size("s")) == blocks


@pytest.mark.parametrize("T, lengths", [(1, None), (7, None), (7, 900)])
@pytest.mark.parametrize("of", ["mask", "score"])
def test_gradients_of_few_queries_through_a_function_of_the_shape_of_a_block(T, lengths, of):
    *arrays, cotangent = suite.inputs((T, 1100, 2, 1, 32, 5, (2,)))
    table = jnp.sin(jnp.arange(1200.0))

    def attend(implementation, query, key, value, table):
        mask = None if lengths is None else aj.key_lengths(jnp.array([lengths, 3]))
        options = {"mask": mask, "score": lambda logit, head, t, s: logit + table[s - t + 50]}
        if of == "mask":
            function = aj.mask_from_function(lambda t, s: jnp.arange(1200)[s - t + 50] % 3 > 0)
            options = {"mask": function if mask is None else function & mask}
        return aj.attention(query, key, value, implementation=implementation, **options)

    def gradients(implementation):
        return jax.jit(jax.vjp(partial(attend, implementation), *arrays, table)[1])(cotangent)

    suite.close(gradients("blockwise"), gradients("reference"))


@pytest.mark.parametrize("H, alone", [(8, 3000), (64, 16000)], ids=["beside derivatives", "without"])
@pytest.mark.parametrize("of", ["mask", "score"])
def test_a_function_meets_the_same_block_in_both_passes(H, alone, of):
    """Where other masks and scores have queries of few keys cut up in one pass only."""
    *arrays, cotangent = suite.inputs((100, 5, 1, 1, H, H, ()))
    table = jnp.sin(jnp.arange(200.0))

    def attend(implementation, query, key, value, table):
        options = {"score": lambda logit, head, t, s: logit + table[t - s + 50]}
        if of == "mask":
            options = {"mask": aj.mask_from_function(lambda t, s: table[t - s + 50] > -0.5)}
        return aj.attention(query, key, value, implementation=implementation, **options)

    def gradients(implementation):
        return jax.jit(jax.vjp(partial(attend, implementation), *arrays, table)[1])(cotangent)

    with mock.patch("attention_jax.block_sizes.CPU", CPU._replace(step=2**8, alone=alone)):
        shapes = (100, 1, H), (5, 1, H)
        other = grid_for(aj.prefix(3), None, *shapes, "cpu")
        assert other.size("t") != other.derived().size("t")
        suite.close(gradients("blockwise"), gradients("reference"))


@pytest.mark.parametrize("B, T, S, t, beside", [
    (1, 3000, 7, 3000, 3000), (1, 4096, 7, 2048, 4096), (1, 8192, 16, 8192, 2048), (3, 3000, 7, 1500, 1500),
    (3, 3001, 7, 3001, 3001), (8, 4096, 77, 1024, 1024), (8, 4099, 77, 1367, 1367),
])  # fmt: skip
def test_many_queries_of_few_keys_are_cut_up_unless_all_are_taken_at_once(B, T, S, t, beside):
    """With nothing to fill in the last block, if that can be; in no larger blocks than those of a million scores. The
    fewest keys are cut up sooner, but for derivatives."""
    grid = grid_for(None, None, (B, T, 8, 64), (B, S, 1, 64), "cpu")
    assert (grid.size("t"), grid.derived().size("t")) == (t, beside)
    assert grid.alone == (B == 1 and t == T) and grid.derived().alone == (B == 1 and beside == T)


@pytest.mark.parametrize("K, S, mask, most", [
    (8, 64, None, 21), (8, 64, aj.causal(), 18), (1, 64, None, 20), (8, 128, None, 12), (8, 129, aj.causal(), 12),
    (8, 129, None, 15), (8, 256, None, 7),
])  # fmt: skip
def test_what_is_taken_at_once_beside_derivatives_is_what_malloc_does_not_give_back(K, S, mask, most):
    """Of fewer examples where XLA keeps more arrays of scores: under a mask, of heads in groups, of keys by rows."""
    for B in (most, most + 1):
        grid = grid_for(mask, None, (B, 128, 8, 64), (B, S, K, 64), "cpu").derived()
        assert grid.alone == (most == B)


def test_many_keys_of_few_queries_are_cut_up():
    """So little is done with each that all, copied at once, would not stay in the cache."""
    for T, B in {15: 16, 16: 80}.items():
        grids = [grid_for(None, None, (b, T, 8, 64), (b, 64, 8, 64), "cpu") for b in (B, 2 * B)]
        assert [grid.alone for grid in grids] == [True, False]


def test_queries_of_a_lone_key_are_taken_at_once():
    for S, alone in {1: True, 2: False}.items():
        assert grid_for(None, None, (64, 512, 1, 128), (64, S, 1, 128), "cpu").alone == alone


def test_examples_of_a_vmap_are_taken_at_once_in_a_forward_pass_if_not_beside_derivatives():
    grid = grid_for(None, None, (2048, 8, 64), (16, 1, 64), "cpu")
    some = grid.of_examples(4, apart=False)
    assert some.alone and not some.derived().alone
    assert grid.derived().of_examples(4, apart=False).sizes == some.derived().sizes
    assert not grid.of_examples(8, apart=False).alone
    cut = grid_for(None, None, (8192, 8, 64), (16, 1, 64), "cpu")
    assert cut.of_examples(1, apart=False).derived().sizes == cut.derived().sizes != cut.sizes


@pytest.mark.parametrize("T, S, mask, heads", [
    (64, 1024, None, 3), (65, 1024, None, 5), (1, 1024, None, 5), (64, 2048, aj.key_lengths(np.array(99)), 5),
])  # fmt: skip
def test_steps_of_few_queries_take_fewer_heads(T, S, mask, heads):
    """But for a lone query, and for keys in blocks."""
    assert grid_for(mask, None, (2, T, 15, 64), (2, S, 15, 64), "cpu").size("k") == heads


@pytest.mark.parametrize("T, S, size", [
    (64, 6252, 521), (64, 5001, 5001), (64, 6250, 625), (65, 6252, 894), (64, 4096, 1024), (64, 3, 3),
])  # fmt: skip
def test_few_queries_have_no_keys_copied_to_fill_a_block(T, S, size):
    """Two heads of them at a key's head of 128 channels; at most about twice as many blocks, or one."""
    grid = grid_for(aj.key_lengths(np.array(99)), None, (T, 4, 64), (S, 2, 128), "cpu")
    assert grid.size("s") == size and (grid.length("s") == S) == (T == 64)


@pytest.mark.parametrize("T, mask, uncut", [
    (64, aj.key_lengths(np.array(99)), True), (65, aj.key_lengths(np.array(99)), False), (1, None, True),
    (64, aj.key_lengths(np.array(99)) & aj.sliding_window(99, 0, offset=4032), False),
])  # fmt: skip
def test_keys_of_few_queries_are_cut_up_only_without_derivatives(T, mask, uncut):
    """But for those beside a narrow band, and where the caller says how large a block may be."""
    shapes = (T, 4, 64), (4096, 2, 128)
    grid = grid_for(mask, None, *shapes, "cpu")
    assert not grid.alone and grid.derived().alone == uncut
    assert not block_grid(*shapes, (T, 1024), CPU).derived().alone


@pytest.mark.slow
@pytest.mark.parametrize("B", [4, 5])
@pytest.mark.parametrize("mask, known", [(aj.causal(), True), (aj.key_lengths(np.array(99)), False)])
def test_a_step_that_is_all_is_not_asked_what_it_shows(mask, known, B):
    x = jax.ShapeDtypeStruct((B, 256, 8, 64), jnp.float32)
    program = jax.jit(jax.grad(lambda x: aj.attention(x, x, x, mask=mask).sum())).lower(x).as_text()
    assert ("stablehlo.while" in program) == (B == 5)
    assert ("stablehlo.case" in program) == (B == 5 and not known)


@pytest.mark.parametrize("length, platform, most, tile", [
    (64, "cpu", 4, 128), (300, "cpu", 4, 128), (1024, "cpu", 4, 256), (1024, "cpu", 8, 128), (1500, "cpu", 4, 256),
    (4096, "cuda", 4, 512), (4096, "cuda", 8, 256),
])  # fmt: skip
def test_pieces_of_a_block_are_no_more_than_asked_for(length, platform, most, tile):
    shape = length, 2, 64
    assert grid_for(aj.causal(), None, shape, shape, platform).tile_of(most) == tile


@pytest.mark.slow
def test_two_steps_run_together():
    """Each has its own products in the loop, whose passes are half as many; not if an odd step would stay over."""
    x = jax.ShapeDtypeStruct((32, 12, 8), jnp.float32)
    counts = {}
    for heads in (0.5, 1, 2, 4):
        step = int(heads * 32 * 32)
        with mock.patch("attention_jax.block_sizes.CPU", CPU._replace(step=step, few=step, alone=1)):
            program = jax.jit(partial(aj.attention, implementation="blockwise")).lower(x, x, x).compile().as_text()
        counts[heads] = program.count(" dot(")
    assert counts == {0.5: 4, 1: 4, 2: 4, 4: 2}


def test_steps_larger_than_they_should_be_run_together_only_if_they_are_of_all_keys():
    for length, together in ((1024, 2), (2048, 1)):
        assert grid_for(aj.causal(), None, (length, 8, 64), (length, 8, 64), "cpu").together == together


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(64, 4, 32), (256, 8, 64)])
@pytest.mark.parametrize("examples", [8, 200])
def test_steps_of_a_vmap_are_those_of_a_batch(shape, examples):
    """As many, each of as many examples."""
    x = jax.ShapeDtypeStruct((examples, *shape), jnp.float32)

    def numbers(attend):
        """Of each product, and of loops."""
        program = jax.jit(attend).lower(x, x, x).as_text()
        types = re.findall(r"dot_general.*-> tensor<(.*)xf32>", program)
        return sorted(math.prod(map(int, each.split("x"))) for each in types), program.count("stablehlo.while")

    attend = partial(aj.attention, mask=aj.causal())
    assert numbers(jax.vmap(attend)) == numbers(attend)


def test_what_xla_makes_of_a_step_is_asked_again_for_a_vmap():
    x = jnp.ones((8, 64, 4, 32))
    with mock.patch("attention_jax.blocks.steps.tiny", return_value=False) as asked:
        jax.vmap(aj.attention)(x, x, x)
    assert asked.call_args.args[0].length("x") == 8


@pytest.mark.parametrize("alone", [1, CPU.alone])
@pytest.mark.parametrize("S", [4, 100], ids=["few", "many"])
def test_a_row_without_an_answer_takes_nothing_even_of_nan(alone, S):
    """Neither one whose query is NaN nor one that sees nothing, in either mode, in many steps and in one."""
    query, key, value, cotangent = suite.inputs((7, S, 2, 1, 8, 5, (3,)))
    query, rows = query.at[:, 1].set(jnp.nan), jnp.arange(7)
    without = jnp.isin(rows, jnp.array([1, 4]))[:, None, None]
    mask = jnp.broadcast_to((rows != 4)[:, None], (7, S))
    attend = partial(blockwise_attention, mask=mask)

    with mock.patch("attention_jax.block_sizes.CPU", CPU._replace(step=1, alone=alone, few=1)):
        (output, _), pull = jax.vjp(attend, query, key, value)
        found, clean = (pull((jnp.where(without, x, cotangent), jnp.zeros((3, 2, 7)))) for x in (jnp.nan, 0))
        (_, _), (tangent, _) = jax.jvp(lambda query: attend(query, key, value), (query,), (query,))
    assert np.isnan(output[:, 1]).all() and not output[:, 4].any()
    for one, other in zip(found, clean, strict=True):
        suite.same_bits(one, other)
        assert np.isfinite(one).all() and np.asarray(one).any()
    assert not found[0][:, [1, 4]].any() and not tangent[:, 4].any()
    assert np.isfinite(np.delete(tangent, 1, axis=1)).all() and np.asarray(tangent[:, 0]).any()


@pytest.mark.parametrize("block_sizes, of_keys_too", [((8, 8), False), ((32, 8), True)])
def test_what_is_written_once_is_not_read(block_sizes, of_keys_too):
    def backward(query, key, value, cotangents):
        return jax.vjp(partial(blockwise_attention, block_sizes=block_sizes), query, key, value)[1](cotangents)

    x, lse = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((32, 4, 8), (4, 32)))
    with mock.patch("attention_jax.block_sizes.CPU", CPU._replace(step=1, alone=1, few=1)):
        program = jax.jit(backward).lower(x, x, x, (x, lse)).as_text()
    taken = [line for line in program.splitlines() if "stablehlo.dynamic_slice" in line]
    # of query, key and value in both passes; log-sum-exp and cotangents; what is added to for the key and the value
    assert len(taken) == 2 * 3 + 3 + (0 if of_keys_too else 2)


@pytest.mark.parametrize("block_sizes", [(13, 6), (5, 17)])
def test_gradient_of_a_bias_that_all_blocks_share(block_sizes, arrays):
    """It is a sum over the blocks, also where each row or column of scores is met once."""
    query, key, value, cotangent = arrays

    def score(biases):
        return scores.bias(biases[0]) >> scores.soft_cap(2) >> scores.bias(biases[1])

    reference, blockwise = both(None, score)
    biases = jnp.sin(jnp.arange(13.0))[:, None], jnp.cos(jnp.arange(17.0))[None, :]

    def gradient(attend, biases):
        return jax.grad(lambda biases: jnp.vdot(attend(query, key, value, biases), cotangent))(biases)

    suite.close(gradient(partial(blockwise, block_sizes=block_sizes), biases), gradient(reference, biases))


def one_head_a_step(*arrays, **options):
    """All keys of a head in a step of a loop: which takes each key once, and cuts it out of the caller's array."""
    with mock.patch("attention_jax.block_sizes.CPU", CPU._replace(step=1, tile=4)):
        return blockwise_attention(*arrays, **options)[0]


def test_keys_that_a_loop_takes_once_are_not_copied():
    def copies(attention):
        lines = jax.jit(attention).lower(*inputs).as_text().splitlines()
        return sum("transpose" in line and "(tensor<2x16x4x8xf32>)" in line for line in lines)

    *inputs, _ = suite.inputs((16, 16, 4, 4, 8, 8, (2,)))
    assert copies(partial(one_head_a_step, mask=aj.causal())) == 0
    assert copies(partial(one_head_a_step, mask=aj.causal(), block_sizes=(16, 8))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["none", "causal", "window"])
@pytest.mark.parametrize("score", ["none", "alibi", "soft cap, then bias"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_one_head_a_step(mask, score, heads):
    *arrays, cotangent = suite.inputs((13, 17, *heads, 8, 5, (2,)))
    options = {"mask": MASKS[mask], "score": SCORES[score](SLOPES)}
    ours, plain = (
        jax.jit(partial(suite.output_and_gradients, partial(attention, **options)))(*arrays, cotangent)
        for attention in (one_head_a_step, aj.multi_head_attention)
    )
    alone = jax.jit(partial(one_head_a_step, **options))(*arrays)  # which is not compiled as where there is a gradient
    assert suite.error(alone, plain[0]) <= suite.TOLERANCES["float32"]
    for one, other in zip(ours, plain, strict=True):
        assert suite.error(one, other) <= suite.GRADIENT_TOLERANCES["float32"]


@pytest.mark.slow
def test_one_head_a_step_with_the_products_of_many(arrays):
    mask = aj.causal(offset=4)
    with mock.patch("attention_jax.blocks.steps.many_small", return_value=True):
        ours = one_head_a_step(*arrays[:3], mask=mask)
    assert suite.error(ours, aj.multi_head_attention(*arrays[:3], mask=mask)) <= suite.TOLERANCES["float32"]


@pytest.mark.slow
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [1, 2])
def test_one_head_a_step_is_poisoned_only_where_it_sees(poison, which):
    """The key or the value at position 9 under a causal mask; key/value head 1 serves query heads 2 and 3."""
    *arrays, _ = suite.inputs((17, 17, 4, 2, 8, 5, (2,)))
    attend = jax.jit(partial(one_head_a_step, mask=aj.causal()))
    clean = np.asarray(attend(*arrays))
    arrays[which] = arrays[which].at[:, 9, 1, 2].set(poison)
    output = np.array(attend(*arrays))
    assert np.isnan(output[:, 9:, 2:]).all()
    output[:, 9:, 2:] = clean[:, 9:, 2:]
    assert output.tobytes() == clean.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("mapped", [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0)])
def test_one_head_a_step_under_vmap(mapped):
    *arrays, _ = suite.inputs((13, 17, 4, 2, 8, 5, (3,)))
    arrays = [x if axis == 0 else x[0] for x, axis in zip(arrays, mapped, strict=True)]
    ours = jax.jit(jax.vmap(partial(one_head_a_step, mask=aj.causal(offset=0)), mapped))(*arrays)
    plain = jax.vmap(partial(aj.multi_head_attention, mask=aj.causal(offset=0)), mapped)(*arrays)
    assert suite.error(ours, plain) <= suite.TOLERANCES["float32"]


def test_a_chunk_of_queries_that_sees_nearly_all_keys_has_large_blocks():
    grid = grid_for(aj.causal(offset=1008), None, (8, 16, 64, 64), (8, 1024, 64, 64), "cpu")
    assert (grid.size("t"), grid.size("s")) == (16, 1024)


def test_what_counts_as_many_small_blocks():
    """The steps are of 16 heads of 128 x 128 each, 8 of 256 x 256, 4 of 512 x 512 and 4 of 128 x 128; then of heads of
    other widths, and in groups."""
    cases = {(16, 16, 128, 64): True, (8, 8, 256, 64): True, (32, 32, 512, 64): False, (4, 4, 128, 64): False}
    cases |= {(16, 16, 128, 32): True, (16, 16, 128, 31): False, (16, 16, 128, 129): False, (16, 8, 128, 64): False}
    for (N, K, length, H), many in cases.items():
        assert many_small(grid_for(None, None, (length, N, H), (length, K, H), "cpu"), H) == many


def test_what_counts_as_tiny():
    """At most 2048 multiplications, in all heads, of more than one query a key."""
    cases = {(1, 4, 1, 512): True, (1, 4, 1, 513): False, (2, 4, 4, 64): True, (1, 4, 4, 64): False}
    for (T, N, K, H), so in cases.items():
        assert tiny(grid_for(None, None, (T, N, H), (1, K, H), "cpu"), H) == so


@pytest.mark.parametrize("H, products", [(512, 2), (513, 3)], ids=["tiny", "not"])
def test_a_lone_key_is_looked_at_together_with_its_value(H, products):
    """In the same product if that is tiny, which is the key's own, or in one of its own."""
    query, key, value, _ = suite.inputs((1, 1, 4, 1, H, H, ()))
    assert jax.jit(aj.attention).lower(query, key, value).as_text().count("dot_general") == products
    assert np.isfinite(aj.attention(query, key, value)).all()
    for x in jnp.nan, jnp.inf:
        assert np.isnan(aj.attention(query, key, value.at[..., H // 2].set(x))).all()
        assert not aj.attention(query, key, value.at[..., H // 2].set(x), mask=jnp.zeros((1, 1), bool)).any()


def test_what_loops_sum():
    """128 to 2048 multiplications, in all heads, of more than one query and more than one key."""
    cases = {(2, 2, 2, 16): True, (2, 2, 2, 15): False, (8, 8, 2, 16): True, (8, 8, 2, 17): False}
    cases |= {(1, 8, 2, 16): False, (8, 1, 2, 16): False}
    for (T, S, N, H), so in cases.items():
        assert summed(grid_for(None, None, (T, N, H), (S, N, H), "cpu"), H) == so


def test_what_loops_sum_has_no_products():
    def products(*shape, **options):
        x = jnp.ones(shape)
        return (
            jax.jit(jax.grad(lambda x: aj.attention(x, x, x, **options).sum())).lower(x).as_text().count("dot_general")
        )

    assert products(4, 2, 8) == products(2, 4, 2, 8) == 0 < products(16, 2, 8)
    assert products(4, 2, 8, precision="highest") > 0  # which is a product's to honour


@pytest.mark.slow
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_products_that_loops_sum(heads):
    *arrays, cotangent = suite.inputs((4, 6, *heads, 3, 5, (2,)))
    options = {"mask": aj.causal(offset=2), "score": SCORES["alibi"](SLOPES)}
    ours, plain = (
        jax.jit(partial(suite.output_and_gradients, partial(attention, **options)))(*arrays, cotangent)
        for attention in (partial(aj.attention, implementation="blockwise"), aj.multi_head_attention)
    )
    for one, other in zip(ours, plain, strict=True):
        assert suite.error(one, other) <= suite.GRADIENT_TOLERANCES["float32"]


def test_what_counts_as_few_keys():
    """No more than a head has channels, or twice so many up to 128, or 64; but for the channels, than are in a tile."""
    cases = [(1, 8), (64, 8), (65, 32), (100, 50), (101, 50), (128, 64), (129, 128), (256, 256), (257, 256)]
    assert [few_keys(S, H, CPU.tile) for S, H in cases] == [True, True, False, True, False, True, False, True, False]
    assert few_keys(32, 16, 32) and not few_keys(33, 16, 32) and few_keys(33, 33, 32)


@pytest.mark.parametrize("T, S, H, few", [
    (32, 128, 16, True), (31, 128, 16, False), (200, 129, 16, False), (200, 128, 17, False), (200, 128, 16, True)
])  # fmt: skip
def test_keys_of_narrow_heads_are_few_in_a_forward_pass_alone(T, S, H, few):
    query, key = jnp.ones((T, 2, H)), jnp.ones((S, 2, H))
    grid = grid_for(None, None, query.shape, key.shape, "cpu")
    rule = canonical(query, key, key, None, None, None, 0.0, None, None, grid).rule
    beside, given = (replace(rule, **change).fitted(grid) for change in ({"derived": True}, {"own_lse": False}))
    assert rule.few == few and not (beside.few or given.few)
    assert beside.by_rows == given.by_rows == (2 * T <= S)


@pytest.mark.parametrize("T, S, H", [(128, 8209, 128), (594, 1112, 2048)])
def test_keys_that_are_cut_up_without_derivatives_alone(T, S, H):
    """More or fewer than a head has channels: by columns in blocks, they are so in a whole, too."""
    *inputs, cotangent = suite.inputs((T, S, 1, 1, H, H, ()))

    def both(implementation, *inputs):
        output, pull = jax.vjp(partial(aj.attention, implementation=implementation), *inputs)
        return output, pull(cotangent.astype(output.dtype))

    suite.close(jax.jit(partial(both, "blockwise"))(*inputs), suite.exact(both, inputs), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("length, tiles", [(40, 1), (200, 1), (256, 1), (300, 2), (512, 2)])
def test_a_block_of_few_keys_is_cut_where_that_pays(length, tiles):
    """However many keys there are, they are few for heads of as many channels."""
    x = jnp.ones((length, 1, length))
    grid = grid_for(aj.causal(), None, x.shape, x.shape, "cpu")
    problem = canonical(x, x, x, aj.causal(), None, None, 0.0, None, None, grid)
    assert problem.rule.few and len(tiles_at(problem.rule, grid, {"t": 0, "s": 0}, 4)) == tiles


@pytest.mark.slow
def test_a_cut_block_of_few_keys():
    """Each query's keys are in one tile, as where the block is whole."""
    *inputs, cotangent = suite.inputs((300, 300, 2, 1, 320, 320, ()))

    def both(implementation, *inputs):
        attend = partial(aj.attention, mask=aj.causal(), implementation=implementation)
        output, pull = jax.vjp(attend, *inputs)
        return output, pull(cotangent.astype(output.dtype))

    ours = jax.jit(partial(both, "blockwise"))(*inputs)
    with x64_if(True):
        suite.close(ours, jax.jit(partial(both, "reference"))(*(x.astype("float64") for x in inputs)), 1e-5)


@pytest.mark.parametrize(
    "S, H, narrow", [(64, 32, True), (64, 33, False), (512, 8, True), (65, 9, False), (513, 8, False)]
)
def test_keys_of_narrow_heads_are_turned(S, H, narrow):
    """Which a barrier keeps XLA from undoing: of up to 32 channels, or of 8 and 512 keys, for more than a query."""
    for T, turned in {2: narrow, 1: False}.items():
        query, key = (jax.ShapeDtypeStruct((length, 2, H), jnp.float32) for length in (T, S))
        with mock.patch("attention_jax.blocks.block_form.OLD_XLA", True):
            program = jax.jit(aj.attention).lower(query, key, key).as_text()
        assert ("optimization_barrier" in program) == turned


@pytest.mark.parametrize("T, S, mask, at_once", [
    (8, 8, None, True), (8, 9, None, False), (8, 7, None, False), (8, 8, aj.causal(), True), (129, 129, None, False),
])  # fmt: skip
@pytest.mark.parametrize("many_small, H, old", [
    (True, 33, True), (True, 8, True), (False, 33, True), (False, 33, False)
])  # fmt: skip
def test_scores_are_checked_by_what_they_become(T, S, mask, at_once, many_small, H, old):
    """Those of few keys, of no more than there are queries; not in a batch of small products, unless keys are turned;
    in a newer XLA, not under a mask."""
    query, key = (jax.ShapeDtypeStruct((length, 2, H), jnp.float32) for length in (T, S))
    old_xla = mock.patch("attention_jax.blocks.block_form.OLD_XLA", old)
    with old_xla, mock.patch("attention_jax.blocks.steps.many_small", return_value=many_small):
        program = jax.jit(partial(aj.attention, mask=mask)).lower(query, key, key).as_text()
    at_once = at_once and (H == 8 or not many_small) and (old or mask is None)
    assert ("0x7FC00000" not in program) == at_once


@pytest.mark.parametrize("T, S, Hv, turned", [
    (16, 3, 16, True), (16, 23, 16, True), (15, 3, 16, False), (16, 2, 16, False), (16, 25, 16, False),
    (16, 8, 16, False), (16, 3, 17, False),
])  # fmt: skip
def test_weights_that_fill_no_vectors_are_turned(T, S, Hv, turned):
    """And values, if they are of up to 16 channels, for 16 queries and more; not beside derivatives."""
    query, key, value = (jax.ShapeDtypeStruct((n, 2, h), jnp.float32) for n, h in ((T, 64), (S, 64), (S, Hv)))
    with mock.patch("attention_jax.blocks.block_form.OLD_XLA", True):
        forward = jax.jit(aj.attention).lower(query, key, value).as_text()
        both = jax.jit(jax.grad(lambda *x: aj.attention(*x).sum())).lower(query, key, value).as_text()
    assert ("optimization_barrier" in forward) == turned and "optimization_barrier" not in both


def lowered(batch, queries, keys):
    query, key = (jax.ShapeDtypeStruct((batch, length, 8, 64), jnp.float32) for length in (queries, keys))
    return jax.jit(partial(aj.attention, implementation="blockwise")).lower(query, key, key)


def test_few_queries_take_keys_by_rows():
    """To put them by columns would take longer than the rest."""
    assert "tensor<1x8x64x256xf32>" in lowered(1, 256, 256).as_text()
    assert "tensor<1x8x64x256xf32>" not in lowered(1, 1, 256).as_text()


def test_steps_of_few_queries_are_of_few_keys():
    """Which are the largest arrays: all of them, copied at once, would not stay in the cache."""
    assert lowered(8, 1, 1024).compile().memory_analysis().temp_size_in_bytes < 10 * 2**20


def test_steps_stay_below_what_malloc_gives_back():
    shapes = [(batch, 64, 8, 64) for batch in (51, 52)]
    assert [grid_for(None, None, shape, shape, "cpu").size("b") for shape in shapes] == [51, 4]


@pytest.mark.slow
@pytest.mark.parametrize("B, T, S, H", [(32, 64, 64, 64), (8, 128, 128, 96), (4, 512, 77, 64), (4, 256, 256, 64)])
def test_what_is_taken_at_once_is_below_what_malloc_gives_back(B, T, S, H):
    query, key = (jax.ShapeDtypeStruct((B, length, 8, H), jnp.float32) for length in (T, S))

    def with_backward(cotangent, *inputs):
        output, pull = jax.vjp(aj.attention, *inputs)
        return output, pull(cotangent)

    compiled = jax.jit(with_backward).lower(query, query, key, key).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 32 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("queries, keys", [(35, 1), (35, 2), (35, 40), (35, 41), (35, 64), (3, 70)])
def test_by_rows(queries, keys):
    """Fewer keys than channels of a query, than those of a value, and more; and few queries."""
    *inputs, cotangent = suite.inputs((queries, keys, 4, 2, 8, 40, (2,)))
    mask = aj.key_lengths(np.array([0, keys])) & aj.causal(offset=keys - queries + 2)
    modes = partial(suite.every_mode, cotangent, mask=mask)
    truth = suite.exact(modes, inputs)

    block = min(keys, 64)
    many_steps = CPU._replace(block=block, narrow=block, step=1, few=1)
    for sizes, old in ((CPU, True), (CPU, False), (many_steps, True)):
        old_xla = mock.patch("attention_jax.blocks.block_form.OLD_XLA", old)
        with old_xla, mock.patch("attention_jax.block_sizes.CPU", sizes):
            suite.close(jax.jit(partial(modes, "blockwise"))(*inputs), truth, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {},
    {"mask": aj.causal(offset=-2)},
    {"mask": aj.key_lengths(np.array([0, 20])), "score": aj.soft_cap(2.0)},
    {"dropout_rate": 0.5, "dropout_rng": jax.random.key(0)},
], ids=["", "causal", "padded", "dropout"])  # fmt: skip
@pytest.mark.parametrize("keys", [21, 70], ids=["few keys", "narrow heads"])
@pytest.mark.parametrize("old", [True, False], ids=["old XLA", "new XLA"])
def test_few_keys_without_derivatives(options, keys, old):
    """Which are taken otherwise beside derivatives."""
    *inputs, _ = suite.inputs((40, keys, 4, 2, 8, 12, (2,)))

    def attend(implementation, *inputs):
        output, lse = aj.attention_and_lse(*inputs, implementation=implementation, **options)
        return output, jnp.exp(lse)

    with mock.patch("attention_jax.blocks.block_form.OLD_XLA", old):
        ours = jax.jit(partial(attend, "blockwise"))(*inputs)
    suite.close(ours, suite.exact(attend, inputs), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"dropout_rate": 0.5, "dropout_rng": jax.random.key(0)}])
def test_one_key(options):
    """Its weight is 1, and the log-sum-exp its logit."""
    *inputs, cotangent = suite.inputs((35, 1, 4, 2, 8, 40, (2,)))
    modes = partial(suite.every_mode, cotangent, **options)
    ours = jax.jit(partial(modes, "blockwise"))(*inputs)
    truth = suite.exact(modes, inputs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)  # some are 0, as a difference of what is not


@pytest.mark.parametrize("options", [
    {},
    {"mask": aj.causal(offset=-2)},
    {"mask": aj.key_lengths(np.array([0, 1]))},
    {"mask": aj.causal(offset=-2), "score": scores.soft_cap(2.0)},
    {"dropout_rate": 0.5, "dropout_rng": jax.random.key(0)},
], ids=["", "causal", "padded", "capped", "dropout"])  # fmt: skip
@pytest.mark.parametrize("block_sizes", [None, (8, 1)], ids=["at once", "in blocks"])
def test_the_logit_of_one_key_moves_no_output(options, block_sizes):
    """So query and key have no gradient, whatever overflows; the value has that of rows that see it, and are not NaN."""
    *inputs, cotangent = suite.inputs((35, 1, 4, 2, 8, 12, (2,)))

    def gradients(attend, *inputs):
        output, pull = jax.vjp(lambda *inputs: attend(*inputs, **options)[0], *inputs)
        return output, *pull(cotangent)

    ours = jax.jit(partial(gradients, partial(blockwise_attention, block_sizes=block_sizes)))
    plain = jax.jit(partial(gradients, partial(aj.attention_and_lse, implementation="reference")))
    for which, poison in ((0, 0.5), (2, 3e38), *POISONS):
        spoilt = [x.at[:, -1, 1, 2].set(poison) if index == which else x for index, x in enumerate(inputs)]
        (output, d_query, d_key, d_value), true = ours(*spoilt), plain(*spoilt)
        assert not d_query.any() and not d_key.any()
        np.testing.assert_allclose(output, true[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(d_value, true[-1], rtol=1e-5, atol=1e-5)


def test_one_key_with_the_largest_of_values():
    query, key, value = jnp.ones((3, 2, 512)), jnp.ones((1, 2, 512)), jnp.full((1, 2, 512), np.finfo(np.float32).max)
    np.testing.assert_array_equal(aj.attention(query, key, value), jnp.broadcast_to(value, (3, 2, 512)))


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [{}, {"dropout_rate": 0.5, "dropout_rng": jax.random.key(0)}], ids=["", "dropout"])
@pytest.mark.parametrize("T, S, H", [(35, 1, 8), (48, 9, 8), (48, 40, 32), (3, 5, 40), (48, 70, 8), (3, 70, 8)])
@pytest.mark.parametrize("old", [True, False], ids=["old XLA", "new XLA"])
def test_an_only_block_of_which_a_key_is_poisoned(T, S, H, dropout, old):
    """That of head 1, which heads 2 and 3 of the queries see: these are NaN, whole, and take nothing back."""
    *inputs, cotangent = suite.inputs((T, S, 4, 2, H, H, (2,)))

    attend = partial(aj.attention_and_lse, implementation="blockwise", **dropout)
    forward = jax.jit(lambda *inputs: attend(*inputs)[0])

    @jax.jit
    def both(*inputs):
        (output, lse), pull = jax.vjp(attend, *inputs)
        return (output, jnp.moveaxis(lse, 1, 2)), pull((cotangent, jnp.ones_like(lse)))

    with mock.patch("attention_jax.blocks.block_form.OLD_XLA", old):
        outputs, gradients = both(*inputs)
        forward(*inputs)
    for which, poison in itertools.product((1, 2), (np.nan, np.inf, -np.inf)):
        spoilt = *inputs[:which], inputs[which].at[:, 0, 1, 2].set(poison), *inputs[which + 1 :]
        assert np.isnan(forward(*spoilt)[:, :, 2:]).all()
        poisoned, taken_back = both(*spoilt)
        for ours, clean in zip(poisoned, outputs, strict=True):
            assert np.isnan(ours[:, :, 2:]).all()
            assert np.asarray(ours[:, :, :2]).tobytes() == np.asarray(clean[:, :, :2]).tobytes()
        for ours, clean, heads in zip(taken_back, gradients, (2, 1, 1), strict=True):
            assert (ours[:, :, heads:] == 0).all()
            assert np.asarray(ours[:, :, :heads]).tobytes() == np.asarray(clean[:, :, :heads]).tobytes()


def output_or_all(attend, derived, cotangent, *inputs):
    """A program of output and log-sum-exp, and of the gradients if derivatives are taken; as of many small products."""

    def both(*inputs):
        found, pull = jax.vjp(attend, *inputs)
        return *found, *pull((cotangent, jnp.ones_like(found[1])))

    old_xla = mock.patch("attention_jax.blocks.block_form.OLD_XLA", True)
    with old_xla, mock.patch("attention_jax.blocks.steps.many_small", return_value=True):
        return jax.jit(both if derived else attend).lower(*inputs).compile()


by_rows = pytest.mark.parametrize(
    "queries, keys", [(3, 9), (3, 70), (40, 70)], ids=["few keys", "few queries", "narrow heads"]
)
passes = pytest.mark.parametrize("derived", [False, True], ids=["forward", "both"])


@by_rows
@passes
def test_where_all_is_seen_what_is_poisoned_is_found_as_by_the_reference(queries, keys, derived):
    """In one block of keys, and in several; a query's row is its own."""
    *inputs, cotangent = suite.inputs((queries, keys, 4, 2, 8, 8, (2,)))
    plain = output_or_all(partial(aj.attention_and_lse, implementation="reference"), derived, cotangent, *inputs)
    for block_sizes in (None, (3, 4)):
        ours = output_or_all(partial(blockwise_attention, block_sizes=block_sizes), derived, cotangent, *inputs)
        for which, poison in POISONS:
            spoilt = [x.at[:, 1, 1, 2].set(poison) if index == which else x for index, x in enumerate(inputs)]
            found, true = ours(*spoilt), plain(*spoilt)
            assert np.isnan(found[0]).any() and not np.isnan(found[0]).all()
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, true)


@by_rows
@passes
def test_what_no_row_sees_changes_no_bit_by_rows(queries, keys, derived):
    *inputs, cotangent = suite.inputs((queries, keys, 4, 2, 8, 8, (2,)))
    for mask in (aj.causal(offset=keys - queries - 3), aj.key_lengths(np.array([keys - 3, 2]))):
        ours = output_or_all(partial(blockwise_attention, mask=mask), derived, cotangent, *inputs)
        clean = ours(*inputs)
        for which, poison in POISONS[3:]:
            spoilt = [x.at[:, -2].set(poison) if index == which else x for index, x in enumerate(inputs)]
            suite.same_bits(ours(*spoilt), clean)


@pytest.mark.slow
@pytest.mark.parametrize("score", [None, aj.soft_cap(2.0)], ids=["", "capped"])
@pytest.mark.parametrize("mask", [None, aj.causal(offset=-3)], ids=["", "causal"])
@pytest.mark.parametrize("heads", [4, 2])
def test_an_only_block_of_many_keys(heads, mask, score):
    """Of heads alone and in groups; whole, and cut where the mask cuts."""
    *inputs, cotangent = suite.inputs((75, 70, 4, heads, 8, 40, (2,)))
    modes = partial(suite.every_mode, cotangent, mask=mask, score=score)
    truth = suite.exact(modes, inputs)
    for tile in (128, 16):
        with mock.patch("attention_jax.block_sizes.CPU", CPU._replace(tile=tile)):
            suite.close(jax.jit(partial(modes, "blockwise"))(*inputs), truth, 1e-5)


@pytest.mark.parametrize("mask", [None, aj.causal(offset=-3)], ids=["", "causal"])
def test_what_both_passes_ask_for_is_made_once_if_each_is_a_step(mask):
    *inputs, cotangent = suite.inputs((75, 70, 4, 4, 8, 8, (2,)))
    program = jax.jit(lambda *inputs: jax.vjp(partial(aj.attention, mask=mask), *inputs)[1](cotangent))
    assert program.lower(*inputs).compile().as_text().count(" exponential(") == 1


@pytest.mark.parametrize("S, wanted", [(9, False), (9, True), (70, False)])
def test_no_log_sum_exp_of_few_keys_is_made_that_nobody_wants(S, wanted):
    *inputs, cotangent = suite.inputs((75, S, 4, 4, 8, 8, (2,)))

    def gradients(*inputs):
        (output, lse), pull = jax.vjp(aj.attention_and_lse, *inputs)
        return pull((cotangent, jnp.zeros_like(lse))), lse if wanted else None

    assert (" log(" in jax.jit(gradients).lower(*inputs).compile().as_text()) == (wanted or S > 64)


def area(tiles, masked):
    return sum(tile.t[1] * tile.s[1] for tile in tiles if tile.masked == masked)


@pytest.mark.parametrize("mask, start, masked, unmasked", [
    (aj.causal(), (0, 0), 2 * (2 + 4 + 6 + 8), 0),
    (aj.causal(), (8, 0), 0, 64),
    (aj.causal(), (0, 8), 0, 0),
    (aj.causal(offset=2), (0, 0), 2 * (4 + 6) + 4 * 8, 0),
    (aj.sliding_window(1, 0), (0, 0), 2 * (2 + 3 * 4), 0),
    (aj.sliding_window(1, 0), (8, 0), 2 * 2, 0),
    (aj.causal() & aj.prefix(3), (0, 0), 2 * 2 + 6 * 4, 0),
    (aj.prefix(3), (0, 8), 0, 0),
    (None, (0, 0), 0, 64),
])  # fmt: skip
def test_tiles_hold_what_a_mask_shows(mask, start, masked, unmasked):
    """They cover every pair that is seen, once, and no more than what is counted here of what is not."""
    grid = block_grid((16, 1, 4), (16, 1, 4), (8, 8), CPU._replace(tile=2))
    problem = canonical(*3 * [jnp.ones((16, 1, 4))], mask, None, None, 0.0, None, None, grid)
    tiles = tiles_at(problem.rule, grid, dict(zip("ts", start, strict=True)), 4)
    assert (area(tiles, True), area(tiles, False)) == (masked, unmasked)
    covered = np.zeros((8, 8), int)
    for (t, rows), (s, columns), full in tiles:
        covered[t : t + rows, s : s + columns] += 1
        inside = seen_of(mask)[start[0] + t : start[0] + t + rows, start[1] + s : start[1] + s + columns]
        assert full or inside.all()
    here = seen_of(mask)[start[0] : start[0] + 8, start[1] : start[1] + 8]
    assert covered.max(initial=0) <= 1 and (covered >= here).all()


def seen_of(mask):
    return np.ones((16, 16), bool) if mask is None else np.asarray(mask.to_array(16, 16))


def test_a_block_on_the_diagonal_is_cut_where_its_place_is_not_known():
    """Of many blocks those on the diagonal have tiles of their own, as much as the causal mask shows of them."""
    x = jax.ShapeDtypeStruct((32, 1, 4), jnp.float32)
    attend = partial(suite.blockwise, mask=aj.causal(), block_sizes=(8, 8), tile=2)
    program = jax.jit(attend).lower(x, x, x).as_text()
    assert all(f"tensor<2x{width}xf32>" in program for width in (2, 4, 6, 8))
    assert "tensor<8x8xf32>" in program


@pytest.mark.slow
def test_functions_have_no_tiles():
    """They are traced for whole blocks."""
    x = jnp.arange(96.0).reshape(24, 1, 4) / 96
    score = scores.soft_cap(3.0) >> scores.score_from_function(lambda logit, head, t, s: logit * 2 + t)
    mask = aj.causal() & aj.mask_from_function(lambda t, s: (t - s) % 3 != 1)
    ours = suite.blockwise(x, x, x, mask=mask, score=score, block_sizes=(8, 8), tile=2)
    suite.close(ours, aj.multi_head_attention(x, x, x, mask=mask, score=score))
    for platform, sizes in (("cpu", 512), ("cuda", 1024)):
        for part in ({"mask": mask, "score": None}, {"mask": aj.causal(), "score": score}):
            grid = grid_for(part["mask"], part["score"], (4096, 1, 4), (4096, 1, 4), platform)
            assert (grid.size("t"), grid.size("s")) == (sizes, sizes) and grid.tile >= sizes


def test_a_function_of_many_queries_and_few_keys_has_no_tiles():
    query, key = jnp.sin(jnp.arange(4400.0)).reshape(1100, 1, 4), jnp.cos(jnp.arange(64.0)).reshape(16, 1, 4)
    mask = aj.causal(offset=-1084) & aj.mask_from_function(lambda t, s: (t - s) % 3 != 1)
    assert grid_for(mask, None, query.shape, key.shape, "cpu").sizes[-2:] == (1100, 16)
    ours = aj.attention(query, key, key, mask=mask, implementation="blockwise")
    suite.close(ours, aj.multi_head_attention(query, key, key, mask=mask))


@pytest.mark.parametrize("mask, skipped, unmasked", [
    (None, 0, 16),
    (aj.causal(), 6, 6),
    (aj.sliding_window(1023, 0), 9, 0),
    (aj.causal() | aj.prefix(1024), 6, 7),
    (aj.segments(np.zeros(4096, int)), None, None),
])  # fmt: skip
def test_explain_counts_blocks(mask, skipped, unmasked):
    x = jnp.zeros((4096, 1, 4))
    plan = aj.explain(x, x, x, mask=mask)
    assert (plan.implementation, plan.block_size, plan.blocks) == ("blockwise", (1024, 1024), 16)
    assert (plan.skipped, plan.unmasked) == (skipped, unmasked)
    assert ("run time" if skipped is None else f"{skipped} skipped") in str(plan)
    assert 0 < plan.temporary_bytes < 50 * 2**20


def test_what_a_score_holds_is_no_temporary_memory():
    x, bias = jnp.ones((500, 2, 8)), aj.bias(jnp.ones((500, 500)))
    passed = jax.jit(lambda x, score: aj.attention(x, x, x, score=score)).lower(x, bias).compile()
    assert aj.explain(x, x, x, score=bias).temporary_bytes < 1.2 * passed.memory_analysis().temp_size_in_bytes


def test_explain_chooses_for_where_the_arrays_lie(monkeypatch):
    x, asked = jax.device_put(jnp.ones((5, 2, 8)), jax.devices()[3]), []
    monkeypatch.setattr("attention_jax.dispatch.platform_of", lambda array: asked.append(device_of(array)) or "cpu")
    aj.explain(x, x, x)
    assert asked and set(asked) == {jax.devices()[3]}


def test_explain_wants_no_arrays():
    x = jnp.zeros((700, 2, 8))
    options = {"mask": aj.causal(), "positions": (jnp.arange(700), jnp.arange(700))}
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    assert aj.explain(shape, shape, shape, **options) == aj.explain(x, x, x, **options)


def test_the_front_door_never_falls_back():
    x = jnp.zeros((64, 1, 4))
    with pytest.raises(ValueError, match=r"None or one of 'reference', 'blockwise', 'cudnn', .* got 'flash'"):
        aj.attention(x, x, x, implementation="flash")
    assert "asked for" in str(aj.explain(x, x, x, implementation="blockwise"))
    assert "all weights at once" in str(aj.explain(x, x, x, implementation="reference"))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_gradients_of_a_vmap(implementation):
    """The batch mapped outside is the batch inside."""
    query, key, value, cotangent = suite.inputs((7, 9, 4, 2, 8, 5, (3,)))

    def gradients(attend):
        return jax.jit(lambda *inputs: jax.vjp(attend, *inputs)[1](cotangent))(query, key, value)

    attend = partial(aj.attention, score=scores.soft_cap(3.0), implementation=implementation)
    for one, other in zip(gradients(jax.vmap(attend)), gradients(attend), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-6),
        jax.jit(jax.jacrev(attend))(query, key, value),
        jax.jit(jax.jacfwd(attend))(query, key, value),
    )
