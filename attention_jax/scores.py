"""What is done to a logit before the softmax: a score is a function of the logit and of where it stands.

    >>> from attention_jax import alibi_slopes, attention, causal
    >>> query = key = value = jnp.ones((7, 4, 8))
    >>> attention(query, key, value, mask=causal(), score=soft_cap(30.0) >> alibi(alibi_slopes(4))).shape
    (7, 4, 8)

`one >> other` applies `one` first. A score may also be any function `(logit, head, t, s) -> logit`. Gradients flow to
the arrays a score holds, and to those a function has captured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from attention_jax.arguments import positions_alike, static_int
from attention_jax.checks import check_auto, check_bias, check_mask_shape
from attention_jax.mask_rules import check_offset
from attention_jax.mask_tree import Mask, Node, as_mask, check_placed

if TYPE_CHECKING:
    from attention_jax.typing import Integers, MaskLike, ScoreLike


class Score:
    """A change to the logits; `one >> other` applies `one` first.

    Raises:
      TypeError: it is joined to what is neither a score nor a function.

    >>> from attention_jax import attention
    >>> x = jnp.ones((3, 2, 4))
    >>> attention(x, x, x, score=soft_cap(30.0) >> (lambda logit, head, t, s: logit - abs(t - s))).shape
    (3, 2, 4)
    """

    def apply(self, logits: jax.Array, head: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        """The changed logits of one head's block, `[len(rows), len(columns)]` as they came.

        The score's own arrays hold just this head, these query positions and these key positions.
        """
        raise NotImplementedError

    def axes(self) -> list[str]:
        """What the axes of each of the score's arrays are, as for a mask; `.` is one that every block needs whole."""
        return []

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise `ValueError` if this score is not one for logits of `shape`, `[*B, N, T, S]`."""

    def place(self, query_positions: Integers, key_positions: Integers) -> Score:
        """The same score for queries and keys that stand elsewhere.

        Args:
          query_positions, key_positions: as `Mask.place`.

        Raises:
          ValueError: where the score is used, as `Mask.place`.

        >>> from attention_jax import alibi_slopes, attention
        >>> query, key = jnp.ones((2, 4, 8)), jnp.ones((6, 4, 8))
        >>> score = alibi(alibi_slopes(4)).place([4, 5], [0, 1, 2, 3, 4, 5])
        >>> attention(query, key, key, score=score).shape
        (2, 4, 8)
        """
        return PlacedScore(self, *positions_alike(query_positions, key_positions))

    def __rshift__(self, other: ScoreLike) -> Score:
        return Then(self, as_score(other))

    def __rrshift__(self, other: ScoreLike) -> Score:
        return Then(as_score(other), self)


def check_score(score: ScoreLike | None, shape: tuple[int, ...]) -> Score | None:
    """A score (or function, or None) as a `Score` for logits of `shape`, `[*B, N, T, S]`."""
    if score is None:
        return None
    score = as_score(score)
    score.check(shape)
    return score


def check_rules(
    mask: MaskLike | None, score: ScoreLike | None, shape: tuple[int, ...]
) -> tuple[Mask | None, Score | None]:
    """A mask (or bool array, or None) and a score (or function, or None) for logits of `shape`, `[*B, N, T, S]`."""
    mask = None if mask is None else as_mask(mask)
    score = None if score is None else as_score(score)
    for name, part in (("mask", mask), ("score", score)):
        for leaf in jax.tree.leaves(part):
            check_auto(**{f"an array of {name}": leaf})
    score = check_score(score, shape)
    if mask is not None:
        check_mask_shape(mask, shape)
    return mask, score


def apply_score(
    score: Score | None, head: jax.Array, rows: jax.Array, columns: jax.Array, logits: jax.Array
) -> jax.Array:
    """One head's logits as `score` changes them."""
    return logits if score is None else score.apply(logits, head, rows, columns)


def bias(array: ArrayLike) -> Score:
    """An array added to the logits.

    Args:
      array: floating `[T, S]` or `[*B, N or 1, T, S]`; T and S may be 1 to broadcast; -inf hides a key.

    Raises:
      TypeError: where the score is used, an array that is not floating.
      ValueError: where the score is used, a shape that does not fit, or a batch that could be taken for heads.

    >>> from attention_jax import attention
    >>> x = jnp.ones((3, 2, 4))
    >>> attention(x, x, x, score=bias(jnp.zeros((3, 3)))).shape
    (3, 2, 4)
    """
    return Bias(jnp.asarray(array))


def alibi(slopes: ArrayLike, *, offset: int | None = None) -> Score:
    """A penalty for distance, `-slope * abs(t + offset - s)` (Press et al. 2021, arXiv:2108.12409).

    Args:
      slopes: `[N]`, as `alibi_slopes` gives them, or learned.
      offset: as in `causal`: query t stands at key position t + offset.

    Raises:
      ValueError: where the score is used, T != S without an offset, or slopes for another number of heads.

    >>> from attention_jax import alibi_slopes, attention
    >>> x = jnp.ones((6, 2, 4))
    >>> attention(x, x, x, score=alibi(alibi_slopes(2))).shape
    (6, 2, 4)
    """
    return Alibi(jnp.asarray(slopes), _offset("alibi(offset=)", offset))


