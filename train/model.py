"""The model that a configuration describes, and how many operations it takes."""

from collections.abc import Callable
from functools import partial

import jax
from flax import nnx

from attention_jax import attention
from attention_jax.modules import FeedForward, MultiHeadAttention, TransformerBlock, TransformerLM
from attention_jax.pretrained import GPT2Attention, GPT2FeedForward
from configs import schema

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "Tesla T4": 65e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""bfloat16 operations a second by device kind, from the makers' data sheets; float16 for the T4."""


def build_model(
    config: schema.Model, vocab_size: int, rng: jax.Array, attention_fn: Callable[..., jax.Array] = attention
) -> TransformerLM:
    """The model of a run, freshly initialised."""
    gpt2 = GPT2Attention, GPT2FeedForward
    heads, feed_forward = gpt2 if config.kind == "gpt2" else (MultiHeadAttention, FeedForward)
    heads = partial(heads, attention_fn=attention_fn)
    block = partial(TransformerBlock, attention=heads, feed_forward=feed_forward, dropout_rate=config.dropout_rate)
    return TransformerLM(
        vocab_size, config.context_length, config.embed_dim, config.num_heads, config.num_layers,
        block=block, scan=config.scan, remat=config.remat, rngs=nnx.Rngs(rng),
    )  # fmt: skip


def flops_per_token(config: schema.Model, vocab_size: int) -> float:
    """Operations that a token takes, forward and backward, as they are counted for utilisation (arXiv:2204.02311,
    appendix B): 6 a weight, and the products of attention."""
    weights = 12 * config.num_layers * config.embed_dim**2 + vocab_size * config.embed_dim
    return 6 * weights + 12 * config.num_layers * config.embed_dim * config.context_length


def peak_flops(device: jax.Device) -> float | None:
    """Operations a second that a device could do at most; None if it is not known."""
    known = [kind for kind in PEAK_FLOPS if device.device_kind.startswith(kind)]
    return PEAK_FLOPS[max(known, key=len)] if known else None
