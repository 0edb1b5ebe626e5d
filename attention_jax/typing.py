"""The types that signatures name; for annotations in your own code, too.

    def attend(mask: MaskLike | None, precision: jax.lax.PrecisionLike = None) -> jax.Array: ...

`jax.typing.ArrayLike` is an array of JAX or NumPy, or a number.
"""

from collections.abc import Callable, Sequence

import jax
from jax.typing import ArrayLike

from attention_jax.mask_tree import Mask
from attention_jax.score_tree import Score

MaskLike = Mask | ArrayLike
"""A `Mask`, or a bool array, True = may attend."""

ScoreLike = Score | Callable[..., jax.Array]
"""A `Score`, or a function `(logit, head, t, s) -> logit`."""

Integers = ArrayLike | Sequence[int]
"""Integers, as an array or a list."""

Positions = tuple[Integers, Integers]
"""Where queries and keys stand: `[T]` or `[*B, T]`, and `[S]` or `[*B, S]`."""
