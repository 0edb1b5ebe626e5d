"""Parameters name their axes, rules cut them over a mesh, and the model stays the same function."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import attention_jax as aj
from attention_jax import modules
from attention_jax.modules import FSDP, TENSOR, logical_axes, make_mesh, partition_spec, shard

needs_devices = pytest.mark.skipif(jax.device_count() < 8, reason="wants 8 devices, such as simulated ones on a CPU")
SIZES = {"vocab_size": 24, "context_length": 16, "embed_dim": 32, "num_heads": 4, "num_layers": 2}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 24, (4, 9)))


def language_model(**options):
    return modules.TransformerLM(**SIZES, **options, rngs=nnx.Rngs(0))


def block(**options):
    return partial(modules.TransformerBlock, attention=partial(modules.MultiHeadAttention, **options))


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def path_of(path):
    return jax.tree_util.keystr(path)


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {}, {"tied": False}, {"scan": True}, {"block": block(num_kv_heads=2)}, {"block": block(fused=True)},
    {"block": partial(modules.TransformerBlock, feed_forward=modules.SwiGLU)},
], ids=["tied", "untied", "scan", "grouped", "fused", "gated"])  # fmt: skip
def test_every_matrix_names_its_axes(options):
    sizes = {"embed": 32, "heads": 32, "kv_heads": 16 if "block" in options else 32, "vocab": 24, "position": 16}
    model = language_model(**options)
    names = dict(
        jax.tree.leaves_with_path(logical_axes(model), is_leaf=lambda node: node is None or isinstance(node, tuple))
    )
    params = dict(jax.tree.leaves_with_path(params_of(model)))
    assert names.keys() == params.keys()
    for path, array in params.items():
        shape = array.shape[1:] if options.get("scan") and "blocks" in path_of(path) else array.shape
        if names[path] is None:
            assert "norm" in path_of(path)
            continue
        assert len(names[path]) == len(shape)
        assert all(
            size == sizes.get(name, size) for name, size in zip(names[path], shape, strict=True) if name != "kv_heads"
        )


@needs_devices
@pytest.mark.parametrize("names, shape, rules, cut", [
    (("embed", "heads"), (32, 64), TENSOR, (None, "model")),
    (("embed", "heads"), (32, 64), TENSOR + FSDP, (None, ("model", "data"))),
    (("heads", "embed"), (64, 32), TENSOR + FSDP, (("model", "data"), None)),
    (("embed", "heads"), (32, 64), FSDP, (None, "data")),
    (("embed", "heads"), (32, 68), TENSOR + FSDP, (None, "model")),  # 68 can be cut into 4 parts, not into 8
    (("embed", "heads"), (32, 66), TENSOR + FSDP, (None, "data")),
    (("embed", "heads"), (32, 67), TENSOR + FSDP, (None, None)),
    (("embed", "mlp"), (3, 32, 64), TENSOR + FSDP, (None, None, ("model", "data"))),  # stacked layers
    (("heads",), (64,), TENSOR, ("model",)),
    (("embed",), (64,), TENSOR + FSDP, (None,)),
    (None, (64,), TENSOR + FSDP, (None,)),
    (("embed", "qkv"), (32, 96), TENSOR + FSDP, (None, "data")),
    (("embed", "heads"), (32, 64), (("embed", "model"), ("heads", "data"), ("heads", "model")), ("model", "data")),
])  # fmt: skip
def test_how_rules_cut(names, shape, rules, cut):
    assert tuple(partition_spec(names, shape, make_mesh(data=2, model=4), rules)) == cut


@pytest.mark.slow
@needs_devices
@pytest.mark.parametrize("sizes, rules, held", [
    ({"data": 2, "model": 4}, TENSOR + FSDP, 1 / 8), ({"data": 8, "model": 1}, FSDP, 1 / 8), ({"data": 8}, (), 1),
])  # fmt: skip
def test_a_sharded_model_is_the_same_function(sizes, rules, held):
    def loss(model):
        return jnp.square(model(TOKENS)).mean()

    model, spread = language_model(), language_model()
    shard(spread, make_mesh(**sizes), rules)
    whole = sum(array.nbytes for array in jax.tree.leaves(params_of(model)))
    here = sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(params_of(spread)))
    assert held * whole <= here <= (held + 0.05) * whole
    assert {array.sharding.mesh.size for array in jax.tree.leaves(params_of(spread))} == {8}
    (one, gradients), (other, spread_gradients) = (nnx.jit(nnx.value_and_grad(loss))(each) for each in (model, spread))
    np.testing.assert_allclose(one, other, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), *map(nnx.to_pure_dict, (gradients, spread_gradients)))


def test_the_mesh_is_followed_by_the_compiler():
    mesh = make_mesh(data=0, model=1)
    assert dict(mesh.shape) == {"data": jax.device_count(), "model": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert make_mesh(data=1).size == 1


@pytest.mark.parametrize("call, message", [
    (lambda: make_mesh(data=99), r"a mesh of \{'data': 99\} wants 99 devices; here"),
    (lambda: make_mesh(data=0, model=0), "one may be 0"),
    (lambda: make_mesh(data=0, model=jax.device_count() + 1), "cannot be cut into"),
    (lambda: make_mesh(data=-1), "sizes must be at least 1"),
    (lambda: partition_spec(("embed",), (8,), make_mesh(data=1), TENSOR), r"mesh axes \['model'\], which are not among \('data',\)"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
@needs_devices
def test_explicit_axes_are_refused_in_words_and_the_ways_out_work():
    mesh = jax.make_mesh((2, 4), ("data", "model"), (AxisType.Explicit,) * 2)
    spec = P("data", None, "model")
    heads = jax.random.normal(jax.random.key(0), (4, 9, 4, 8))
    with jax.sharding.set_mesh(mesh) if not hasattr(jax, "set_mesh") else jax.set_mesh(mesh):
        spread = jax.device_put(heads, NamedSharding(mesh, spec))
        tokens = jax.device_put(TOKENS, NamedSharding(mesh, P("data")))
        hidden = jax.device_put(jnp.ones((4, 9, 32)), NamedSharding(mesh, P("data")))
        for name, call in {
            "an array of mask": lambda: aj.attention(
                heads, heads, heads, mask=aj.key_lengths(jax.device_put(jnp.arange(4), NamedSharding(mesh, P("data"))))
            ),
            "query": lambda: aj.attention(spread, spread, spread, mask=aj.causal()),
            "key": lambda: aj.multi_head_attention(heads, spread, heads),
            "tokens": lambda: language_model()(tokens),
            "x": lambda: modules.MultiHeadAttention(32, 4, rngs=nnx.Rngs(0))(hidden),
        }.items():
            with pytest.raises(ValueError, match=f"{name} is spread over mesh axes of type Explicit, .*auto_axes"):
                call()
        attend = partial(aj.attention, mask=aj.causal())
        by_auto = jax.jit(jax.sharding.auto_axes(attend, out_sharding=spec))(spread, spread, spread)
        by_map = jax.jit(jax.shard_map(attend, in_specs=spec, out_specs=spec))(spread, spread, spread)
    for found in (by_auto, by_map):
        np.testing.assert_allclose(found, aj.attention(heads, heads, heads, mask=aj.causal()), atol=2e-6)
        assert tuple(found.sharding.spec)[:3] == tuple(spec)
