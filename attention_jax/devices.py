"""Where arrays lie, and what is computed with them will run."""

import jax
from jaxlib.version import __version_info__ as jaxlib_version

OLD_XLA = jaxlib_version < (0, 11)
"""Whether XLA leaves a batch of small products to one core of a CPU, and multiplies slowly with keys by rows."""

SAFE_SELECT = jaxlib_version >= (0, 10)
"""Whether XLA may be asked for `where(p, x, p.astype(x.dtype))`: with jaxlib 0.7.2, where a value is known while it
compiles, the gradients of query and key come out wrong."""


def platform_of(array: jax.Array) -> str:
    """Where it will be computed with: `cpu`, `cuda`, `rocm` or `tpu`."""
    device = device_of(array)
    if device.platform != "gpu":
        return device.platform
    return "cuda" if "NVIDIA" in device.device_kind else "rocm"


def device_of(array: jax.Array) -> jax.Device:
    """Where it lies; while tracing, where JAX would compute."""
    if not isinstance(array, jax.core.Tracer):
        return next(iter(array.devices()))
    device = jax.config.jax_default_device or jax.devices()[0]  # type: ignore[attr-defined]
    return jax.devices(device)[0] if isinstance(device, str) else device
