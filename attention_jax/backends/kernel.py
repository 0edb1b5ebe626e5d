"""What a kernel supports, what is asked of it, and how it is called."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from attention_jax import devices
from attention_jax.backends import translation
from attention_jax.backends.stand_in import StandIn
from attention_jax.blockwise import blockwise_attention
from attention_jax.checks import check_scale
from attention_jax.mask_tree import Mask
from attention_jax.operation import varying
from attention_jax.score_tree import Score, check_rules


class Request(NamedTuple):
    """What is asked of `attention`, checked."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    mask: Mask | None
    score: Score | None
    scale: Any
    dropout_rate: float
    precision: Any
    lse: bool
    """Whether the log-sum-exp is wanted, too."""

    @property
    def arrays(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        return self.query, self.key, self.value


class Options(NamedTuple):
    """What a kernel is given beside query, key and value."""

    mask: translation.MaskParts
    bias: jax.Array | None
    """`[B or 1, N or 1, T, S]`."""
    soft_cap: float | None
    scale: float
    precision: Any
    platform: str


@dataclass(frozen=True)
class Kernel:
    """A foreign kernel, and what it supports."""

    name: str
    attend: Callable[..., jax.Array]
    """`(query [B, T, N, H], key [B, S, K, H], value [B, S, K, Hv], options: Options)` to `[B, T, N, Hv]`, with a
    `jax.vjp`. A query that sees no key may be given any number."""
    package: str
    """That it comes from."""
    platforms: tuple[str, ...]
    """Where it is fast."""
    elsewhere: bool
    """Whether it runs on other platforms, slowly, where it is asked for."""
    partitioned: bool
    """Whether XLA can spread it over devices."""
    dtypes: tuple[str, ...]
    masks: tuple[str, ...]
    """What may stand in a mask, of the kinds in `translation`."""
    scores: tuple[str, ...] = ()
    capability: float = 0.0
    """The least compute capability of an NVIDIA GPU that it wants."""
    lengths: int = 1
    """What T and S must be multiples of."""
    head_dims: tuple[int, int] = (1, 2**31)
    """What H must be a multiple of, and the most it may be."""
    value_dim: bool = True
    """Whether Hv may differ from H."""
    precision: bool = False
    """Whether it takes `precision=`."""
    x64: bool = True
    """Whether it can be used where JAX has 64 bits."""

    def lacks(self, request: Request) -> str | None:
        """Why it cannot do what is asked; None if it can."""
        return next(self._lacking(request), None)

    def would_not_help(self, request: Request) -> str | None:
        """Why it is not the one to take; None if it is."""
        platform = devices.platform_of(request.query)
        return self.lacks(request) if platform in self.platforms else self._other_platform(platform)

    def _lacking(self, request: Request) -> Iterator[str]:
        query, _, value = request.arrays
        head_dim, value_dim, (multiple, most) = query.shape[-1], value.shape[-1], self.head_dims
        platform, score = devices.platform_of(query), translation.score_kind(request.score)
        if platform not in self.platforms and not self.elsewhere:
            yield self._other_platform(platform)
        if not _is_installed(self.package):
            yield f"{self.package} is not installed"
        if platform == "cuda" and float(devices.device_of(query).compute_capability) < self.capability:
            yield f"it wants compute capability {self.capability}, not {devices.device_of(query).compute_capability}"
        if any(0 in array.shape for array in request.arrays):
            yield "it takes no arrays of size 0"
        if query.dtype.name not in self.dtypes:
            yield f"it takes {' and '.join(self.dtypes)}, not {query.dtype}"
        T, S = query.shape[-3], value.shape[-3]
        if T % self.lengths or S % self.lengths:
            yield f"it takes T and S that are multiples of {self.lengths}, not {T} and {S}"
        if head_dim % multiple or head_dim > most:
            yield f"it takes H that are multiples of {multiple} up to {most}, not {head_dim}"
        if value_dim != head_dim and not self.value_dim:
            yield f"it wants Hv = H, not {value_dim} and {head_dim}"
        for kind in translation.mask_kinds(request.mask, T, S):
            if kind not in self.masks:
                yield f"it takes no mask that has {kind}"
        if score is not None and score not in self.scores:
            yield f"it takes no score that is {score}"
        if isinstance(request.scale, jax.Array):
            yield "it takes no scale that is an array"
        if request.dropout_rate:
            yield "it has no dropout"
        if request.precision is not None and not self.precision:
            yield "it takes no precision="
        if request.lse:
            yield "it gives no log-sum-exp that is float32 and differentiable"
        if jax.config.jax_enable_x64 and not self.x64:  # type: ignore[attr-defined]
            yield "it wants jax_enable_x64 to be off"
        if _is_checked():
            yield "inside jax.shard_map it wants check_vma=False"
        if platform in self.platforms and not self.partitioned and jax.device_count() > 1 and not _inside_shard_map():
            yield "XLA cannot spread it over devices: call it inside jax.shard_map, with check_vma=False"

    def _other_platform(self, platform: str) -> str:
        return f"it is for {' and '.join(self.platforms)}, and this is {platform}"

    def __call__(self, request: Request) -> jax.Array:
        """Attention's output, `[*B, T, N, Hv]`.

        Raises:
          ValueError: a mask or a score of other shapes.
        """
        *batch, T, N, _ = request.query.shape
        rules = check_rules(request.mask, request.score, (*batch, N, T, request.key.shape[-3]))
        leaves, tree = jax.tree.flatten(rules)
        scale = float(check_scale(request.scale, request.query.shape[-1]))
        soft_cap = float(request.score.cap) if translation.score_kind(request.score) == translation.SOFT_CAP else None  # type: ignore[union-attr]
        here = devices.platform_of(request.query)
        fast = ByKernel(self, tree, soft_cap, scale, request.precision, here)
        slow = ByBlocks(tree, scale, request.precision)
        shape = (*request.query.shape[:-1], request.value.shape[-1])
        operands = *request.arrays, *map(jnp.asarray, leaves)
        only = here if here in self.platforms else None  # elsewhere it is interpreted
        output = jax.ShapeDtypeStruct(shape, request.query.dtype)
        return StandIn(fast, slow, Widened(tree), only, (output,), self.partitioned)(*operands)[0]


@dataclass(frozen=True)
class ByKernel:
    """Attention by a kernel, of query, key, value and the arrays of mask and score."""

    kernel: Kernel
    tree: Any
    soft_cap: float | None
    scale: float
    precision: Any
    platform: str

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, *leaves: jax.Array) -> jax.Array:
        mask, score = jax.tree.unflatten(self.tree, leaves)
        *batch, T, N, _ = query.shape
        parts = translation.mask_parts(mask, tuple(batch), key.shape[-3])
        sees = translation.rows_that_see(mask, T, key.shape[-3])
        if isinstance(sees, np.ndarray) and not sees.any():
            return jnp.zeros((*batch, T, N, value.shape[-1]), query.dtype)
        bias = None if translation.score_kind(score) != translation.BIAS else score.array
        if bias is not None:
            heads = bias.shape[-3] if bias.ndim > 2 else 1
            lead = batch if bias.ndim > 3 else ()
            bias = jnp.broadcast_to(bias, (*lead, heads, T, key.shape[-3])).reshape(-1, heads, T, key.shape[-3])
        options = Options(parts, bias, self.soft_cap, self.scale, self.precision, self.platform)
        flat = (x.reshape(-1, *x.shape[len(batch) :]) for x in (query, key, value))
        output = self.kernel.attend(*flat, options).reshape(*batch, T, N, -1)
        if sees is None:
            return output
        return jnp.where(jnp.broadcast_to(sees, (*batch, T))[..., None, None], output, 0)


