"""Where parameters lie on a mesh of devices: each names its axes, and rules say along which of them it is cut.

    mesh = make_mesh(data=2, model=4)
    shard(model, mesh, TENSOR + FSDP)

XLA puts the communication in. The names are

    embed       D                                          mlp         between the layers of a feed-forward network
    heads       query heads x H                            vocab       tokens
    kv_heads    key/value heads x H                        position    of a learned position embedding
    qkv         query, key and value, fused                head_dim    H of a single head

A parameter without names, such as a norm's, stays whole.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Rules = Sequence[tuple[str, str]]
"""(name of a parameter's axis, mesh axis), the more important first."""

TENSOR: Rules = (("heads", "model"), ("kv_heads", "model"), ("mlp", "model"))
"""Heads and the inner channels of feed-forward networks are cut: Megatron (arXiv:1909.08053)."""

FSDP: Rules = tuple((name, "data") for name in ("heads", "kv_heads", "qkv", "mlp", "vocab", "position"))
"""Devices with other examples hold parts of the parameters, not copies: ZeRO, stage 3 (arXiv:1910.02054). D is not cut,
since XLA would then cut the activations along it, and send them round: more than twice the memory (`docs/scale.md`)."""


def make_mesh(**sizes: int) -> Mesh:
    """A mesh of the first devices, whose axes XLA follows by itself (of type Auto, which `jax.make_mesh` does not give
    in newer versions).

    Args:
      **sizes: devices along each axis, by name; one may be 0, for all that there are.

    Returns:
      The mesh; its axes are of type Auto.

    Raises:
      ValueError: there are too few devices.

    >>> dict(make_mesh(data=0, model=1).shape) == {"data": jax.device_count(), "model": 1}
    True
    """
    devices, known = jax.devices(), math.prod(size for size in sizes.values() if size)
    if list(sizes.values()).count(0) > 1 or any(size < 0 for size in sizes.values()):
        raise ValueError(f"sizes must be at least 1, and one may be 0, for the devices that are left: got {sizes}")
    if 0 in sizes.values() and len(devices) % known:
        raise ValueError(f"the {len(devices)} devices cannot be cut into {known} parts: give all sizes, got {sizes}")
    sizes = {name: size or len(devices) // known for name, size in sizes.items()}
    count = math.prod(sizes.values())
    if count > len(devices):
        raise ValueError(f"a mesh of {sizes} wants {count} devices; here: {len(devices)}")
    return Mesh(np.array(devices[:count]).reshape(*sizes.values()), tuple(sizes))


def logical_axes(module: nnx.Module) -> dict[str, Any]:
    """The names of the axes of a module's parameters.

    Args:
      module: any module; those of this library name their axes.

    Returns:
      A dict as `nnx.to_pure_dict` makes of the parameters: a tuple of names for each, or None for those without.

    Raises:
      TypeError: `module` is not an `nnx.Module`.

    >>> from attention_jax.modules import FeedForward
    >>> logical_axes(FeedForward(8, rngs=nnx.Rngs(0)))["up"]
    {'bias': ('mlp',), 'kernel': ('embed', 'mlp')}
    """
    state = _params(module)
    leaves = jax.tree.leaves(state, is_leaf=_is_variable)
    names = [leaf.get_metadata().get("axes") for leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(nnx.to_pure_dict(state)), names)


def partition_spec(names: tuple[str, ...] | None, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> P:
    """How a parameter is cut: rule by rule, along each mesh axis once; an axis may be cut along several.

    Args:
      names: of its last axes; those before are not cut (the layers of a model built with `scan`).
      shape: of the parameter. An axis that a mesh axis cannot cut into equal parts stays whole.
      mesh: the devices.
      rules: as for `shard`.

    Returns:
      Each axis' mesh axes: none, one, or several.

    Raises:
      ValueError: a rule for an axis that the mesh does not have.

    >>> tuple(partition_spec(("embed", "mlp"), (8, 32), make_mesh(data=1, model=1), TENSOR))  # on one device
    (None, None)
    """
    if missing := {axis for _, axis in rules} - set(mesh.axis_names):
        raise ValueError(f"rules name the mesh axes {sorted(missing)}, which are not among {mesh.axis_names}")
    cut: list[tuple[str, ...]] = [()] * len(shape)
    names = (None,) * (len(shape) - len(names or ())) + tuple(names or ())
    for name, axis in rules:
        for index, named in enumerate(names):
            parts = math.prod(mesh.shape[other] for other in (*cut[index], axis))
            fits = mesh.shape[axis] > 1 and shape[index] % parts == 0
            if named == name and fits and not any(axis in axes for axes in cut):
                cut[index] = (*cut[index], axis)
    return P(*(axes[0] if len(axes) == 1 else axes or None for axes in cut))


def shard(module: nnx.Module, mesh: Mesh, rules: Rules) -> None:
    """Lay the parameters of a module out over a mesh, in place.

    Args:
      module: whose parameters are moved.
      mesh: the devices.
      rules: `TENSOR`, `FSDP`, `TENSOR + FSDP` or others. None of them, `()`, gives each device a copy.

    Raises:
      TypeError: `module` is not an `nnx.Module`.
      ValueError: a rule for an axis that the mesh does not have.

    >>> from attention_jax.modules import FeedForward
    >>> layer = FeedForward(8, rngs=nnx.Rngs(0))
    >>> shard(layer, make_mesh(data=0, model=1), FSDP)
    >>> layer.up.kernel[...].sharding.mesh.axis_names
    ('data', 'model')
    """

    def place(variable: nnx.Variable) -> nnx.Variable:
        spec = partition_spec(variable.get_metadata().get("axes"), variable[...].shape, mesh, rules)
        return variable.replace(jax.device_put(variable[...], NamedSharding(mesh, spec)))

    nnx.update(module, jax.tree.map(place, _params(module), is_leaf=_is_variable))


def _params(module: nnx.Module) -> nnx.State:
    if not isinstance(module, nnx.Module):
        raise TypeError(f"module must be an nnx.Module, whose parameters name their axes, got {type(module).__name__}")
    return nnx.state(module, nnx.Param)


def _is_variable(leaf: object) -> bool:
    return isinstance(leaf, nnx.Variable)
