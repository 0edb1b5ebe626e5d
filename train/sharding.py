"""How a run is spread over devices: parts of the batch along one axis of a mesh, parts of each layer along the other.

Parameters are placed by their names, and XLA puts the communication in: Megatron's cut of the layers
(arXiv:1909.08053), and, for `fsdp`, ZeRO's of what is left (arXiv:1910.02054). Heads of attention need none, so that
each device runs its own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from attention_jax import attention
from configs import schema
from train.errors import InputError

COLUMNS = ("query", "key", "value", "up")
ROWS = ("out", "down")


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
    for name, size, parts in (
        ("--data.batch-size / --data.accumulate", config.data.batch_size // config.data.accumulate, data),
        ("--model.num-heads", config.model.num_heads, model),
    ):
        if size % parts:
            raise InputError(f"{name} = {size} cannot be cut into {parts} equal parts")
    if data * model == 1:
        return None
    return Mesh(np.array(devices[: data * model]).reshape(data, model), ("data", "model"))


def sharded_attention(mesh: Mesh | None) -> Callable[..., jax.Array]:
    """`attention` in which each device has its own examples and heads. A query group stays together with its key."""
    if mesh is None:
        return attention
    heads = P("data", None, "model", None)

    def attend(query, key, value, *, mask=None, dropout_rate=0.0, dropout_rng=None):
        def own(query, key, value, *rng):
            if not rng:
                return attention(query, key, value, mask=mask)
            place = jax.lax.axis_index("data") * mesh.shape["model"] + jax.lax.axis_index("model")
            rng = jax.random.fold_in(rng[0], place)
            return attention(query, key, value, mask=mask, dropout_rate=dropout_rate, dropout_rng=rng)

        rng = (dropout_rng,) if dropout_rate else ()
        specs = (heads, heads, heads, *(P() for _ in rng))
        return jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=heads)(query, key, value, *rng)

    return attend


def place(tree: Any, mesh: Mesh | None, fsdp: bool) -> Any:
    """Parameters, or a state that holds some, laid out over the mesh."""
    if mesh is None:
        return tree
    return jax.tree.map_with_path(
        lambda path, leaf: _put(leaf, NamedSharding(mesh, _spec(path, leaf, mesh, fsdp))), tree
    )


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


def _put(array, sharding: NamedSharding):
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data(array)
        return jax.random.wrap_key_data(_put(data, sharding), impl=jax.random.key_impl(array))
    array = np.asarray(array)
    with jax.transfer_guard_host_to_device("allow"):  # it is asked for, though JAX does not count it as such
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _spec(path, leaf, mesh: Mesh, fsdp: bool) -> P:
    names = [str(getattr(part, "key", getattr(part, "name", ""))) for part in path]
    cut: list[str | None] = [None] * leaf.ndim
    layer, kind = (["", "", *names])[-2:]
    if kind in ("kernel", "bias") and layer in COLUMNS:
        cut[-1] = "model"
    if kind == "kernel" and layer in ROWS:
        cut[-2] = "model"
    if fsdp:
        free = [axis for axis in range(leaf.ndim) if cut[axis] is None and leaf.shape[axis] % mesh.shape["data"] == 0]
        if free:
            cut[max(free, key=lambda axis: leaf.shape[axis])] = "data"
    return P(*cut)
