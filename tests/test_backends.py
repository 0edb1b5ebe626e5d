"""Foreign kernels behind the front door: what each gives is right, what it lacks is refused, and the choice is said.

Splash attention runs interpreted on a CPU, Tokamax by XLA where it is installed. cuDNN wants an NVIDIA GPU; what its
adapter makes of a mask is tried on `jax.nn`'s own implementation, which takes the same arguments.
"""

import importlib.util
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import suite
from jax import export
from jax.sharding import PartitionSpec as P
from x64 import x64_if

import attention_jax as aj
from attention_jax import devices, dispatch, scores
from attention_jax.backends import KERNELS, cudnn, kernel, splash, translation

ORDER = jnp.arange(4)
PLATFORM = devices.platform_of(jnp.zeros(()))
SHAPE = (19, 33, 6, 2, 8, 8, (2,))  # (T, S), (N, K), (H, Hv), batch
EVEN = (20, 34, 6, 2, 8, 8, (2,))
SQUARE = (34, 34, 6, 2, 8, 8, (2,))
CUDNN_BY_XLA = replace(KERNELS["cudnn"], attend=partial(cudnn.attend, implementation="xla"), elsewhere=True)
needs_tokamax = pytest.mark.skipif(importlib.util.find_spec("tokamax") is None, reason="Tokamax is not installed")
ADAPTERS = [
    pytest.param("splash", "float32", id="splash"),
    pytest.param("cudnn", "bfloat16", id="cudnn"),
    pytest.param("tokamax", "bfloat16", id="tokamax", marks=needs_tokamax),
]
MORE_MASKS = {
    "causal, aligned": (lambda T, S, N, batch: aj.causal(offset=0), lambda t, s: s <= t),
    "causal window": (
        lambda T, S, N, batch: aj.sliding_window(4, 2, offset=0) & aj.causal(offset=0), lambda t, s: t - 4 <= s <= t
    ),
    "window of another place": (lambda T, S, N, batch: aj.sliding_window(4, 2, offset=3), lambda t, s: t - 1 <= s <= t + 5),
}  # fmt: skip
MASKS = suite.MASKS | {name: (make, suite.by_rule(rule)) for name, (make, rule) in MORE_MASKS.items()}
BANDS = {"none", "causal, aligned", "causal window", "lengths"}
EVERY_RULE = {
    "causal",
    "causal, rows that see nothing",
    "window",
    "window of another place",
    "prefix",
    "prefix-LM",
    "function",
}
SUPPORTED = {"splash": BANDS | EVERY_RULE | {"segments"}, "cudnn": BANDS, "tokamax": BANDS}
FAST = {("splash", "prefix-LM"), ("cudnn", "causal window"), ("cudnn", "lengths"), ("tokamax", "causal window")}


@pytest.fixture(autouse=True)
def cudnn_by_xla(monkeypatch):
    if PLATFORM != "cuda":
        monkeypatch.setitem(KERNELS, "cudnn", CUDNN_BY_XLA)


def attend(name, **options):
    return jax.jit(partial(aj.attention, implementation=name, **options))


@pytest.mark.parametrize("case, name, dtype", [
    pytest.param(case, *adapter.values, id=f"{adapter.id}, {case}", marks=(*adapter.marks, *[pytest.mark.slow] * slow))
    for adapter in ADAPTERS for case in MASKS
    for slow in [case in SUPPORTED[adapter.id] and (adapter.id, case) not in FAST]
])  # fmt: skip
def test_every_mask_is_right_or_refused(case, name, dtype):
    shape = SQUARE if case == "causal window" else EVEN if name == "cudnn" else SHAPE
    T, S, N, K, H, Hv, batch = shape
    make, truth = MASKS[case]
    *inputs, cotangent = suite.inputs(shape, dtype)
    mask, visible = make(T, S, N, batch), truth(T, S, N, batch)
    if case not in SUPPORTED[name]:
        with pytest.raises(NotImplementedError, match=f"implementation='{name}' cannot do this: it takes no mask that"):
            aj.attention(*inputs, mask=mask, implementation=name)
        return
    found = suite.output_and_gradients(attend(name, mask=mask), *inputs, cotangent)
    wide = [np.asarray(x.astype(jnp.float32), np.float64) for x in (*inputs, cotangent)]
    true = reference.attention(*wide[:3], visible), *reference.gradients(*wide, visible)
    twice = 1 if dtype == "float32" else 2  # kernels also round the weights, before their product with the values
    tolerances = twice * suite.TOLERANCES[dtype], *3 * [twice * suite.GRADIENT_TOLERANCES[dtype]]
    for one, other, tolerance in zip(found, true, tolerances, strict=True):
        assert one.dtype == dtype and suite.error(one, other) <= tolerance