@dataclass(frozen=True)
class ByBlocks:
    """The same by `blockwise_attention`."""

    tree: Any
    scale: float
    precision: Any

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, *leaves: jax.Array) -> jax.Array:
        mask, score = jax.tree.unflatten(self.tree, leaves)
        options = {"mask": mask, "score": score, "scale": self.scale, "precision": self.precision}
        return blockwise_attention(query, key, value, **options)[0]


@dataclass(frozen=True)
class Widened:
    """The operands of a kernel under `vmap`: the new axis becomes their first batch dimension."""

    tree: Any

    def __call__(self, operands: Sequence[jax.Array], axes: Sequence[int | None], V: int) -> list[jax.Array]:
        moved = [
            operand if axis is None else jnp.moveaxis(operand, axis, 0)
            for operand, axis in zip(operands, axes, strict=True)
        ]
        arrays = [
            jnp.broadcast_to(operand, (V, *operand.shape)) if axis is None else operand
            for operand, axis in zip(moved[:3], axes[:3], strict=True)
        ]
        shapes = [leaf.shape[axis is not None :] for leaf, axis in zip(moved[3:], axes[3:], strict=True)]
        like = [jax.ShapeDtypeStruct(shape, leaf.dtype) for shape, leaf in zip(shapes, moved[3:], strict=True)]
        letters = [names for part in jax.tree.unflatten(self.tree, like) if part is not None for names in part.axes()]
        ones = (1,) * (arrays[0].ndim - 4)  # the batch dimensions that there were
        for leaf, shape, names, axis in zip(moved[3:], shapes, letters, axes[3:], strict=True):
            own = len(names.removeprefix("*"))
            batched = len(shape) > own
            front = ((1,) if axis is None else (V,)) if batched or axis is not None else ()
            middle = () if batched or axis is None else (*ones, *(1,) * (names == "ts"))  # of a bias [T, S], and heads
            arrays.append(leaf.reshape((*front, *middle, *shape)))
        return arrays


@cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _is_checked() -> bool:
    """Whether this is inside a `jax.shard_map` that keeps account of what varies."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return any(varying(jax.lax.axis_index(name)) for name, kind in kinds if kind == AxisType.Manual)


def _inside_shard_map() -> bool:
    """Whether this is one device's part of all mesh axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and all(kind == AxisType.Manual for kind in mesh.axis_types)
