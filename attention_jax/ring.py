"""Attention over a sequence that is spread over devices: ring attention (Liu et al. 2023, arXiv:2310.01889).

Each device keeps its queries. Keys and values go round, one device further each time; what a device finds in each part
is joined by the log-sum-exps. For derivatives they go round once more, backward with their gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.lax import PrecisionLike
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from attention_jax.arguments import positions_for, static_int
from attention_jax.axes import length_along
from attention_jax.block_sizes import grid_for
from attention_jax.blocks.sweep import accumulator
from attention_jax.blockwise import blockwise_attention, weighted_sums
from attention_jax.captured import hoisted
from attention_jax.checks import check_many_heads, check_scale
from attention_jax.devices import platform_of
from attention_jax.mask_tree import Placed
from attention_jax.masks import prefix
from attention_jax.node import node
from attention_jax.ring_sum import Ring, RingSum
from attention_jax.score_tree import PlacedScore, check_rules
from attention_jax.typing import MaskLike, Positions, ScoreLike


def ring_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mesh: Mesh,
    axis: str = "context",
    mask: MaskLike | None = None,
    score: ScoreLike | None = None,
    positions: Positions | None = None,
    scale: ArrayLike | None = None,
    precision: PrecisionLike = None,
) -> jax.Array:
    """`attention` whose sequence is cut along a mesh axis; each device holds its part of it, in every mode of
    differentiation (Liu et al. 2023, arXiv:2310.01889).

    Args:
      query, key, value: as `attention`; T and S multiples of the axis' size.
      mesh: the devices.
      axis: the mesh axis that T and S are cut along. Others are left to the compiler.
      mask, score: as `attention`. Their rules go by position, their arrays by index; for T != S, a rule that compares
        positions wants its `offset`, with `positions` 0.
      positions: where queries and keys stand, integers `[T]` and `[S]`. Default: 0, 1, 2, ... With `balanced_order`,
        all devices have equally much to do under a causal mask.
      scale, precision: as `attention`.

    Returns:
      `[*B, T, N, Hv]`, cut as the queries are.

    Raises:
      ValueError: lengths that cannot be cut into equal parts, an axis that the mesh does not have or whose sharding is
        explicit; and as `attention`.

    >>> from attention_jax import causal
    >>> mesh = Mesh(jax.devices(), ("context",))
    >>> x = jnp.ones((2 * jax.device_count(), 4, 8))
    >>> ring_attention(x, x, x, mesh=mesh, mask=causal()).shape == x.shape
    True
    """
    query, key, value = check_many_heads(query, key, value)
    *batch, T, N, H = query.shape
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if types.get(axis, AxisType.Explicit) == AxisType.Explicit:
        raise ValueError(
            f"axis must be one of the mesh's axes, and Auto: got {axis!r} of {mesh}; build it by jax.sharding.Mesh"
        )
    S, Hv, parts = key.shape[-3], value.shape[-1], mesh.shape[axis]
    if T % parts or S % parts:
        raise ValueError(f"T = {T} queries and S = {S} keys must be multiples of the {parts} devices along {axis!r}")
    mask, score = check_rules(mask, score, (*batch, N, T, S))
    if 0 in (*batch, T, N, S):
        return jnp.zeros((*batch, T, N, Hv), query.dtype)
    queries, keys = positions_for(positions, (), T, S)
    mask = Local(~prefix(0) if mask is None else mask, queries, keys)
    score = None if score is None else LocalScore(score, queries, keys)
    here = (*batch, T // parts, N, H), (*batch, S // parts, *value.shape[-2:])
    mask, score = hoisted(
        mask, score, grid_for(mask, score, *here, platform_of(query)), jnp.zeros((), accumulator(query.dtype))
    )
    scale = jnp.asarray(check_scale(scale, H), accumulator(query.dtype))
    leaves, tree = jax.tree.flatten((mask, score, scale))
    letters = (*mask.axes(), *(() if score is None else score.axes()), "")
    cuts = tuple(_cut_along(leaf, names) for leaf, names in zip(leaves, letters, strict=True))
    part = Part(tree, letters, cuts, Ring(axis, parts), precision)
    spec = P(*[None] * len(batch), axis)
    leaf_specs = [_spec(leaf, names, cut, axis) for leaf, names, cut in zip(leaves, letters, cuts, strict=True)]

    def attend(*operands):
        return _attend(part, *operands)[0].astype(query.dtype)

    # not checked: a function that was traced out here has constants, which vary along no axis
    specs = (spec, spec, spec, *leaf_specs)
    run = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=spec, axis_names={axis}, check_vma=False)
    return jax.jit(run)(query, key, value, *leaves)  # op by op, JAX wants all of the mesh's axes


def balanced_order(length: int, parts: int) -> jax.Array:
    """Where to put the tokens of a causal sequence so that every device has as much to do: the first and the last
    piece of 2 x `parts` on the first device, the second and the last but one on the second, and so on.

    Args:
      length: T, a multiple of 2 x `parts`.
      parts: devices.

    Returns:
      int `[T]`, the position of the token that stands at each index: `tokens[..., order]`, `positions=(order, order)`.

    Raises:
      TypeError: a length or a number of devices that is no static integer.
      ValueError: a length that is no such multiple, or no device.

    >>> balanced_order(8, 2).tolist()
    [0, 1, 6, 7, 2, 3, 4, 5]
    """
    length = static_int("balanced_order(length)", length, minimum=0)
    parts = static_int("balanced_order(parts)", parts, minimum=1)
    if length % (2 * parts):
        raise ValueError(f"length = {length} must be a multiple of 2 x {parts} parts")
    pieces = jnp.arange(length).reshape(2 * parts, -1)
    return jnp.stack([pieces[:parts], pieces[parts:][::-1]], axis=1).reshape(-1)


@node
class Local(Placed):
    """A mask whose arrays are cut to the queries and keys at hand already."""

    def check(self, T: int, S: int) -> None:
        pass


@node
class LocalScore(PlacedScore):
    """A score whose arrays are cut likewise."""

    def check(self, shape: tuple[int, ...]) -> None:
        pass


@dataclass(frozen=True)
class Part:
    """What a device does with the keys of one owner: it holds some queries, and of each array of mask and score the
    rows that are its own or, where an array has no rows, the columns, which go round with the keys."""

    tree: Any  # of mask, score and scale
    letters: tuple[str, ...]
    cuts: tuple[str | None, ...]
    ring: Ring
    precision: PrecisionLike

    @property
    def goes(self) -> tuple[bool, ...]:
        """Which go round, of query, key, value and the arrays."""
        return (False, True, True, *(cut == "s" for cut in self.cuts))

    def problem(self, owner, query, key, value, *leaves):
        """The arguments of attention; what has all columns is cut to the owner's."""
        S, here = key.shape[-3], []
        for leaf, names, cut in zip(leaves, self.letters, self.cuts, strict=True):
            side = leaf.ndim - len(names.removeprefix("*")) + names.removeprefix("*").find("s")
            if "s" in names and cut != "s" and leaf.shape[side] != 1:
                leaf = lax.dynamic_slice_in_dim(leaf, owner * S, S, side)
            here.append(leaf)
        mask, score, scale = jax.tree.unflatten(self.tree, here)
        dtype = accumulator(query.dtype)
        query, key, value = (x.astype(dtype) for x in (query, key, value))
        rules = {"mask": mask, "score": score, "scale": scale, "precision": self.precision}
        return {"query": query, "key": key, "value": value, **rules}

    def attend(self, owner, *operands):
        """Output and log-sum-exp over these keys alone."""
        return blockwise_attention(**self.problem(owner, *operands))

    def term(self, owner, *operands):
        """What they add to the sums over all keys, whose log-sum-exp comes last."""
        *operands, lse = operands
        return weighted_sums(**self.problem(owner, *operands), lse=lse)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(part: Part, query, key, value, *leaves):
    """Output and log-sum-exp of a device's queries, in float32 or better."""

    def meet(found, owner, *operands):
        output, lse = found
        new, new_lse = part.attend(owner, *operands)
        total = jnp.logaddexp(lse, new_lse)
        shares = (jnp.where(total == -jnp.inf, 0, jnp.exp(each - total)) for each in (lse, new_lse))
        old_share, new_share = map(_by_query, shares)
        return old_share * output + new_share * new, total

    return part.ring.round(meet, _nothing(query, value), (query, key, value, *leaves), part.goes)


