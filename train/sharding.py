"""How a run is spread over devices: parts of the batch along one axis of a mesh, parts of each layer along the other.

Parameters are placed by the names of their axes, and XLA puts the communication in: see
`attention_jax.modules.sharding`. Heads of attention need none, so that each device runs its own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from attention_jax import attention
from attention_jax.modules import FSDP, TENSOR, logical_axes, make_mesh, partition_spec
from attention_jax.typing import MaskLike
from configs import schema
from train.errors import InputError


def connect(config: schema.Mesh) -> None:
    """Join the other processes of the run, if it has any; before anything else is done with JAX."""
    if config.processes > 1:
        jax.distributed.initialize(config.coordinator, config.processes, config.process)


def build_mesh(config: schema.Config) -> Mesh | None:
    """The mesh, with axes `data` and `model`; None for a single device.

    Raises:
      InputError: there are too few devices, or sizes that the mesh cannot cut.
    """
    data = config.mesh.data or max(jax.device_count() // config.mesh.model, 1)
    model, devices = config.mesh.model, jax.devices()
    if data * model > len(devices):
        raise InputError(f"--mesh.data {data} x --mesh.model {model} want {data * model} devices; here: {len(devices)}")
    if jax.process_count() > 1 and data * model < len(devices):
        raise InputError(f"a run of several processes takes all {len(devices)} devices: raise --mesh.data {data}")
    check_parts(config, data)
    if data * model == 1:
        return None
    return make_mesh(data=data, model=model)


def check_parts(config: schema.Config, data: int) -> None:
    """Raise `InputError` if batch or heads cannot be cut into the mesh's parts."""
    for name, size, parts in (
        ("--data.batch-size / --data.accumulate", config.data.batch_size // config.data.accumulate, data),
        ("--model.num-heads", config.model.num_heads, config.mesh.model),
    ):
        if size % parts:
            raise InputError(f"{name} = {size} cannot be cut into {parts} equal parts")


def sharded_attention(mesh: Mesh | None) -> Callable[..., jax.Array]:
    """`attention` in which each device has its own examples and heads. A query group stays together with its key."""
    if mesh is None:
        return attention
    heads = P("data", None, "model", None)

    def attend(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        *,
        mask: MaskLike | None = None,
        dropout_rate: float = 0.0,
        dropout_rng: jax.Array | None = None,
    ) -> jax.Array:
        def own(query: jax.Array, key: jax.Array, value: jax.Array, *rngs: jax.Array) -> jax.Array:
            if not rngs:
                return attention(query, key, value, mask=mask)
            place = jax.lax.axis_index("data") * mesh.shape["model"] + jax.lax.axis_index("model")
            rng = jax.random.fold_in(rngs[0], place)
            return attention(query, key, value, mask=mask, dropout_rate=dropout_rate, dropout_rng=rng)

        rngs = (dropout_rng,) if dropout_rate else ()
        specs = (heads, heads, heads, *(P() for _ in rngs))
        # all arrays are cut along all axes of the mesh, so that there is nothing to check; kernels refuse the check
        spread = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)
        return spread(query, key, value, *rngs)

    return attend


def place(tree: Any, model: nnx.Module, mesh: Mesh | None, fsdp: bool) -> Any:
    """The model's parameters, or a state that holds such (an optimizer's), laid out over the mesh."""
    if mesh is None:
        return tree
    rules = (*TENSOR, *FSDP) if fsdp else TENSOR
    named, _ = jax.tree.flatten_with_path(logical_axes(model), is_leaf=_are_names)
    names = {_keys(path): axes for path, axes in named}

    def put(path: Any, leaf: Any) -> jax.Array:
        keys = _keys(path)
        axes = next((names[keys[first:]] for first in range(len(keys)) if keys[first:] in names), None)
        axes = axes if axes is not None and leaf.ndim >= len(axes) else None
        return _put(leaf, NamedSharding(mesh, partition_spec(axes, leaf.shape, mesh, rules)))

    return jax.tree.map_with_path(put, tree)


def place_batch(batch: Any, mesh: Mesh | None) -> Any:
    """Arrays `[B, ...]` on their devices, each with its own examples; every process gives the whole batch."""
    if mesh is None:
        return jax.device_put(batch)
    return jax.tree.map(lambda array: _put(array, NamedSharding(mesh, P("data"))), batch)


def gather(tree: Any, mesh: Mesh | None) -> Any:
    """The whole of every array, as NumPy arrays, in every process."""
    if mesh is not None:
        tree = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(tree)
    return jax.device_get(tree)


def wait_for_all(name: str) -> None:
    """Until every process of the run has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def highest(number: int) -> int:
    """The highest of the numbers that the processes give."""
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data(array)
        return jax.random.wrap_key_data(_put(data, sharding), impl=jax.random.key_impl(array))
    array = np.asarray(array)
    with jax.transfer_guard_host_to_device("allow"):  # it is asked for, though JAX does not count it as such
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(str(getattr(part, "key", getattr(part, "name", ""))) for part in path)


def _are_names(node: Any) -> bool:
    return node is None or isinstance(node, tuple)
