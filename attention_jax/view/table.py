"""Attention weights as a table of numbers, as textbooks print them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jax.typing import ArrayLike

from attention_jax.mask_tree import as_mask
from attention_jax.typing import MaskLike


def text(
    weights: ArrayLike, tokens: Sequence[str], *, key_tokens: Sequence[str] | None = None, mask: MaskLike | None = None
) -> str:
    """The weights of one head in rows and columns, what is masked as `---`.

    Args:
      weights: `[T, S]`; of many heads, take one: `weights[layer, head]`.
      tokens: T strings, one for each query.
      key_tokens: S strings. Default: `tokens`.
      mask: `Mask`, or bool `[T, S]`, what may be seen. Default: all that is not 0.

    Raises:
      TypeError: a mask that is not bool.
      ValueError: weights, tokens and mask that do not fit each other.

    >>> weights = np.array([[1, 0, 0], [0.25, 0.75, 0], [0.5, 0.2, 0.3]])
    >>> print(text(weights, ["the", "cat", "sat"]))
         the  cat  sat
    the 1.00  ---  ---
    cat 0.25 0.75  ---
    sat 0.50 0.20 0.30
    """
    weights = np.asarray(weights, np.float32)
    rows, columns = labels(tokens), labels(tokens if key_tokens is None else key_tokens)
    if weights.shape != (len(rows), len(columns)):
        raise ValueError(
            f"weights must be those of one head, [T, S] = {[len(rows), len(columns)]} for these tokens; got "
            f"{list(weights.shape)}: take one, e.g. weights[layer, head]"
        )
    seen = weights != 0
    if mask is not None:
        seen = np.asarray(as_mask(mask).to_array(*weights.shape))
        if seen.shape != weights.shape:
            raise ValueError(f"mask must be [T, S] = {list(weights.shape)}, got {list(seen.shape)}")
    cells = [["", *columns]]
    for label, row, shown in zip(rows, weights, seen, strict=True):
        cells.append([label, *(f"{x:.2f}" if s else "---" for x, s in zip(row, shown, strict=True))])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(lines)


def labels(tokens: Sequence[str], longest: int = 12) -> list[str]:
    """Tokens as they can be read on one line: white space made visible, and what is long cut."""
    visible = [token.translate({32: "␣", 10: "↵", 13: "↵", 9: "⇥"}) or "∅" for token in check_tokens("tokens", tokens)]
    visible = ["".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in token) for token in visible]
    return [token if len(token) <= longest else token[: longest - 1] + "…" for token in visible]


def check_tokens(name: str, tokens: object) -> list[str]:
    """The labels as a list, or a `TypeError` that says what they are instead."""
    if isinstance(tokens, str) or not isinstance(tokens, Iterable):
        raise TypeError(f"{name} must be a list of strings, got {type(tokens).__name__}")
    tokens = list(tokens)
    for token in tokens:
        if not isinstance(token, str):
            raise TypeError(f"{name} must be a list of strings, got one with {token!r}, {type(token).__name__}")
    return tokens
