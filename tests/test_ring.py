"""Attention over a sequence cut along devices is attention on one device, forward and backward."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from x64 import x64_if

import attention_jax as aj
from attention_jax import scores
from attention_jax.ring import balanced_order, ring_attention

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="wants 8 devices, such as simulated ones on a CPU")

B, T, N, K, H, Hv = 2, 48, 4, 2, 8, 5
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


QUERY, KEY, VALUE, COTANGENT = normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, Hv), normal(B, T, N, Hv)
IDS = jnp.asarray(np.sort(RANDOM.integers(0, 3, (B, T)), axis=-1))
CASES = {
    "none": (None, None),
    "causal": (aj.causal(), None),
    "window": (aj.causal() & aj.sliding_window(9, 0), None),
    "segments": (aj.causal() & aj.segments(IDS), None),
    "lengths": (aj.key_lengths(jnp.array([0, 29])), None),
    "array": (RANDOM.random((B, 1, T, T)) < 0.3, None),
    "array of keys": (jnp.asarray(RANDOM.random((1, T)) < 0.5), None),
    "function": (aj.mask_from_function(lambda t, s: (t - s) % 3 == 0), None),
    "alibi": (aj.causal(), aj.alibi(normal(N) ** 2)),
    "soft cap": (~aj.causal(), scores.soft_cap(3.0)),
    "bias": (None, scores.bias(normal(B, N, T, T))),
    "bias of keys": (aj.causal(), scores.bias(normal(1, T))),
    "relative": (aj.causal(), scores.relative_bias(normal(8, N), max_distance=32, bidirectional=False)),
}  # fmt: skip


def mesh(parts, names=("context",)):
    shape = parts if isinstance(parts, tuple) else (parts,)
    return Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), names)


def both(attend, *inputs):
    output, pull = jax.vjp(jax.jit(attend), *inputs)
    return output, pull(COTANGENT.astype(output.dtype))


def exact(fn, *inputs):
    """What it finds in float64."""
    with x64_if(True):
        return jax.jit(fn)(*jax.tree.map(lambda x: x.astype("float64"), inputs))


def assert_close(found, true, tolerance=2e-6):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(true), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * max(np.abs(other).max(), 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_mask_and_score(name):
    mask, score = CASES[name]
    ring = partial(ring_attention, mesh=mesh_of_8(), mask=mask)

    def by(attend):
        leaves, tree = jax.tree.flatten(score)
        return lambda query, key, value, leaves: attend(query, key, value, score=jax.tree.unflatten(tree, leaves))

    inputs = QUERY, KEY, VALUE, jax.tree.leaves(score)
    true = exact(partial(both, by(partial(aj.attention, mask=mask))), *inputs)
    assert_close(both(by(ring), *inputs), true)


ONE_EACH = ["causal", "bias", "segments", "alibi", "bias of keys"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_EACH)
def test_one_query_and_key_a_device(name):
    mask, score = CASES[name]
    x = [each[:, :8] for each in (QUERY, KEY, VALUE)]
    mask = aj.segments(IDS[:, ::6]) if name == "segments" else mask
    if name.startswith("bias"):
        score = scores.bias(score.array[..., :8, :8] if name == "bias" else score.array[:, :8])
    found, true = (
        jax.grad(jax.jit(lambda *x, attend=attend: jnp.sum(attend(*x, mask=mask, score=score) ** 2)), (0, 1, 2))(*x)
        for attend in (partial(ring_attention, mesh=mesh_of_8()), aj.attention)
    )
    assert_close(found, true)


def every_mode(attend, inputs, directions):
    """The tangent along these directions, and the Hessian of a loss times them: forward over reverse, and reverse over
    reverse."""

    def loss(*inputs):
        return jnp.sum(jnp.sin(attend(*inputs)) * COTANGENT)

    everything = tuple(range(len(inputs)))
    gradient = jax.grad(loss, everything)

    def slope(*inputs):
        return sum(map(jnp.vdot, jax.tree.leaves(gradient(*inputs)), jax.tree.leaves(directions)))

    forward = [jax.jvp(each, inputs, directions)[1] for each in (attend, gradient)]
    return *forward, jax.grad(slope, everything)(*inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ONE_EACH, "array", "soft cap"])
def test_forward_mode_and_second_derivatives(name):
    mask, score = CASES[name]
    leaves, tree = jax.tree.flatten(score)
    inputs = QUERY, KEY, VALUE, leaves
    directions = jax.tree.map(lambda x: jnp.roll(x, 1), inputs)

    def by(attend):
        return lambda *x: attend(*x[:3], mask=mask, score=jax.tree.unflatten(tree, x[3]))

    found = jax.jit(partial(every_mode, by(partial(ring_attention, mesh=mesh(4)))))(inputs, directions)
    assert_close(found, exact(partial(every_mode, by(aj.attention)), inputs, directions), 5e-6)


@pytest.mark.slow
def test_mapped():
    """Over queries alone, which keys and values serve again, and over values alone."""
    queries, values, more = normal(T, 3, N, H), normal(3, T, K, Hv), normal(T, 3, N, H)

    def mapped(attend):
        def tangent(query, direction):
            return jax.jvp(lambda query: attend(query, KEY[0], VALUE[0], mask=aj.causal()), (query,), (direction,))

        def gradients(value):
            return jax.grad(lambda *x: jnp.sum(attend(*x) ** 2), (0, 1, 2))(QUERY[0], KEY[0], value)

        return jax.vmap(tangent, (1, 1))(queries, more), jax.jit(jax.vmap(gradients))(values)

    assert_close(mapped(partial(ring_attention, mesh=mesh(4))), mapped(aj.attention), 5e-6)


@pytest.mark.slow
def test_gradients_reach_the_scale_and_what_functions_have_captured():
    gate = jnp.asarray(np.random.default_rng(3).normal(size=T), jnp.float32)

    def loss(attend, query, key, value, slopes, scale):
        def score(logit, head, t, s):
            return 2.0 * logit - slopes[head] * abs(t - s) * jnp.where(t > s, 1.5, slopes[0])

        mask = aj.mask_from_function(lambda t, s: gate[t] * query[0, 0, 0, 0] >= gate[s] - 0.5)
        return jnp.sum(attend(query, key, value, mask=mask, score=score, scale=scale) * COTANGENT)

    inputs = QUERY, KEY, VALUE, jnp.arange(1.0, N + 1) / N, jnp.float32(0.3)
    ring, whole = (
        jax.value_and_grad(partial(loss, attend), (0, 1, 2, 3, 4))
        for attend in (partial(ring_attention, mesh=mesh_of_8()), aj.attention)
    )
    assert_close(jax.jit(ring)(*inputs), exact(whole, *inputs), 1e-5)


def test_nothing_and_positions():
    empty = QUERY[:, :0], KEY[:, :0], VALUE[:, :0]
    assert ring_attention(*empty, mesh=mesh_of_8()).shape == (B, 0, N, Hv)
    assert (ring_attention(QUERY, *empty[1:], mesh=mesh_of_8()) == 0).all()
    with pytest.raises(ValueError, match=r"positions must be \[T\] = \[48\] and \[S\] = \[48\]; got int\d+\[47\]"):
        ring_attention(QUERY, KEY, VALUE, mesh=mesh_of_8(), positions=(jnp.arange(47), jnp.arange(48)))
    with pytest.raises(TypeError, match=r"positions of queries .* must be integers, got float"):
        ring_attention(QUERY, KEY, VALUE, mesh=mesh_of_8(), positions=(jnp.arange(48.0), jnp.arange(48)))


def mesh_of_8():
    return mesh(8)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 4, 8])
def test_balanced(parts):
    order = balanced_order(T, parts)
    assert sorted(order.tolist()) == list(range(T))
    work = (np.asarray(order) + 1).reshape(parts, -1).sum(1)
    assert len(set(work.tolist())) == 1  # each device sees as many pairs

    def attend(query, key, value):
        inputs = (x[:, order] for x in (query, key, value))
        ring = ring_attention(*inputs, mesh=mesh(parts), mask=aj.causal(), positions=(order, order))
        return ring[:, jnp.argsort(order)]

    assert_close(both(attend, QUERY, KEY, VALUE), both(partial(aj.attention, mask=aj.causal()), QUERY, KEY, VALUE))


@pytest.mark.slow
def test_other_lengths_of_queries_and_keys():
    mask, inputs = aj.causal(offset=T - 8), (QUERY[:, :8], KEY, VALUE)
    found = jax.jit(partial(ring_attention, mesh=mesh(4), mask=mask))(*inputs)
    assert_close(found, aj.attention(*inputs, mask=mask))


@pytest.mark.slow
def test_the_batch_over_another_axis():
    """Parts of the batch on some devices, parts of the sequence on others."""
    both_axes = mesh((2, 4), ("data", "context"))
    place = NamedSharding(both_axes, P("data", "context"))
    inputs = [jax.device_put(x, place) for x in (QUERY, KEY, VALUE)]
    ring = partial(ring_attention, mesh=both_axes, mask=aj.causal())
    attend = jax.jit(ring, out_shardings=place)
    for each in (attend, ring):
        assert_close(each(*inputs), aj.attention(QUERY, KEY, VALUE, mask=aj.causal()))
    assert attend(*inputs).sharding.is_equivalent_to(place, 4)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 8])
def test_low_precision_is_joined_in_float32(parts):
    inputs = [x.astype(jnp.bfloat16) for x in (QUERY, KEY, VALUE)]
    found = both(partial(ring_attention, mesh=mesh(parts), mask=aj.causal()), *inputs)
    true = exact(partial(both, partial(aj.attention, mask=aj.causal())), *inputs)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(true), strict=True):
        one, other = np.asarray(one.astype(jnp.float32)), np.asarray(other)
        assert np.linalg.norm(one - other) <= 2**-8 * np.linalg.norm(other)
    assert found[0].dtype == jnp.bfloat16


@pytest.mark.slow
def test_what_is_masked_changes_no_bit_and_what_is_seen_is_nan():
    mask = aj.causal() & aj.key_lengths(jnp.array([30, 30]))
    ring = partial(ring_attention, mesh=mesh(4), mask=mask)
    dirty = KEY.at[:, 30:].set(jnp.nan), VALUE.at[:, 30:].set(jnp.inf)
    for one, other in zip(*(jax.tree.leaves(both(ring, QUERY, *x)) for x in ((KEY, VALUE), dirty)), strict=True):
        np.testing.assert_array_equal(one, other)
    seen = ring(QUERY, KEY.at[0, 7].set(jnp.nan), VALUE)
    np.testing.assert_array_equal(np.isnan(seen).any((2, 3)), (np.arange(T) >= 7) & (np.arange(B) == 0)[:, None])


@pytest.mark.slow
def test_a_row_that_is_nan_takes_no_nan_back():
    query = QUERY.at[:, 3].set(jnp.nan)

    def gradients(cotangent):
        ring = partial(ring_attention, mesh=mesh(2), mask=aj.causal())
        return jax.vjp(ring, query, KEY, VALUE)[1](jnp.ones_like(COTANGENT).at[:, 3].set(cotangent))

    for spoilt, clean in zip(gradients(jnp.nan), gradients(0), strict=True):
        np.testing.assert_array_equal(spoilt, clean)
        assert jnp.isfinite(clean).all()


@pytest.mark.slow
def test_a_row_that_is_nan_has_no_tangent():
    query = QUERY.at[:, 3].set(jnp.nan)
    ring = partial(ring_attention, mesh=mesh(2), mask=aj.causal())
    tangent = jax.jvp(ring, (query, KEY, VALUE), (QUERY, KEY, VALUE))[1]
    assert jnp.isfinite(tangent).all() and (tangent[:, 3] == 0).all()


def memory(parts, mode):
    """Temporary bytes of a device, of what `mode` makes of ring attention of 8192 queries and keys."""
    over = mesh(parts)
    x = jax.ShapeDtypeStruct((1, 8192, 4, 64), jnp.float32, sharding=NamedSharding(over, P(None, "context")))
    # as users compile; tests/conftest.py has turned it off
    options = {"xla_cpu_use_fusion_emitters": True} if "fusion_emitters" in os.environ["XLA_FLAGS"] else {}
    program = jax.jit(mode(partial(ring_attention, mesh=over, mask=aj.causal()))).lower(x, x, x)
    return program.compile(options).memory_analysis().temp_size_in_bytes


def gradient_of(attend):
    return jax.grad(lambda *x: jnp.sum(attend(*x)), (0, 1, 2))


@pytest.mark.slow
def test_memory_of_a_device_falls_with_their_number():
    for parts in (2, 8):  # the formula of docs/scale.md: 9 arrays of a part, and the buffers of a block
        said = 9 * 4 * 8192 / parts * 4 * 64 + 16 * 2**20
        least = 0.95 if jax.__version__.startswith("0.10.") else 0.8  # the numbers are those of jax 0.10
        assert least * said <= memory(parts, gradient_of) <= 1.05 * said


def tangent_of(attend):
    return lambda *x: jax.jvp(attend, x, x)[1]


def forward_over_reverse(attend):
    return lambda *x: jax.jvp(gradient_of(attend), x, x)[1]


def reverse_over_reverse(attend):
    return jax.grad(lambda *x: sum(jnp.sum(each**2) for each in gradient_of(attend)(*x)), (0, 1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("mode", [tangent_of, forward_over_reverse, reverse_over_reverse])
def test_so_does_that_of_every_mode(mode):
    assert memory(8, mode) <= 0.55 * memory(2, mode)


@pytest.mark.parametrize("call, message", [
    (lambda: ring_attention(QUERY[:, :6], KEY, VALUE, mesh=mesh(4)), "T = 6 queries and S = 48 keys must be multiples of the 4"),
    (lambda: ring_attention(QUERY, KEY, VALUE, mesh=mesh(4), axis="other"), "axis must be one of the mesh's axes.*'other'"),
    (lambda: ring_attention(QUERY, KEY, VALUE, mesh=jax.make_mesh((4,), ("context",), (jax.sharding.AxisType.Explicit,))), "jax.sharding.Mesh"),
    (lambda: ring_attention(QUERY[:, :8], KEY, VALUE, mesh=mesh(4), mask=aj.causal()), "offset"),
    (lambda: ring_attention(QUERY, KEY, VALUE, mesh=mesh(4), mask=np.ones((3, T), bool)), "mask"),
    (lambda: balanced_order(12, 4), "multiple of 2 x 4"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
