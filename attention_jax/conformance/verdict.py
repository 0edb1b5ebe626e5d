"""How a row is judged."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.conformance.implementation import Implementation, NotOfferedError


class DeviationError(Exception):
    """What was measured, where the contract wants something else."""


@dataclass(frozen=True, repr=False)
class Verdict:
    """`kind` is "passes", "deviates" or "refuses"; `detail` is what was measured, or the error's first line."""

    kind: str
    detail: str = ""

    def __repr__(self) -> str:
        return self.kind.capitalize() + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True)
class Row:
    """One line of the contract."""

    name: str
    expected: str
    run: Callable[[Implementation], None]


ROWS: dict[str, Row] = {}


def row(name: str, expected: str):
    """Add a function of an implementation to the contract; it raises `DeviationError` where numbers differ."""

    def add(run):
        ROWS[name] = Row(name, expected, run)
        return run

    return add


def check(implementation: Implementation, name: str) -> Verdict:
    """Put an implementation through one row of the contract.

    Args:
      implementation: an `Implementation`.
      name: one of `ROWS`.

    Returns:
      What came out; errors of the implementation are refusals, and do not leave this function.

    Raises:
      KeyError: there is no row of that name.

    >>> from attention_jax import attention
    >>> check(Implementation("ours", "0.1.0", attention), "no keys: S = 0")
    Passes
    """
    try:
        ROWS[name].run(implementation)
    except DeviationError as deviation:
        return Verdict("deviates", str(deviation))
    except NotOfferedError as error:
        return Verdict("refuses", str(error))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return Verdict("refuses", f"{type(error).__name__}: {lines[0]}")
    return Verdict("passes")


def near(what: str, ours, truth, tolerance: float) -> None:
    """Deviate unless the largest difference is at most `tolerance` of the largest true value (or of 1e-3)."""
    ours, truth = np.asarray(jnp.asarray(ours).astype(jnp.promote_types(ours.dtype, jnp.float32))), np.asarray(truth)
    if ours.shape != truth.shape:
        raise DeviationError(f"{what} has shape {ours.shape}, where {truth.shape} was expected")
    same = (ours == truth) | (np.isnan(ours) & np.isnan(truth))
    broken = ~np.isfinite(ours) & ~same
    if broken.any():
        kind = "NaN" if np.isnan(ours[broken]).all() else "inf"
        there = np.unique(truth[broken])
        instead = f"{there[0]:.3g}" if len(there) == 1 else "finite"
        raise DeviationError(f"{what} {kind} in {broken.sum()} of {ours.size} numbers, not {instead}")
    finite = np.isinf(truth) & np.isfinite(ours)
    if finite.any():
        raise DeviationError(f"{what} {ours[finite][0]:.3g}, not {truth[finite][0]}")
    difference = np.max(np.abs(np.where(same, 0, ours - np.where(same, 0, truth))), initial=0)
    size = np.max(np.abs(truth), initial=0, where=np.isfinite(truth))
    if not difference <= tolerance * max(size, 1e-3):
        raise DeviationError(f"{what} off by {difference:.2g}; the largest is {size:.2g}")


def same_bits(what: str, ours, theirs) -> None:
    """Deviate unless two trees of arrays are equal bit for bit."""
    for index, (one, other) in enumerate(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)):
        one, other = np.asarray(one), np.asarray(other)
        if one.tobytes() != other.tobytes():
            name = what.split(", ")[index] if "," in what else what
            gone = (~np.isfinite(one)).sum()
            change = (
                f"{gone} of {one.size} numbers not finite" if gone else f"changed by {np.max(abs(one - other)):.2g}"
            )
            raise DeviationError(f"{name}: {change}")


def refused(kind: type[Exception], words: tuple[str, ...], call: Callable, *args, **options) -> None:
    """Pass if the call raises such an error with all these words in it; other errors are refusals."""
    try:
        result = call(*args, **options)
    except kind as error:
        if all(word in str(error) for word in words):
            return
        raise
    finite = np.isfinite(np.asarray(jax.tree.leaves(result)[0], np.float64)).all()
    raise DeviationError("accepted" + ("" if finite else ", with NaN in the output"))
