"""A transformer block, and a decoder-only language model made of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention_jax.arguments import brief, integer_array, static_int
from attention_jax.cache import KVCache, counted
from attention_jax.checks import check_auto, check_sequence
from attention_jax.mask_tree import as_mask
from attention_jax.masks import causal
from attention_jax.modules.attention import MultiHeadAttention
from attention_jax.modules.embedding import LearnedPositions
from attention_jax.modules.feed_forward import FeedForward
from attention_jax.modules.layers import Linear, ModuleList, dropout_key
from attention_jax.projections import project
from attention_jax.typing import MaskLike

LayerNorm = partial(nnx.LayerNorm, epsilon=1e-5)

LayerCaches = list[KVCache] | KVCache


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

    Raises:
      ValueError: as `MultiHeadAttention`; of a call: an input whose last dimension is not D.

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
    ) -> None:
        self.embed_dim = embed_dim
        self.norm1 = norm(embed_dim, rngs=rngs)
        self.attention: Any = attention(embed_dim, num_heads, dropout_rate=dropout_rate, rngs=rngs)
        self.norm2 = norm(embed_dim, rngs=rngs)
        self.feed_forward: Any = feed_forward(embed_dim, dropout_rate=dropout_rate, rngs=rngs)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None, **options: Any) -> Any:
        """`[*B, T, D]` -> `[*B, T, D]`; `rngs` and `**options`, and what is returned for them, as in
        `MultiHeadAttention`."""
        x = check_sequence("x", x, self.embed_dim)
        attended = self.attention(self.norm1(x), rngs=rngs, **options)
        attended, *more = attended if isinstance(attended, tuple) else (attended,)
        x = x + attended
        x = x + self.feed_forward(self.norm2(x), rngs=rngs)
        return (x, *more) if more else x


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

    Raises:
      TypeError: positions that build nothing, and as `TransformerBlock`; of a call with dropout: `rngs` that are none.
      ValueError: no layers, no tokens, and as `TransformerBlock`.

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
    ) -> None:
        vocab_size = static_int("vocab_size", vocab_size, minimum=1)
        context_length = static_int("context_length", context_length, minimum=1)
        num_layers = static_int("num_layers", num_layers, minimum=1)
        if not (positions is None or callable(positions)):
            raise TypeError(
                f"positions must build an embedding, such as LearnedPositions, or be None, got {positions!r}; rotary "
                "ones are MultiHeadAttention(rotary=...), by block=partial(TransformerBlock, attention=partial(...))"
            )
        self.tokens = nnx.Embed(vocab_size, embed_dim, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.tokens.embedding = nnx.Param(self.tokens.embedding[...], axes=("vocab", "embed"))
        self.positions = None if positions is None else positions(context_length, embed_dim, rngs=rngs)
        blocks = [block(embed_dim, num_heads, norm=norm, rngs=rngs) for _ in range(num_layers)]
        self.blocks: Any = _stack(blocks) if scan else ModuleList(blocks)
        self.norm: Any = norm(embed_dim, rngs=rngs)
        self.head = None if tied else Linear(embed_dim, vocab_size, axes=("embed", "vocab"), use_bias=False, rngs=rngs)
        self.context_length, self.num_layers, self.scan, self.remat = context_length, num_layers, scan, remat

    @overload
    def __call__(
        self, tokens: jax.Array | np.ndarray, *, mask: MaskLike | None = None,
        positions: jax.Array | None = None, cache: None = None, rngs: nnx.Rngs | None = None,
        return_weights: Literal[False] = False,
    ) -> jax.Array: ...  # fmt: skip

    @overload
    def __call__(
        self, tokens: jax.Array | np.ndarray, *, mask: MaskLike | None = None,
        positions: jax.Array | None = None, cache: None = None, rngs: nnx.Rngs | None = None,
        return_weights: Literal[True],
    ) -> tuple[jax.Array, jax.Array]: ...  # fmt: skip

    @overload
    def __call__(
        self, tokens: jax.Array | np.ndarray, *, mask: MaskLike | None = None, positions: jax.Array | None = None,
        cache: LayerCaches, rngs: nnx.Rngs | None = None,
    ) -> tuple[jax.Array, LayerCaches]: ...  # fmt: skip

    def __call__(
        self,
        tokens: jax.Array | np.ndarray,
        *,
        mask: MaskLike | None = None,
        positions: jax.Array | None = None,
        cache: LayerCaches | None = None,
        rngs: nnx.Rngs | None = None,
        return_weights: bool = False,
    ) -> Any:
        """Logits of the next token at every position: `logits(hidden(tokens))`.

        Args:
          tokens: integer `[*B, T]`, from 0 to vocab_size - 1; at others, and where they are seen, the logits are NaN.
          mask: what a position may see besides being causal; `Mask`, or bool `[T, T]` or `[*B, N or 1, T, T]`. With a
            cache, a rule on the positions of all that was read.
          positions: integer `[T]` or `[*B, T]`, for the position embedding and for rotary ones; if not given, 0 .. T-1
            or from the cache's length on. Of left-padded examples, e.g. `arange(T) - padding`, at least 0.
          cache: what was read before `tokens`: see `empty_cache`.
          rngs: a `dropout` stream; without it there is no dropout.
          return_weights: whether to return every layer's attention weights too.

        Returns:
          `[*B, T, vocab_size]`; with `cache`, also the cache with `tokens`; with `return_weights`, also
          `[num_layers, *B, N, T, T]`.

        Raises:
          TypeError: tokens that are not integers.
          ValueError: more tokens than a learned position embedding has positions, or than the cache has room for.
            Where the cache's length is traced, the logits are NaN instead.
        """
        options: dict[str, Any] = {"mask": mask, "positions": positions, "cache": cache, "rngs": rngs}
        hidden = self.hidden(tokens, **options, return_weights=return_weights)
        return (self.logits(hidden[0]), hidden[1]) if isinstance(hidden, tuple) else self.logits(hidden)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """`[*B, D]`, what `hidden` returns, -> `[*B, vocab_size]`."""
        return project(hidden, self.tokens.embedding[...].T) if self.head is None else self.head(hidden)

    def hidden(
        self,
        tokens: jax.Array | np.ndarray,
        *,
        mask: MaskLike | None = None,
        positions: jax.Array | None = None,
        cache: LayerCaches | None = None,
        rngs: nnx.Rngs | None = None,
        return_weights: bool = False,
    ) -> Any:
        """What the head makes logits of: `[*B, T, D]` instead of `[*B, T, vocab_size]`, and all else as a call."""
        if positions is not None and self.positions is None and not self._is_rotary():
            raise ValueError("positions= acts through a position embedding or a rotary one, and this model has neither")
        tokens = integer_array("tokens [*B, T]", tokens)
        check_auto(tokens=tokens)
        if tokens.ndim == 0:
            raise TypeError(f"tokens [*B, T] must be integers, at least one axis of them, got {brief(tokens)}")
        mask = causal() if mask is None else causal() & as_mask(mask)
        table = self.tokens.embedding[...]
        tokens = tokens.astype(int)
        tokens = jnp.where(tokens < 0, len(table), tokens)  # -1 is none, and not the last
        x = jnp.take(table, tokens, axis=0, mode="fill")  # in the table's dtype, which nnx.Embed would change
        if self.positions is not None:
            embedded = self.positions(self._default_positions(tokens, cache) if positions is None else positions)
            x = x + jnp.broadcast_to(embedded, x.shape).astype(x.dtype)

        def apply_block(
            graphdef: nnx.GraphDef,
            params: nnx.State,
            dropout_rng: Any,
            cache: Any,
            x: jax.Array,
        ) -> tuple[jax.Array, Any]:
            rngs = None if dropout_rng is None else nnx.Rngs(dropout=dropout_rng)
            options: dict[str, Any] = {"cache": cache, "return_weights": return_weights}
            options["positions"] = positions if self._is_rotary() else None
            output = nnx.merge(graphdef, params)(x, mask=mask, rngs=rngs, **options)
            return output if isinstance(output, tuple) else (output, None)

        if self.remat:
            apply_block = jax.checkpoint(apply_block, static_argnums=0)
        nothing = [None] * self.num_layers
        dropout_rngs = nothing if rngs is None else jax.random.split(dropout_key(rngs), self.num_layers)
        if self.scan:
            graphdef, params = nnx.split(self.blocks)
            layers = params, None if rngs is None else dropout_rngs, cache
            x, more = jax.lax.scan(lambda x, layer: apply_block(graphdef, *layer, x), x, layers)
        else:
            more = []
            for block, *layer in zip(self.blocks, dropout_rngs, nothing if cache is None else cache, strict=True):  # type: ignore[arg-type]
                x, of_layer = apply_block(*nnx.split(block), *layer, x)  # type: ignore[call-arg]
                more.append(of_layer)
            more = jnp.stack(more) if return_weights else more

        x = self.norm(x)
        return (x, more) if return_weights or cache is not None else x

    def empty_cache(self, capacity: int, **options: Any) -> LayerCaches:
        """An empty cache for every layer; of a model built with `scan`, one whose arrays have a leading axis of layers.

        Args:
          capacity, **options: as for `KVCache.empty`: `batch`, `padding`, `ring`.

        >>> model = TransformerLM(65, 64, 32, 4, 2, rngs=nnx.Rngs(0))
        >>> cache = model.empty_cache(20, batch=(2,))
        >>> for T in (10, 1):
        ...     logits, cache = model(jnp.zeros((2, T), int), cache=cache)
        >>> logits.shape, cache[0].length.tolist()
        ((2, 1, 65), [11, 11])
        """
        if self.scan:
            cache = self.blocks.attention.empty_cache(capacity, **options)
            return jax.tree.map(lambda leaf: jnp.stack([leaf] * self.num_layers), cache)
        return [block.attention.empty_cache(capacity, **options) for block in self.blocks]

    def _is_rotary(self) -> bool:
        block = self.blocks if self.scan else self.blocks[0]
        return getattr(getattr(block, "attention", None), "rotary", None) is not None

    def _default_positions(self, tokens: jax.Array | np.ndarray, cache: Any) -> int | jax.Array:
        T = tokens.shape[-1]
        if cache is None:
            return T
        length = cache.length[0] if self.scan else cache[0].length
        return jnp.maximum(counted(length, T), 0)  # padding stands nowhere


def _stack(blocks: list[nnx.Module]) -> nnx.Module:
    """One module whose parameters have a leading axis of layers."""
    graphdef = nnx.graphdef(blocks[0])
    return nnx.merge(graphdef, jax.tree.map(lambda *layers: jnp.stack(layers), *map(nnx.state, blocks)))
