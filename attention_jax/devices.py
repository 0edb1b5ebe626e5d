"""Where arrays lie, and what is computed with them will run."""

import jax


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
