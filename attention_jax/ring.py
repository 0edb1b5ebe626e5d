"""Attention over a sequence that is spread over devices: ring attention (Liu et al. 2023, arXiv:2310.01889).

Each device keeps its queries. Keys and values go round, one device further each time; what a device finds in each part
is joined by the log-sum-exps. Backward, they go round once more, and take their gradients along.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import PrecisionLike
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from attention_jax.arguments import positions_for, static_int
from attention_jax.block_sizes import grid_for
from attention_jax.blocks.numerics import finite_or_zero
from attention_jax.blocks.sweep import accumulator
from attention_jax.blockwise import blockwise_attention, weighted_sums
from attention_jax.captured import hoisted
from attention_jax.checks import check_many_heads, check_scale
from attention_jax.devices import platform_of
from attention_jax.mask_tree import Placed
from attention_jax.masks import prefix
from attention_jax.node import node
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
    """`attention` whose sequence is cut along a mesh axis; each device holds its part of it, forward and backward
    (Liu et al. 2023, arXiv:2310.01889).

    Reverse mode only; `jax.jvp` of it is refused by JAX.

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
    letters = [*mask.axes(), *([] if score is None else score.axes()), ""]
    cuts = [_cut_along(leaf, names) for leaf, names in zip(leaves, letters, strict=True)]
    spec = P(*[None] * len(batch), axis)
    body = partial(
        _one_device,
        tree=tree,
        letters=letters,
        cuts=cuts,
        axis=axis,
        parts=parts,
        precision=precision,
    )
    leaf_specs = [_spec(leaf, names, cut, axis) for leaf, names, cut in zip(leaves, letters, cuts, strict=True)]
    specs = (spec, spec, spec, leaf_specs)
    # not checked: a function that was traced out here has constants, which vary along no axis
    run = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=spec, axis_names={axis}, check_vma=False)
    return run(query, key, value, leaves)


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


def _one_device(query, key, value, leaves, *, tree, letters, cuts, axis, parts, precision):
    """One device's part: it holds some queries and keys, and of the arrays of mask and score the rows that are its own,
    or, where these have no rows, the columns."""
    S, dtype = key.shape[-3], accumulator(query.dtype)
    travels = [cut == "s" for cut in cuts]
    sliced = ["s" in names and not travel for names, travel in zip(letters, travels, strict=True)]
    onward = partial(lax.ppermute, axis_name=axis, perm=[(i, (i + 1) % parts) for i in range(parts)])

    def arguments(turn, stay, go):
        """Key, value and options of a turn; what has all columns is cut to those of the keys at hand."""
        stay, go, owner = iter(stay[1:]), iter(go), (lax.axis_index(axis) - turn) % parts
        key, value = next(go), next(go)
        here = []
        for travel, cut, names in zip(travels, sliced, letters, strict=True):
            leaf = next(go if travel else stay)
            side = leaf.ndim - len(names.removeprefix("*")) + names.removeprefix("*").find("s")
            if cut and leaf.shape[side] != 1:
                leaf = lax.dynamic_slice_in_dim(leaf, owner * S, S, side)
            here.append(leaf)
        mask, score, scale = jax.tree.unflatten(tree, here)
        return key, value, {"mask": mask, "score": score, "scale": scale, "precision": precision}

    def forward(stay, go):
        query = stay[0]

        def step(carry, turn):
            output, lse, go = carry
            key, value, rules = arguments(turn, stay, go)
            found, found_lse = blockwise_attention(*(x.astype(dtype) for x in (query, key, value)), **rules)
            total = jnp.logaddexp(lse, found_lse)
            shares = (jnp.where(total == -jnp.inf, 0, jnp.exp(each - total)) for each in (lse, found_lse))
            old, new = (jnp.swapaxes(share, -1, -2)[..., None] for share in shares)
            return (old * output + new * found, total, jax.tree.map(onward, go)), None

        *batch, T, N, _ = query.shape
        start = jnp.zeros((*batch, T, N, value.shape[-1]), dtype), jnp.full((*batch, N, T), -jnp.inf, dtype)
        carry = (*start, go)
        (output, lse, _), _ = lax.scan(step, carry, jnp.arange(parts))
        return output, lse

    @jax.custom_vjp
    def attend(stay, go):
        return forward(stay, go)[0]

    def attend_forward(stay, go):
        output, lse = forward(stay, go)
        return output, (stay, go, output, lse)

    def attend_backward(kept, d_output):
        stay, go, output, lse = kept
        finite = jnp.isfinite(lse)  # not where a row sees nothing, or what is not: it takes nothing back, not even NaN
        d_output = jnp.where(jnp.swapaxes(finite, -1, -2)[..., None], d_output, 0)
        d_total = -jnp.swapaxes(jnp.sum(d_output * finite_or_zero(output), axis=-1), -1, -2)
        lse = jnp.where(finite, lse, jnp.inf)  # so that its weights are 0

        def step(carry, turn):
            d_stay, go, d_go = carry

            def sums(stay_floats, go_floats):
                key, value, rules = arguments(turn, *(map(_join, (stay_floats, go_floats), (stay, go))))
                return weighted_sums(_join(stay_floats, stay)[0], key, value, lse, **rules)

            _, pull = jax.vjp(sums, _floats(stay), _floats(go))
            more_stay, more_go = pull((d_output, d_total))
            d_stay, d_go = (jax.tree.map(jnp.add, old, new) for old, new in ((d_stay, more_stay), (d_go, more_go)))
            return (d_stay, *jax.tree.map(onward, (go, d_go))), None

        zeros = [jax.tree.map(jnp.zeros_like, _floats(arrays)) for arrays in (stay, go)]
        (d_stay, _, d_go), _ = lax.scan(step, (zeros[0], go, zeros[1]), jnp.arange(parts))
        return _join(d_stay, [None] * len(stay), stay), _join(d_go, [None] * len(go), go)

    attend.defvjp(attend_forward, attend_backward)
    stay = [query, *(leaf for leaf, travel in zip(leaves, travels, strict=True) if not travel)]
    go = [key, value, *(leaf for leaf, travel in zip(leaves, travels, strict=True) if travel)]
    return attend(stay, go).astype(query.dtype)


def _cut_along(leaf, letters: str) -> str | None:
    """The axis that an array is cut along: its rows if it has some, else its columns."""
    names = letters.removeprefix("*")
    sizes = dict(zip(names, leaf.shape[leaf.ndim - len(names) :], strict=True))
    return next((letter for letter in "ts" if sizes.get(letter, 1) != 1), None)


def _spec(leaf, letters: str, cut: str | None, axis: str) -> P:
    names = letters.removeprefix("*")
    return P(*[None] * (leaf.ndim - len(names)), *(axis if letter == cut else None for letter in names))


def _floats(arrays):
    return [array for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)]


def _join(floats, arrays, like=None):
    """`arrays` with other floating-point ones."""
    floats = iter(floats)
    types = zip(arrays, arrays if like is None else like, strict=True)
    return [next(floats) if jnp.issubdtype(each.dtype, jnp.floating) else array for array, each in types]
