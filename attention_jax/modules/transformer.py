"""A transformer block, and a decoder-only language model made of them."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from attention_jax.mask_tree import as_mask
from attention_jax.masks import causal
from attention_jax.modules.attention import ModuleList, MultiHeadAttention
from attention_jax.modules.embedding import LearnedPositions
from attention_jax.modules.feed_forward import FeedForward, Linear
from attention_jax.projections import project

LayerNorm = partial(nnx.LayerNorm, epsilon=1e-5)


class TransformerBlock(nnx.Module):
    """Pre-norm block: x + attention(norm(x)), then x + feed_forward(norm(x)) (arXiv:2002.04745).

    Args:
      embed_dim: D.
      num_heads: N.
      attention: builds the attention; e.g. `partial(MultiHeadAttention, num_kv_heads=2, rotary=...)`.
      feed_forward: builds the feed-forward network: `FeedForward` (GELU, 4 D) or `SwiGLU`, or a `partial` of them.
      norm: builds a norm: `LayerNorm` with epsilon 1e-5, or e.g. `nnx.RMSNorm`.
      dropout_rate: of attention weights, attention output and feed-forward output.
      rngs: initialises the parameters.

    >>> from attention_jax import causal
    >>> TransformerBlock(32, 4, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 32)), mask=causal()).shape
    (2, 5, 32)
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        attention: Callable[..., nnx.Module] = MultiHeadAttention,
        feed_forward: Callable[..., nnx.Module] = FeedForward,
        norm: Callable[..., nnx.Module] = LayerNorm,
        dropout_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.embed_dim = embed_dim
        self.norm1 = norm(embed_dim, rngs=rngs)
        self.attention = attention(embed_dim, num_heads, dropout_rate=dropout_rate, rngs=rngs)
        self.norm2 = norm(embed_dim, rngs=rngs)
        self.feed_forward = feed_forward(embed_dim, dropout_rate=dropout_rate, rngs=rngs)

    def __call__(self, x, *, mask=None, rngs: nnx.Rngs | None = None, return_weights: bool = False):
        """`[*B, T, D]` -> `[*B, T, D]`; `mask`, `rngs` and `return_weights` as in `MultiHeadAttention`."""
        if x.shape[-1] != self.embed_dim:
            raise ValueError(f"x has shape {x.shape}, expected [*B, T, D] with D = {self.embed_dim}")
        attended = self.attention(self.norm1(x), mask=mask, rngs=rngs, return_weights=return_weights)
        attended, weights = attended if return_weights else (attended, None)
        x = x + attended
        x = x + self.feed_forward(self.norm2(x), rngs=rngs)
        return (x, weights) if return_weights else x


class TransformerLM(nnx.Module):
    """A causal language model: token and position embeddings, blocks, a norm, and a head over the vocabulary.

    Args:
      vocab_size: number of tokens.
      context_length: the most tokens a learned position embedding is made for.
      embed_dim: D.
      num_heads: N.
      num_layers: number of blocks.
      block: builds a block, given `norm`; e.g. `partial(TransformerBlock, dropout_rate=0.1)`.
      norm: builds the norms of the blocks and the last one; e.g. `nnx.RMSNorm`.
      positions: builds the position embedding, `LearnedPositions` or `SinusoidalPositions`; None where the block's
        attention knows positions itself (rotary).
      tied: whether the head is the token embedding (arXiv:1608.05859), or a matrix of its own.
      scan: hold the blocks' parameters stacked, and run them by `jax.lax.scan`: compiles once, not once a block. The
        same numbers as without.
      remat: recompute each block in the backward pass (`jax.checkpoint`) rather than keep its activations.
      rngs: initialises the parameters.

    >>> sizes = dict(vocab_size=65, context_length=64, embed_dim=32, num_heads=4, num_layers=2)
    >>> model = TransformerLM(**sizes, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((2, 10), int)).shape
    (2, 10, 65)
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        *,
        block: Callable[..., nnx.Module] = TransformerBlock,
        norm: Callable[..., nnx.Module] = LayerNorm,
        positions: Callable[..., nnx.Module] | None = LearnedPositions,
        tied: bool = True,
        scan: bool = False,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.tokens = nnx.Embed(vocab_size, embed_dim, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.positions = None if positions is None else positions(context_length, embed_dim, rngs=rngs)
        blocks = [block(embed_dim, num_heads, norm=norm, rngs=rngs) for _ in range(num_layers)]
        self.blocks = _stack(blocks) if scan else ModuleList(blocks)
        self.norm = norm(embed_dim, rngs=rngs)
        self.head = None if tied else Linear(embed_dim, vocab_size, use_bias=False, rngs=rngs)
        self.context_length, self.num_layers, self.scan, self.remat = context_length, num_layers, scan, remat

    def __call__(self, tokens, *, mask=None, rngs: nnx.Rngs | None = None, return_weights: bool = False):
        """Logits of the next token at every position.

        Args:
          tokens: integer `[*B, T]`.
          mask: what a position may see besides being causal; `Mask`, or bool `[T, T]` or `[*B, N or 1, T, T]`.
          rngs: a `dropout` stream; without it there is no dropout.
          return_weights: whether to return every layer's attention weights too.

        Returns:
          `[*B, T, vocab_size]`; with `return_weights`, also `[num_layers, *B, N, T, T]`.

        Raises:
          ValueError: more tokens than a learned position embedding has positions.
        """
        mask = causal() if mask is None else causal() & as_mask(mask)
        x = jnp.take(self.tokens.embedding[...], tokens, axis=0)  # in the table's dtype, which nnx.Embed would change
        if self.positions is not None:
            x = x + jnp.broadcast_to(self.positions(tokens.shape[-1]), x.shape).astype(x.dtype)

        def apply_block(graphdef, params, dropout_rng, x):
            rngs = None if dropout_rng is None else nnx.Rngs(dropout=dropout_rng)
            output = nnx.merge(graphdef, params)(x, mask=mask, rngs=rngs, return_weights=return_weights)
            return output if return_weights else (output, None)

        if self.remat:
            apply_block = jax.checkpoint(apply_block, static_argnums=0)
        dropout_rngs = [None] * self.num_layers if rngs is None else jax.random.split(rngs.dropout(), self.num_layers)
        if self.scan:
            graphdef, params = nnx.split(self.blocks)
            layers = params, None if rngs is None else dropout_rngs
            x, weights = jax.lax.scan(lambda x, layer: apply_block(graphdef, *layer, x), x, layers)
        else:
            weights = []
            for block, dropout_rng in zip(self.blocks, dropout_rngs, strict=True):
                x, layer_weights = apply_block(*nnx.split(block), dropout_rng, x)
                weights.append(layer_weights)
            weights = jnp.stack(weights) if return_weights else None

        x = self.norm(x)
        logits = project(x, self.tokens.embedding[...].T) if self.head is None else self.head(x)
        return (logits, weights) if return_weights else logits


def _stack(blocks: list[nnx.Module]) -> nnx.Module:
    """One module whose parameters have a leading axis of layers."""
    graphdef = nnx.graphdef(blocks[0])
    return nnx.merge(graphdef, jax.tree.map(lambda *layers: jnp.stack(layers), *map(nnx.state, blocks)))
