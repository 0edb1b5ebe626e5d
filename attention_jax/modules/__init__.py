"""Flax NNX modules that own parameters and call the functions of `attention_jax`.

Dropout acts when, and only when, a call is given `rngs=`; no module stores random state.
"""

from attention_jax.modules.attention import ConcatenatedHeads as ConcatenatedHeads
from attention_jax.modules.attention import MultiHeadAttention as MultiHeadAttention
from attention_jax.modules.attention import SingleHeadAttention as SingleHeadAttention
from attention_jax.modules.embedding import LearnedPositions as LearnedPositions
from attention_jax.modules.embedding import SinusoidalPositions as SinusoidalPositions
from attention_jax.modules.feed_forward import FeedForward as FeedForward
from attention_jax.modules.feed_forward import SwiGLU as SwiGLU
from attention_jax.modules.sharding import FSDP as FSDP
from attention_jax.modules.sharding import TENSOR as TENSOR
from attention_jax.modules.sharding import logical_axes as logical_axes
from attention_jax.modules.sharding import make_mesh as make_mesh
from attention_jax.modules.sharding import partition_spec as partition_spec
from attention_jax.modules.sharding import shard as shard
from attention_jax.modules.torch_weights import from_torch as from_torch
from attention_jax.modules.torch_weights import to_torch as to_torch
from attention_jax.modules.transformer import TransformerBlock as TransformerBlock
from attention_jax.modules.transformer import TransformerLM as TransformerLM
