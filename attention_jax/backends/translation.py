"""Masks and scores taken apart into what kernels know."""

from dataclasses import fields
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.axes import cut_leaves
from attention_jax.mask_rules import Causal, Function, KeyLengths, Segments, Window
from attention_jax.mask_tree import And, Mask
from attention_jax.score_rules import Bias, SoftCap
from attention_jax.score_tree import Score

ROWS_AT_ONCE = 512

# What a kernel may take. A mask is a conjunction; each kind is something that may stand in it.
CAUSAL = "causal()"
CAUSAL_WINDOW = "causal() & sliding_window(left, 0) for T = S"
RULES = "a rule on positions that is neither causal() nor, for T = S, that and a window"
LENGTHS = "key_lengths()"
SEGMENTS = "segments()"
ARRAYS = "arrays, other than those of key_lengths() and segments()"

BIAS = "a bias"
SOFT_CAP = "a soft cap"
OTHER_SCORE = "neither a bias nor a soft cap of a number"


class MaskParts(NamedTuple):
    """A mask, as the conjunction of what is not None."""

    rule: Mask | None
    """Known while tracing: no arrays."""
    lengths: jax.Array | None
    """int32 `[B]`: the keys that each example has."""
    segments: tuple[jax.Array, jax.Array] | None
    """Integers `[B, T]` and `[B, S]`."""


def band(rule: Mask | None) -> tuple[int | None, int | None] | None:
    """The least and the most that s - t may be, None for no bound, if that is all a rule asks."""
    if rule is None:
        return None, None
    if isinstance(rule, Causal):
        return None, rule.offset or 0
    if isinstance(rule, Window):
        return (rule.offset or 0) - rule.left, (rule.offset or 0) + rule.right
    if isinstance(rule, And) and (sides := (band(rule.left), band(rule.right))) and None not in sides:
        low, high = ([bound for bound in bounds if bound is not None] for bounds in zip(*sides, strict=True))  # type: ignore[arg-type]
        return max(low, default=None), min(high, default=None)
    return None


def mask_kinds(mask: Mask | None, T: int, S: int) -> list[str]:
    """What a mask for T queries and S keys is made of."""
    rule, lengths, segments, others = _sort(mask)
    bounds, kinds = band(rule), []
    if bounds == (None, 0):
        kinds.append(CAUSAL)
    elif bounds is not None and bounds[0] is not None and bounds[0] <= 0 and bounds[1] == 0 and T == S:
        kinds.append(CAUSAL_WINDOW)
    elif bounds != (None, None):
        kinds.append(RULES)
    kinds += [LENGTHS] * bool(lengths) + [SEGMENTS] * bool(segments)
    return kinds + [ARRAYS] * (bool(others) or len(segments) > 1)


def mask_parts(mask: Mask | None, batch: tuple[int, ...], S: int) -> MaskParts:
    """A mask without `ARRAYS`, for examples whose batch dimensions have been made one."""
    rule, lengths, segments, _ = _sort(mask)

    def flat(array: jax.Array, *length: int) -> jax.Array:
        return jnp.broadcast_to(array, (*batch, *length)).reshape(-1, *length)

    least = None
    for each in lengths:
        clipped = flat(jnp.clip(each.lengths, 0, S).astype(jnp.int32))
        least = clipped if least is None else jnp.minimum(least, clipped)
    ids = [(flat(x.query_ids, x.query_ids.shape[-1]), flat(x.key_ids, x.key_ids.shape[-1])) for x in segments]
    return MaskParts(rule, least, ids[0] if ids else None)


def score_kind(score: Score | None) -> str | None:
    """What a score is."""
    if score is None:
        return None
    if isinstance(score, Bias):
        return BIAS
    known = isinstance(score, SoftCap) and not isinstance(score.cap, jax.core.Tracer)
    return SOFT_CAP if known else OTHER_SCORE


def rows_that_see(mask: Mask | None, T: int, S: int) -> jax.Array | np.ndarray | None:
    """Bool `[T]` or `[*B, T]`: whether each query sees some key; None if it is known that all do, and NumPy's where it
    is known of each."""
    rule, *arrays = _sort(mask)
    shown = _rows_that_a_rule_shows(rule, T, S)
    if mask is None or not any(arrays) or not shown.any():
        return None if shown.all() else shown
    columns = jnp.arange(S)

    def some_rows(first: jax.Array) -> jax.Array:
        rows = jnp.minimum(first + jnp.arange(min(ROWS_AT_ONCE, T)), T - 1)
        seen = cut_leaves(mask, t=rows).at(rows, columns)
        return jnp.broadcast_to(seen, (*seen.shape[:-2], len(rows), S)).any(axis=-1)

    sees = jnp.moveaxis(jax.lax.map(some_rows, jnp.arange(0, T, ROWS_AT_ONCE)), 0, -2)
    sees = sees.reshape(*sees.shape[:-2], -1)[..., :T]
    return sees if sees.ndim == 1 else sees[..., 0, :]


def _rows_that_a_rule_shows(rule: Mask | None, T: int, S: int) -> np.ndarray:
    """Bool `[T]`: which queries see some key by a rule without arrays."""
    rows, bounds = np.arange(T), band(rule)
    if rule is not None and bounds is None:
        firsts = range(0, T, ROWS_AT_ONCE)
        return np.concatenate([rule_block(rule, rows[t : t + ROWS_AT_ONCE], np.arange(S)).any(axis=1) for t in firsts])
    least, most = bounds or (None, None)
    first = 0 if least is None else np.maximum(rows + least, 0)
    last = S - 1 if most is None else np.minimum(rows + most, S - 1)
    return np.broadcast_to(first <= last, (T,))


def rule_block(rule: Mask, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A block of a rule without arrays, while tracing."""
    with jax.ensure_compile_time_eval():
        block = np.asarray(rule.at(jnp.asarray(rows), jnp.asarray(columns)))
    return np.broadcast_to(block, (len(rows), len(columns)))


def _sort(mask: Mask | None) -> tuple[Mask | None, list[KeyLengths], list[Segments], list[Mask]]:
    """What a mask is a conjunction of: what is known while tracing as one mask or None, lengths, segments, others."""
    rule, lengths, segments, others = None, [], [], []
    for part in _conjuncts(mask):
        if isinstance(part, KeyLengths):
            lengths.append(part)
        elif isinstance(part, Segments):
            segments.append(part)
        elif _is_static(part):
            rule = part if rule is None else rule & part
        else:
            others.append(part)
    return rule, lengths, segments, others


def _conjuncts(mask: Mask | None) -> list[Mask]:
    if mask is None:
        return []
    return _conjuncts(mask.left) + _conjuncts(mask.right) if isinstance(mask, And) else [mask]


def _is_static(mask: Mask) -> bool:
    if isinstance(mask, Function):
        position = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        return not mask.captured and not jax.make_jaxpr(mask.fn)(position, position).consts
    if jax.tree.leaves(mask):
        return False
    children = (getattr(mask, field.name) for field in fields(mask))  # type: ignore[arg-type]
    return all(_is_static(child) for child in children if isinstance(child, Mask))