def _assert_like_blockwise(fn, *inputs, tolerance=2e-6):
    """`fn(implementation)` is a function of the inputs; what splash gives of it is what the blocks give."""
    for one, other in zip(
        *(jax.tree.leaves(jax.jit(fn(name))(*inputs)) for name in ("splash", "blockwise")), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=tolerance * max(float(jnp.abs(other).max()), 1))


def _on_rows_that_see_nothing(name):
    mask = aj.causal(offset=-3) & aj.key_lengths(jnp.array([5, 0]))
    return lambda *inputs: aj.attention(*inputs, mask=mask, implementation=name)


@pytest.mark.slow
def test_what_is_not_the_kernels_to_say():
    """Queries that see nothing, what is not finite, and derivatives that no kernel has."""
    *inputs, cotangent = suite.inputs(SQUARE)
    query, key, value = inputs
    run = jax.jit(_on_rows_that_see_nothing("splash"))
    output = run(*inputs)
    assert (output[0, :3] == 0).all() and (output[1] == 0).all() and (output[0, 3:] != 0).any(-1).all()
    _assert_like_blockwise(_on_rows_that_see_nothing, *inputs)

    dirty = key.at[0, 6].set(jnp.nan), value.at[0, 6].set(jnp.inf)
    np.testing.assert_allclose(run(query, *dirty), output, atol=1e-6)  # a hidden key
    seen = run(query, key.at[0, 2].set(jnp.nan), value)
    np.testing.assert_array_equal(jnp.isnan(seen[0]).any((1, 2)), np.arange(34) >= 5)

    def tangent(name):
        fn = _on_rows_that_see_nothing(name)
        return lambda *inputs: jax.jvp(fn, inputs, (cotangent, key, value))[1]

    def hessian_vector(name):
        def gradient(query):
            return jax.vjp(lambda query: _on_rows_that_see_nothing(name)(query, key, value), query)[1](cotangent)[0]

        return lambda query: jax.jvp(gradient, (query,), (cotangent,))[1]

    _assert_like_blockwise(tangent, *inputs)
    _assert_like_blockwise(hessian_vector, query, tolerance=1e-5)


@pytest.mark.slow
def test_a_row_that_sees_nothing_passes_no_gradient():
    *inputs, cotangent = suite.inputs(SQUARE)

    def gradients(name):
        return lambda *inputs: jax.vjp(_on_rows_that_see_nothing(name), *inputs)[1](cotangent)

    _assert_like_blockwise(gradients, *inputs)
    d_query, d_key, d_value = jax.jit(gradients("splash"))(*inputs)
    assert (d_query[0, :3] == 0).all() and (d_query[1] == 0).all() and (d_key[1] == 0).all() and (d_value[1] == 0).all()


@pytest.mark.slow
def test_vmap_over_lengths_and_queries():
    query, key, value, _ = suite.inputs(SQUARE)

    def mapped(name):
        def one(query, length, key, value):
            mask = aj.causal() & aj.key_lengths(length)
            return aj.attention(query, key, value, mask=mask, implementation=name)

        return jax.vmap(one, (0, 0, None, None))

    _assert_like_blockwise(mapped, query, jnp.array([4, 29]), key[0], value[0])


