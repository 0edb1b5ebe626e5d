"""Attention you can read, trust and scale.

Every shape in this library is written with these letters:

    B   batch (any number of dimensions: *B)     N   query heads            H    head dim
    T   query length                             K   key/value heads        Hv   value head dim
    S   key length                               G   N // K                 D    model dim

    query [*B, T, N, H]    key [*B, S, K, H]    value [*B, S, K, Hv]    output [*B, T, N, Hv]    weights [*B, N, T, S]

One head of one example is query [T, H], key [S, H], value [S, Hv]. Batching is `jax.vmap`.
"""

from typing import TYPE_CHECKING

from attention_jax.cache import KVCache as KVCache
from attention_jax.dispatch import attention as attention
from attention_jax.dispatch import attention_and_lse as attention_and_lse
from attention_jax.dispatch import explain as explain
from attention_jax.dot_product import causal_attention as causal_attention
from attention_jax.dot_product import merge_heads as merge_heads
from attention_jax.dot_product import multi_head_attention as multi_head_attention
from attention_jax.dot_product import scaled_dot_product_attention as scaled_dot_product_attention
from attention_jax.dot_product import split_heads as split_heads
from attention_jax.mask_tree import Mask as Mask
from attention_jax.masks import causal as causal
from attention_jax.masks import key_lengths as key_lengths
from attention_jax.masks import mask_from_array as mask_from_array
from attention_jax.masks import mask_from_function as mask_from_function
from attention_jax.masks import prefix as prefix
from attention_jax.masks import segments as segments
from attention_jax.masks import sliding_window as sliding_window
from attention_jax.positions import alibi_slopes as alibi_slopes
from attention_jax.positions import learned_positions as learned_positions
from attention_jax.positions import linear_scaling as linear_scaling
from attention_jax.positions import llama3_scaling as llama3_scaling
from attention_jax.positions import ntk_scaling as ntk_scaling
from attention_jax.positions import rotary_embedding as rotary_embedding
from attention_jax.positions import rotary_frequencies as rotary_frequencies
from attention_jax.positions import sinusoidal_positions as sinusoidal_positions
from attention_jax.positions import yarn_amplitude as yarn_amplitude
from attention_jax.positions import yarn_scaling as yarn_scaling
from attention_jax.projections import project as project
from attention_jax.projections import project_fused as project_fused
from attention_jax.projections import project_separate as project_separate
from attention_jax.ring import balanced_order as balanced_order
from attention_jax.ring import ring_attention as ring_attention
from attention_jax.score_tree import Score as Score
from attention_jax.scores import add_sinks as add_sinks
from attention_jax.scores import alibi as alibi
from attention_jax.scores import bias as bias
from attention_jax.scores import relative_bias as relative_bias
from attention_jax.scores import score_from_function as score_from_function
from attention_jax.scores import soft_cap as soft_cap
from attention_jax.statistics import AttentionStatistics as AttentionStatistics
from attention_jax.statistics import attention_statistics as attention_statistics
from attention_jax.weights import attention_weights as attention_weights

__version__ = "0.1.0"

if TYPE_CHECKING:
    from attention_jax import modules as modules
else:

    def __getattr__(name):
        if name == "modules":  # Flax is imported when it is first asked for
            import importlib

            return importlib.import_module("attention_jax.modules")
        raise AttributeError(f"module 'attention_jax' has no attribute {name!r}")
