"""Random inputs: unit normal, unequal lengths, two examples, four heads."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

T, S, N, H = 7, 9, 4, 8
BATCH = (2,)


def inputs(*, T=T, S=S, N=N, K=N, H=H, Hv=H, batch=BATCH, dtype="float32", scale=1.0):
    """Query, key, value, and a cotangent of the output; the query is `scale` times as large."""
    random = np.random.default_rng(0)
    sizes = (T, N, H), (S, K, H), (S, K, Hv), (T, N, Hv)
    query, *others = (jnp.asarray(random.standard_normal((*batch, *size))).astype(dtype) for size in sizes)
    return query * scale, *others


def some_mask(blind: int | None = 3):
    """Bool `[B, N, T, S]`, half of it True; query `blind` sees nothing."""
    mask = np.random.default_rng(1).random((*BATCH, N, T, S)) < 0.5
    mask[..., 0] = True
    if blind is not None:
        mask[:, :, blind] = False
    return mask


@contextlib.contextmanager
def float64():
    """float64 for the length of a `with` block."""
    before = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)