def relative_bias(
    table: ArrayLike, *, bidirectional: bool = False, max_distance: int = 128, offset: int | None = None
) -> Score:
    """A learned bias for each bucket of distances (T5; Raffel et al. 2019, arXiv:1910.10683, section 2.1).

    Args:
      table: `[buckets, N]`, a parameter.
      bidirectional: whether later keys have buckets of their own, half of them; else they share that of distance 0.
      max_distance: from where on all distances share the last bucket (static int).
      offset: as in `causal`: query t stands at key position t + offset.

    Raises:
      ValueError: a `max_distance` below 2; where the score is used, T != S without an offset, or a table of too few
        buckets or another number of heads.

    >>> from attention_jax import attention
    >>> x = jnp.ones((6, 2, 4))
    >>> attention(x, x, x, score=relative_bias(jnp.zeros((32, 2)))).shape
    (6, 2, 4)
    """
    max_distance = static_int("relative_bias(max_distance=)", max_distance, minimum=2)
    return RelativeBias(jnp.asarray(table), bidirectional, max_distance, _offset("relative_bias(offset=)", offset))


def relative_bucket(distance: jax.Array, buckets: int, max_distance: int, *, bidirectional: bool) -> jax.Array:
    """T5's bucket of each distance s - t: one for each small distance, then ever wider ones, growing by a ratio.

    >>> relative_bucket(jnp.array([0, -1, -7, -20, -500, 3]), 32, 128, bidirectional=False).tolist()
    [0, 1, 7, 17, 31, 0]
    """
    first = 0
    if bidirectional:
        buckets //= 2
        first = jnp.where(distance > 0, buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(max_distance / exact)
    wide = exact + (ratio * (buckets - exact)).astype(distance.dtype)
    return first + jnp.where(distance < exact, distance, jnp.minimum(wide, buckets - 1))


def soft_cap(cap: ArrayLike) -> Score:
    """Logits bounded smoothly to -cap .. cap, as cap * tanh(logit / cap) (Gemma 2, arXiv:2408.00118).

    Args:
      cap: positive number, or scalar array.

    Raises:
      ValueError: a cap that is not one positive number.

    >>> from attention_jax import attention
    >>> x = jnp.ones((6, 2, 4))
    >>> attention(100 * x, x, x, score=soft_cap(30.0)).shape
    (6, 2, 4)
    """
    cap = jnp.asarray(cap, float) if isinstance(cap, jax.Array) else np.asarray(cap, float)
    if cap.ndim != 0 or (not isinstance(cap, jax.core.Tracer) and not cap > 0):
        raise ValueError(f"soft_cap(cap) must be one positive number, got {cap if cap.ndim == 0 else cap.shape}")
    return SoftCap(cap)


def add_sinks(output: jax.Array, lse: jax.Array, sinks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention with a learned sink in each head: a key of its own that takes weight and gives no value.

    Attention sinks (arXiv:2309.17453) as gpt-oss has them: the softmax runs over the logits and one more.

    Args:
      output: `[*B, T, N, Hv]`, from `attention_and_lse`.
      lse: `[*B, N, T]`, from `attention_and_lse`.
      sinks: `[N]`, the sinks' logits.

    Returns:
      output and log-sum-exp with the sinks.

    Raises:
      ValueError: shapes that do not fit each other.

    >>> from attention_jax import attention_and_lse
    >>> x = jnp.zeros((3, 1, 2))
    >>> output, lse = add_sinks(*attention_and_lse(x, x, x + 1), jnp.zeros(1))
    >>> with jnp.printoptions(precision=2):  # three keys and the sink have a quarter of the weight each
    ...     print(output[0, 0])
    [0.75 0.75]
    """
    *batch, T, N, _ = output.shape
    if lse.shape != (*batch, N, T) or sinks.shape != (N,):
        raise ValueError(
            "add_sinks wants output [*B, T, N, Hv], lse [*B, N, T] and sinks [N]; got output "
            f"{output.shape}, lse {lse.shape}, sinks {sinks.shape}"
        )
    sinks = jnp.broadcast_to(sinks[:, None].astype(lse.dtype), lse.shape)
    share = jnp.moveaxis(jax.nn.sigmoid(lse - sinks), -1, -2)[..., None]
    return (output * share).astype(output.dtype), jnp.logaddexp(lse, sinks)


def score_from_function(fn: Callable[..., jax.Array]) -> Score:
    """A score from `fn(logit, head, t, s)`, the new logits of one head's block.

    Args:
      fn: called with floating `[T, S]`, an integer, and integers `[T, 1]` and `[1, S]`, the positions; T and S are
        those of a block. Arrays that it captures may be traced, and are given gradients.

    Raises:
      TypeError: no function.
      ValueError: where the score is used, logits of another shape than those that came in.

    >>> from attention_jax import attention
    >>> x, slopes = jnp.ones((5, 2, 4)), jnp.array([0.5, 0.25])
    >>> score = score_from_function(lambda logit, head, t, s: logit - slopes[head] * abs(t - s))
    >>> attention(x, x, x, score=score).shape
    (5, 2, 4)
    """
    return as_score(fn)


def _offset(name: str, offset: int | None) -> int | None:
    return offset if offset is None else static_int(name, offset)


def as_score(score: ScoreLike) -> Score:
    """A `Score` as it is, or one made of a function."""
    if isinstance(score, Score):
        return score
    if callable(score):
        return ScoreFunction(score)
    raise TypeError(
        f"a score is made by attention_jax.scores, or is a function (logit, head, t, s) -> logit; got {score!r}. "
        "An array to be added to the logits is score=bias(array)"
    )


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(field,))
def _node(cls: type[Node]) -> type[Node]:
    return jax.tree_util.register_dataclass(dataclass(frozen=True, eq=False)(cls))


@_node
class Bias(Score):
    array: jax.Array

    def apply(self, logits: jax.Array, head: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return logits + self.array.astype(logits.dtype)

    def axes(self) -> list[str]:
        return ["*nts" if self.array.ndim > 2 else "ts"]

    def check(self, shape: tuple[int, ...]) -> None:
        check_bias(self.array, shape)


@_node
class Alibi(Score):
    slopes: jax.Array
    offset: int | None = field(metadata={"static": True})

    def apply(self, logits: jax.Array, head: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        distance = jnp.abs(rows[:, None] + (self.offset or 0) - columns[None, :])
        return logits - self.slopes.astype(logits.dtype) * distance.astype(logits.dtype)

    def axes(self) -> list[str]:
        return ["n"]

    def check(self, shape: tuple[int, ...]) -> None:
        check_offset("alibi()", self.offset, *shape[-2:])
        if self.slopes.shape != shape[-3:-2]:
            raise ValueError(f"alibi() has slopes {self.slopes.shape}, expected one a head, {shape[-3:-2]}")


@_node
class RelativeBias(Score):
    table: jax.Array
    bidirectional: bool = field(metadata={"static": True})
    max_distance: int = field(metadata={"static": True})
    offset: int | None = field(metadata={"static": True})

    def apply(self, logits: jax.Array, head: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        distance = columns[None, :] - rows[:, None] - (self.offset or 0)
        bucket = relative_bucket(distance, self.table.shape[0], self.max_distance, bidirectional=self.bidirectional)
        return logits + self.table.astype(logits.dtype)[bucket]

    def axes(self) -> list[str]:
        return [".n"]

    def check(self, shape: tuple[int, ...]) -> None:
        check_offset("relative_bias()", self.offset, *shape[-2:])
        if self.table.ndim != 2 or self.table.shape[1] != shape[-3]:
            raise ValueError(
                f"relative_bias() has a table {self.table.shape}, expected [buckets, N] with N = {shape[-3]} heads"
            )
        least = 4 if self.bidirectional else 2
        if self.table.shape[0] < least:
            raise ValueError(f"relative_bias() wants a table of at least {least} buckets, got {self.table.shape[0]}")


@_node
class SoftCap(Score):
    cap: jax.Array | np.ndarray

    def apply(self, logits: jax.Array, head: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        cap = jnp.asarray(self.cap, logits.dtype)
        return cap * jnp.tanh(logits / cap)

    def axes(self) -> list[str]:
        return [""]


@_node
class ScoreFunction(Score):
    fn: Callable = field(metadata={"static": True})
    captured: tuple[jax.Array, ...] = ()  # arrays that `fn` is called with first

    def apply(self, logits: jax.Array, head: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        changed = jnp.asarray(self.fn(*self.captured, logits, head, rows[:, None], columns[None, :]))
        sizes = zip(changed.shape[::-1], logits.shape[::-1], strict=False)
        if changed.ndim > 2 or any(size not in (1, wanted) for size, wanted in sizes):
            raise ValueError(f"the score function made {changed.shape} of logits {logits.shape}")
        return jnp.broadcast_to(changed, logits.shape).astype(logits.dtype)

    def axes(self) -> list[str]:
        return ["." * array.ndim for array in self.captured]


@_node
class Then(Score):
    first: Score
    second: Score

    def apply(self, logits: jax.Array, head: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return self.second.apply(self.first.apply(logits, head, rows, columns), head, rows, columns)

    def axes(self) -> list[str]:
        return self.first.axes() + self.second.axes()

    def check(self, shape: tuple[int, ...]) -> None:
        self.first.check(shape)
        self.second.check(shape)


@_node
class PlacedScore(Score):
    score: Score
    query_positions: jax.Array
    key_positions: jax.Array

    def apply(self, logits: jax.Array, head: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return self.score.apply(logits, head, self.query_positions, self.key_positions)

    def axes(self) -> list[str]:
        return [*self.score.axes(), "*t", "*s"]

    def check(self, shape: tuple[int, ...]) -> None:
        T, S = shape[-2:]
        sizes = self.query_positions.shape[-1], self.key_positions.shape[-1]
        check_placed(type(self.score).__name__, self.score.axes(), *sizes, T, S)
        self.score.check((*shape[:-2], S, S))  # where positions are given, T != S leaves no offset open
