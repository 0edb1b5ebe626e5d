"""What all modules share: Flax's layers, with products of all positions at once, and dropout if a call asks for it."""

from typing import Any

import jax
from flax import nnx

from attention_jax.checks import check_dropout_rate
from attention_jax.projections import project

ModuleList = getattr(nnx, "List", list)  # Flax 0.12 wants nnx.List, which 0.11 does not have


class Linear(nnx.Linear):
    """`nnx.Linear` that multiplies all positions in one matrix product, and whose kernel's axes have names."""

    def __init__(self, in_features: int, out_features: int, *, axes: tuple[str, str], **options: Any) -> None:
        super().__init__(in_features, out_features, **options)
        self.kernel = nnx.Param(self.kernel[...], axes=axes)
        self.bias = None if self.bias is None else nnx.Param(self.bias[...], axes=axes[1:])

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        return project(x, self.kernel[...], None if self.bias is None else self.bias[...])


class Dropout(nnx.Dropout):
    """`nnx.Dropout` that acts if the call is given `rngs`, and refuses a rate outside [0, 1) when it is built."""

    def __init__(self, rate: float) -> None:
        super().__init__(check_dropout_rate(rate))

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:  # type: ignore[override]
        rng = dropout_key(rngs) if rngs is not None and self.rate else None
        return super().__call__(x, deterministic=rngs is None, rngs=rng)


def dropout_key(rngs: nnx.Rngs) -> jax.Array:
    """The next key of the `dropout` stream, or a `TypeError`."""
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"rngs must be nnx.Rngs(dropout=...), got {rngs!r}")
    if not hasattr(rngs, "dropout"):
        raise TypeError("rngs must be nnx.Rngs(dropout=...), got nnx.Rngs without that stream")
    return rngs.dropout()
