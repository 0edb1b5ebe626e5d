"""The expression tree behind `scores.py`: what a score can do, and how scores are joined and placed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from attention_jax.arguments import is_real, made_by, of_batch, positions_alike
from attention_jax.checks import check_auto, check_mask_shape
from attention_jax.mask_tree import Mask, as_mask, check_placed
from attention_jax.node import node, static

if TYPE_CHECKING:
    from attention_jax.typing import Integers, MaskLike, ScoreLike


class Score:
    """A change to the logits; `one >> other` applies `one` first.

    Raises:
      TypeError: it is joined to what is neither a score nor a function.

    >>> from attention_jax import attention, soft_cap
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

        >>> from attention_jax import alibi, alibi_slopes, attention
        >>> query, key = jnp.ones((2, 4, 8)), jnp.ones((6, 4, 8))
        >>> score = alibi(alibi_slopes(4)).place([4, 5], [0, 1, 2, 3, 4, 5])
        >>> attention(query, key, key, score=score).shape
        (2, 4, 8)
        """
        return PlacedScore(self, *positions_alike((query_positions, key_positions)))

    def __rshift__(self, other: ScoreLike) -> Score:
        return Then(self, as_score(other))

    def __rrshift__(self, other: ScoreLike) -> Score:
        return Then(as_score(other), self)


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


def check_rules(
    mask: MaskLike | None, score: ScoreLike | None, shape: tuple[int, ...]
) -> tuple[Mask | None, Score | None]:
    """A mask (or bool array, or None) and a score (or function, or None) for logits of `shape`, `[*B, N, T, S]`."""
    mask = None if mask is None else as_mask(mask)
    score = None if score is None else as_score(score)
    for name, part in (("mask", mask), ("score", score)):
        for leaf in jax.tree.leaves(part):
            check_auto(**{f"an array of {name}": leaf})
    if score is not None:
        score.check(shape)
    if mask is not None:
        check_mask_shape(mask, shape)
    return mask, score


def apply_score(
    score: Score | None, head: jax.Array, rows: jax.Array, columns: jax.Array, logits: jax.Array
) -> jax.Array:
    """One head's logits as `score` changes them."""
    return logits if score is None else score.apply(logits, head, rows, columns)


@node
class ScoreFunction(Score):
    fn: Callable = static()
    captured: tuple[jax.Array, ...] = ()  # arrays that `fn` is called with first

    def apply(self, logits: jax.Array, head: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        changed = self.call(*self.captured, logits, head, rows[:, None], columns[None, :])
        return jnp.broadcast_to(changed, logits.shape).astype(logits.dtype)

    def call(self, *inputs: jax.Array) -> jax.Array:
        """What the function makes of its inputs, if that can be logits."""
        what = f"the score function {getattr(self.fn, '__name__', repr(self.fn))}"
        changed = made_by(what, self.fn, "logit, head, t, s", inputs, inputs[-4].shape)
        if not is_real(changed.dtype):
            fix = ": what says whether a key is seen is mask=mask_from_function(...)" if changed.dtype == bool else ""
            raise TypeError(f"{what} must return real logits, got {changed.dtype}{fix}")
        return changed

    def axes(self) -> list[str]:
        return ["." * array.ndim for array in self.captured]


@node
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


@node
class PlacedScore(Score):
    score: Score
    query_positions: jax.Array
    key_positions: jax.Array

    def apply(self, logits: jax.Array, head: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return self.score.apply(logits, head, self.query_positions, self.key_positions)

    def axes(self) -> list[str]:
        return [*self.score.axes(), "*t", "*s"]

    def check(self, shape: tuple[int, ...]) -> None:
        *batch, _, T, S = shape
        name, own = type(self.score).__name__, self.query_positions.shape[:-1]
        check_placed(name, self.score.axes(), self.query_positions.shape[-1], self.key_positions.shape[-1], T, S)
        if not of_batch(own, batch):
            raise ValueError(f"{name} is placed at positions for batch dimensions {list(own)}, expected *B = {batch}")
        self.score.check((*shape[:-2], S, S))  # where positions are given, T != S leaves no offset open