@pytest.mark.slow
def test_long_enough_for_several_blocks():
    """600 queries and keys are two blocks of 384, the last not filled."""
    shape = (600, 600, 2, 1, 8, 8, ())
    *inputs, cotangent = suite.inputs(shape)
    ids = jnp.arange(600) // 170

    def all_of_it(name):
        mask = (aj.causal() | aj.prefix(30)) & aj.segments(ids) & aj.key_lengths(590)
        attend = partial(aj.attention, mask=mask, score=scores.soft_cap(5.0), scale=0.3, implementation=name)
        return lambda *inputs: (attend(*inputs), jax.vjp(attend, *inputs)[1](cotangent))

    _assert_like_blockwise(all_of_it, *inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cudnn", pytest.param("tokamax", marks=needs_tokamax)])
def test_scores_of_other_kernels(name):
    *inputs, cotangent = suite.inputs(SQUARE, "bfloat16")
    random = jax.random.normal(jax.random.key(1), (1, 6, 34, 34), jnp.bfloat16)
    options = {"bias": scores.bias(random), "soft cap": scores.soft_cap(4.0)}
    for kind, score in options.items():
        if getattr(translation, kind.upper().replace(" ", "_")) not in KERNELS[name].scores:
            with pytest.raises(NotImplementedError, match="it takes no score that is a"):
                aj.attention(*inputs, score=score, implementation=name)
            continue
        found, true = (
            suite.output_and_gradients(
                jax.jit(partial(aj.attention, score=score, implementation=each)), *inputs, cotangent
            )
            for each in (name, "blockwise")
        )
        for one, other in zip(found, true, strict=True):
            assert suite.error(one, np.asarray(other.astype(jnp.float32))) <= 2**-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "mask", [None, aj.causal(), aj.causal() | aj.prefix(70), aj.key_lengths(jnp.array([3, 200]))], ids=repr
)
def test_splash_compiles_for_a_tpu(mask):
    """Down to the kernels that the TPU's compiler is given, which needs no TPU."""
    options = kernel.Options(translation.mask_parts(mask, (2,), 300), None, 20.0, 0.1, None, "tpu")

    def total(*inputs):
        return splash.attend(*inputs, options).astype(jnp.float32).sum()

    query, key = (jax.ShapeDtypeStruct((2, 300, heads, 32), jnp.bfloat16) for heads in (4, 2))
    exported = export.export(jax.jit(jax.grad(total, (0, 1, 2))), platforms=["tpu"])(query, key, key)
    assert exported.mlir_module().count("tpu_custom_call") == 3  # forward, dq, dk and dv


@pytest.mark.parametrize("mask, parts", [
    (None, []),
    (aj.causal(), [translation.CAUSAL]),
    (aj.causal(offset=2), [translation.RULES]),
    (aj.sliding_window(3, 0), [translation.CAUSAL_WINDOW]),
    (aj.sliding_window(3, 1), [translation.RULES]),
    (aj.sliding_window(3, 1) & aj.causal(), [translation.CAUSAL_WINDOW]),
    (aj.causal() & aj.key_lengths(3), [translation.CAUSAL, translation.LENGTHS]),
    (aj.causal() | aj.key_lengths(3), [translation.ARRAYS]),
    (aj.segments([1, 2]) & aj.key_lengths(1), [translation.LENGTHS, translation.SEGMENTS]),
    (aj.segments([1, 2]) & aj.segments([1, 1]), [translation.SEGMENTS, translation.ARRAYS]),
    (aj.causal().place([1, 2], [1, 2]), [translation.ARRAYS]),
    (aj.mask_from_function(lambda t, s: t > s), [translation.RULES]),
    (aj.mask_from_function(lambda t, s: ORDER[t] > s), [translation.ARRAYS]),
    (~aj.mask_from_function(lambda t, s: ORDER[t] > s) & aj.causal(), [translation.CAUSAL, translation.ARRAYS]),
    (aj.mask_from_array(np.ones((2, 2), bool)), [translation.ARRAYS]),
], ids=repr)  # fmt: skip
def test_what_a_mask_is_made_of(mask, parts):
    assert translation.mask_kinds(mask, 9, 9) == parts
    of_other_lengths = [translation.RULES if part == translation.CAUSAL_WINDOW else part for part in parts]
    assert translation.mask_kinds(mask, 9, 12) == of_other_lengths


@pytest.mark.slow
@pytest.mark.parametrize("T", [5, 700])
@pytest.mark.parametrize("mask", [
    aj.causal(offset=-2), aj.sliding_window(2, 1, offset=3), aj.sliding_window(1, 1, offset=0) & aj.causal(offset=-2),
    aj.mask_from_function(lambda t, s: (t % 3 == 0) & (s > 1)), aj.prefix(2) & ~aj.causal(offset=0), aj.key_lengths(0),
    aj.key_lengths(jnp.array([0, 2])) & aj.causal(offset=-1), aj.segments(jnp.array([[1], [2]]), jnp.array([[1, 1, 3, 1], [3, 1, 1, 1]])),
], ids=repr)  # fmt: skip
def test_rows_that_see(mask, T):
    if isinstance(mask, type(aj.segments([1]))):
        mask = aj.segments(jnp.arange(T) % 3, jnp.array([0, 2, 2, 2]))
    seen = translation.rows_that_see(mask, T, 4)
    true = np.asarray(mask.to_array(T, 4)).any(-1)
    np.testing.assert_array_equal(seen, true[:, 0] if true.ndim == 3 else true)


