"""Tokamax's kernels for GPUs and TPUs, where it is installed."""

import sys

import jax

from attention_jax.backends.kernel import Kernel, Options
from attention_jax.backends.translation import BIAS, CAUSAL, CAUSAL_WINDOW, LENGTHS, SOFT_CAP, band


def attend(query: jax.Array, key: jax.Array, value: jax.Array, options: Options) -> jax.Array:
    """See `Kernel.attend`."""
    import tokamax
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])  # it would read the command line, which is not its own
    low, high = band(options.mask.rule)  # type: ignore[misc]
    with jax.numpy_rank_promotion("allow"):  # which it needs within
        return tokamax.dot_product_attention(
            query,
            key,
            value,
            options.bias,
            scale=options.scale,
            is_causal=high is not None,
            local_window_size=None if low is None else (-low, 0),
            key_value_seq_lengths=options.mask.lengths,
            logits_soft_cap=options.soft_cap,
            precision=options.precision,
            implementation={"cuda": ("mosaic", "triton"), "tpu": "mosaic"}.get(options.platform, "xla_chunked"),
        )


TOKAMAX = Kernel(
    name="tokamax",
    attend=attend,
    package="tokamax",
    platforms=("cuda", "tpu"),
    elsewhere=True,
    partitioned=False,
    capability=8.0,
    dtypes=("float16", "bfloat16"),
    masks=(CAUSAL, CAUSAL_WINDOW, LENGTHS),
    scores=(BIAS, SOFT_CAP),
    precision=True,
)
