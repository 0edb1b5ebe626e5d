"""cuDNN's fused attention on NVIDIA GPUs, by way of `jax.nn.dot_product_attention`."""

from typing import Literal

import jax

from attention_jax.backends.kernel import Kernel, Options
from attention_jax.backends.translation import CAUSAL, CAUSAL_WINDOW, LENGTHS, band


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    options: Options,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """See `Kernel.attend`."""
    low, high = band(options.mask.rule)  # type: ignore[misc]
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        None if options.bias is None else options.bias.astype(query.dtype),
        scale=options.scale,
        is_causal=high is not None,
        local_window_size=None if low is None else (-low, 0),
        key_value_seq_lengths=options.mask.lengths,
        implementation=implementation,
    )


CUDNN = Kernel(
    name="cudnn",
    attend=attend,
    package="jax",
    platforms=("cuda",),
    elsewhere=False,
    partitioned=True,
    capability=8.0,
    dtypes=("float16", "bfloat16"),
    masks=(CAUSAL, CAUSAL_WINDOW, LENGTHS),  # it makes an array [T, S] of any other
    lengths=2,  # its backward pass refuses odd ones
    head_dims=(8, 128),
    value_dim=False,
)