def test_rows_that_all_see():
    for mask in (None, aj.causal(), aj.prefix(1), aj.sliding_window(0, 0), aj.causal() | aj.sliding_window(0, 5)):
        assert translation.rows_that_see(mask, 9, 9) is None


GPU = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100", compute_capability="9.0")
T4 = SimpleNamespace(platform="gpu", device_kind="Tesla T4 NVIDIA", compute_capability="7.5")
ROCM = SimpleNamespace(platform="gpu", device_kind="AMD Instinct MI300X")
TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
CPU = SimpleNamespace(platform="cpu", device_kind="cpu")


def plan(monkeypatch, device, shape=SQUARE, dtype="bfloat16", devices=1, **options):
    """Which implementation is chosen on such a device, and why the others are not."""
    monkeypatch.setattr("attention_jax.devices.device_of", lambda array: device)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(kernel, "_is_installed", lambda package: package != "tokamax")
    monkeypatch.setitem(KERNELS, "cudnn", replace(CUDNN_BY_XLA, elsewhere=False))
    *inputs, _ = suite.inputs(shape, dtype)
    arguments = {"mask": None, "score": None, "positions": None, "lse": False} | options
    return dispatch._choose(dispatch._request(*inputs, **arguments), None)


@pytest.mark.parametrize("device, options, name, why_not", [
    (CPU, {}, "blockwise", {"cudnn": "it is for cuda, and this is cpu", "splash": "it is for tpu, and this is cpu"}),
    (ROCM, {}, "blockwise", {"cudnn": "this is rocm"}),
    (GPU, {"mask": aj.causal()}, "cudnn", {}),
    (GPU, {"mask": aj.causal() & aj.sliding_window(9, 0) & aj.key_lengths(4)}, "cudnn", {}),
    (GPU, {"mask": aj.causal() | aj.prefix(3)}, "blockwise", {"cudnn": "no mask that has a rule", "tokamax": "tokamax is not installed"}),
    (GPU, {"mask": aj.segments(jnp.zeros(34, int))}, "blockwise", {"cudnn": "no mask that has segments()"}),
    (GPU, {"dtype": "float32"}, "blockwise", {"cudnn": "it takes float16 and bfloat16, not float32"}),
    (GPU, {"shape": (34, 34, 6, 2, 8, 16, ())}, "blockwise", {"cudnn": "it wants Hv = H, not 16 and 8"}),
    (GPU, {"shape": (34, 34, 6, 2, 12, 12, ())}, "blockwise", {"cudnn": "multiples of 8 up to 128, not 12"}),
    (GPU, {"shape": (33, 34, 6, 2, 8, 8, ())}, "blockwise", {"cudnn": "T and S that are multiples of 2, not 33 and 34"}),
    (GPU, {"shape": (0, 33, 6, 2, 8, 8, ())}, "reference", {}),
    (GPU, {"dropout_rate": 0.1, "dropout_rng": jax.random.key(0)}, "blockwise", {"cudnn": "it has no dropout"}),
    (GPU, {"precision": "highest"}, "blockwise", {"cudnn": "it takes no precision="}),
    (GPU, {"scale": jnp.ones(())}, "blockwise", {"cudnn": "it takes no scale that is an array"}),
    (GPU, {"lse": True}, "blockwise", {"cudnn": "no log-sum-exp that is float32"}),
    (GPU, {"score": scores.soft_cap(3.0)}, "blockwise", {"cudnn": "it takes no score that is a soft cap"}),
    (GPU, {"positions": (jnp.arange(34), jnp.arange(34))}, "blockwise", {"cudnn": "arrays, other than"}),
    (GPU, {"devices": 4}, "cudnn", {}),
    (T4, {}, "blockwise", {"cudnn": "it wants compute capability 8.0, not 7.5"}),
    (TPU, {"mask": aj.causal() | aj.prefix(3), "dtype": "float32"}, "splash", {"cudnn": "it is for cuda, and this is tpu"}),
    (TPU, {"score": scores.soft_cap(3.0)}, "splash", {}),
    (TPU, {"score": scores.alibi(jnp.ones(6))}, "blockwise", {"splash": "neither a bias nor a soft cap of a number"}),
    (TPU, {"score": scores.soft_cap(3.0) >> scores.soft_cap(3.0)}, "blockwise", {"splash": "neither a bias nor"}),
    (TPU, {"devices": 4}, "blockwise", {"splash": "call it inside jax.shard_map, with check_vma=False"}),
])  # fmt: skip
def test_the_choice_on_other_devices(monkeypatch, device, options, name, why_not):
    choice = plan(monkeypatch, device, **options)
    assert choice.implementation == name
    assert {each: reason in choice.passed_over[each] for each, reason in why_not.items()} == dict.fromkeys(
        why_not, True
    )