def _attend_jvp(part: Part, primals, tangents):
    output, lse = _attend(part, *primals)
    finite = jnp.isfinite(lse)  # not where a row sees nothing, or what is not: it takes nothing back, not even NaN
    given = jnp.where(finite, lse, jnp.inf)  # so that its weights are 0
    outputs = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (output, lse))
    sums = RingSum(part, part.ring, (*part.goes, False), (False, False), outputs)
    moving = tuple(index for index, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero))
    d_output, d_lse = sums.tangent(moving)(*primals, given, *(tangents[index] for index in moving))
    d_lse = jnp.where(finite, d_lse, 0)  # twice: what it takes back is 0 x NaN where the output is NaN
    d_output = jnp.where(_by_query(finite), d_output - _by_query(d_lse) * output, 0)
    return (output, lse), (d_output, d_lse)


_attend.defjvp(_attend_jvp, symbolic_zeros=True)


def _nothing(query, value):
    """Output and log-sum-exp before a device has met any keys."""
    *batch, T, N, _ = query.shape
    dtype = accumulator(query.dtype)
    return jnp.zeros((*batch, T, N, value.shape[-1]), dtype), jnp.full((*batch, N, T), -jnp.inf, dtype)


def _by_query(x):
    """`[*B, N, T]` as `[*B, T, N, 1]`."""
    return jnp.swapaxes(x, -1, -2)[..., None]


def _cut_along(leaf, letters: str) -> str | None:
    """The axis that an array is cut along: its rows if it has some, else its columns."""
    return next((letter for letter in "ts" if length_along(leaf, letters, letter) != 1), None)


def _spec(leaf, letters: str, cut: str | None, axis: str) -> P:
    names = letters.removeprefix("*")
    return P(*[None] * (leaf.ndim - len(names)), *(axis if letter == cut else None for letter in names))
