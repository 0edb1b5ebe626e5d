"""float64 for the length of a `with` block."""

import contextlib

from attention_jax.conformance.inputs import float64


def x64_if(on: bool):
    return float64() if on else contextlib.nullcontext()