def test_tokamax_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(kernel, "_is_installed", lambda package: True)
    tokamax = KERNELS["tokamax"]
    request = dispatch._request(
        *suite.inputs(SQUARE, "bfloat16")[:3], mask=aj.causal(), score=None, positions=None, lse=False
    )
    assert tokamax.lacks(request) is None
    assert tokamax.would_not_help(request) == "it is for cuda and tpu, and this is cpu"
    monkeypatch.setattr("attention_jax.devices.device_of", lambda array: GPU)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert tokamax.would_not_help(request) is None


@pytest.mark.slow
def test_inside_shard_map():
    """With its checks a kernel is refused and ours are taken; without them it runs on each device's part."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    query, key, value, _ = suite.inputs(SQUARE)

    def spread(implementation, check):
        def attend(*inputs):
            return aj.attention(*inputs, mask=aj.causal(), implementation=implementation)

        return jax.jit(jax.shard_map(attend, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=check))

    wanted = aj.attention(query, key, value, mask=aj.causal())
    np.testing.assert_allclose(spread("splash", False)(query, key, value), wanted, atol=2e-6)
    with pytest.raises(NotImplementedError, match=r"inside jax\.shard_map it wants check_vma=False"):
        spread("splash", True)(query, key, value)
    np.testing.assert_allclose(spread(None, True)(query, key, value), wanted, atol=2e-6)


def test_explain_says_why():
    inputs = suite.inputs(SQUARE)[:3]
    chosen = aj.explain(*inputs, mask=aj.causal())
    if PLATFORM == "cpu":
        assert chosen.implementation == "blockwise" and set(chosen.passed_over) == set(KERNELS)
        assert "\nnot splash: it is for tpu, and this is cpu" in str(chosen)
    asked = aj.explain(*inputs, mask=aj.causal(), implementation="splash")
    assert (asked.implementation, asked.blocks, asked.passed_over) == ("splash", None, {})
    assert str(asked).startswith("splash: asked for\nblocks of its own\n") and asked.temporary_bytes > 0


DEVICE_CASES = [
    pytest.param("cuda", "cudnn", marks=[pytest.mark.gpu, pytest.mark.skipif(PLATFORM != "cuda", reason=f"wants an NVIDIA GPU; this is {PLATFORM}")]),
    pytest.param("tpu", "splash", marks=[pytest.mark.tpu, pytest.mark.skipif(PLATFORM != "tpu", reason=f"wants a TPU; this is {PLATFORM}")]),
]  # fmt: skip


@pytest.mark.parametrize("platform, name", DEVICE_CASES)
@pytest.mark.parametrize(
    "mask", [None, aj.causal(), aj.causal() & aj.sliding_window(90, 0), aj.key_lengths(jnp.array([700, 0]))], ids=repr
)
def test_on_the_device_itself(platform, name, mask):
    """The kernel is the one taken, and gives what the reference does in float32, forward and backward."""
    *inputs, cotangent = suite.inputs((1000, 1000, 8, 2, 64, 64, (2,)), "bfloat16")
    assert aj.explain(*inputs, mask=mask).implementation == name
    found = suite.output_and_gradients(jax.jit(partial(aj.attention, mask=mask)), *inputs, cotangent)
    wide = [x.astype(jnp.float32) for x in (*inputs, cotangent)]
    reference = partial(aj.attention, mask=mask, implementation="reference", precision="highest")
    for one, other in zip(found, suite.output_and_gradients(reference, *wide), strict=True):
        assert suite.error(one, np.asarray(other)) <= 2**-6


def _vmapped(name):
    """With mapped and shared operands, arrays of the mask among them, and a batch dimension inside."""

    def one(query, key, value, length, ids):
        mask = aj.key_lengths(length) & aj.segments(ids)
        return aj.attention(query, key, value, mask=mask, implementation=name)

    return one


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(0, None, None, 0, None), (0, 0, 1, None, 0)], ids=str)
def test_vmap_of_gradients_and_gradients_of_vmap(axes):
    random, V = np.random.default_rng(0), 3
    shapes = (2, 33, 6, 8), (2, 33, 2, 8), (2, 33, 2, 8), (2,), (2, 33)
    sizes = [
        shape if axis is None else (*shape[:axis], V, *shape[axis:]) for shape, axis in zip(shapes, axes, strict=True)
    ]
    floats = [jnp.asarray(random.normal(size=size), jnp.float32) for size in sizes[:3]]
    lengths, ids = jnp.asarray(random.integers(0, 34, sizes[3])), jnp.asarray(random.integers(0, 3, sizes[4]))

    def gradients(name):
        mapped = jax.vmap(_vmapped(name), axes)

        def of_floats(*floats):
            return jnp.sin(mapped(*floats, lengths, ids)).sum()

        def of_one(*operands):
            return jax.grad(lambda *floats: jnp.sin(_vmapped(name)(*floats, *operands[3:])).sum(), (0, 1, 2))(
                *operands[:3]
            )

        return lambda *floats: (jax.grad(of_floats, (0, 1, 2))(*floats), jax.vmap(of_one, axes)(*floats, lengths, ids))

    _assert_like_blockwise(gradients, *floats, tolerance=1e-5)


def test_cudnn_is_given_whole_batches():
    """Under `vmap` too: its own batching rule wants every array mapped, which `jax.nn` does not do with lengths."""
    seen = []

    def attend(query, *rest, **options):
        seen.append(query)
        return cudnn.attend(query, *rest, implementation="xla")

    query, key, value, _ = suite.inputs(SQUARE, "bfloat16")
    KERNELS["cudnn"] = replace(CUDNN_BY_XLA, attend=attend)  # put back by the fixture
    mapped = jax.vmap(
        lambda query, length: aj.attention(query, key[0], value[0], mask=aj.key_lengths(length), implementation="cudnn")
    )
    assert mapped(query, jnp.array([3, 34])).shape == query.shape
    assert any(array.shape == (2, 34, 6, 8) for array in seen)
    assert all(type(array).__name__ != "BatchTracer" for array in seen)


@pytest.mark.slow
@pytest.mark.parametrize("ids", [
    np.array([-(2**31)] * 6 + [2**31 - 1] * 6, np.int32), np.array([2**31] * 6 + [2**31 - 1] * 6, np.uint32),
], ids=["int32", "uint32"])  # fmt: skip
def test_any_ids_will_do(ids):
    *inputs, _ = suite.inputs((12, 12, 2, 2, 8, 8, ()))

    def attend(name):
        others = np.where(np.arange(12) == 3, 5, ids).astype(ids.dtype)  # one key is of no query's segment
        mask = aj.segments(ids, others) & aj.key_lengths(8)
        return lambda *inputs: aj.attention(*inputs, mask=mask, implementation=name)

    _assert_like_blockwise(attend, *inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mask",
    [aj.prefix(0), aj.prefix(0) & aj.key_lengths(3), aj.sliding_window(1, 1, offset=50) & aj.causal(offset=0)],
    ids=repr,
)
def test_a_rule_that_shows_nothing(mask):
    *inputs, cotangent = suite.inputs(SQUARE)
    for found in suite.output_and_gradients(attend("splash", mask=mask), *inputs, cotangent):
        assert (found == 0).all()


@pytest.mark.slow
def test_traced_for_a_device_that_is_not_the_one(monkeypatch):
    """Arrays that are held to a CPU, on a machine with a TPU: while tracing, nothing says so."""
    *inputs, cotangent = suite.inputs(SQUARE)
    monkeypatch.setattr("attention_jax.devices.device_of", lambda array: TPU)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    found = suite.output_and_gradients(jax.jit(aj.attention), *inputs, cotangent)
    assert dispatch._choose(dispatch._request(*inputs, None, None, None, False), None).implementation == "splash"
    monkeypatch.undo()
    for one, other in zip(found, suite.output_and_gradients(aj.attention, *inputs, cotangent), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_wants_no_x64(monkeypatch):
    with x64_if(True), pytest.raises(NotImplementedError, match="it wants jax_enable_x64 to be off"):
        aj.attention(*suite.inputs(SQUARE)[:3], implementation="splash")
