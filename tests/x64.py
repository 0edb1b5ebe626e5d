"""float64 for the length of a `with` block."""

import contextlib

import jax


@contextlib.contextmanager
def x64_if(on: bool):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", on or before)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)
