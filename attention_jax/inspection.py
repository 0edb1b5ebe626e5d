"""What the heads of a model do: their weights, their share in a logit, and the model without them.

weights = inspect(model, tokens)                         # [layers, *B, N, T, T]
statistics = inspect_statistics(model, tokens)           # the same in linear memory
shares = contributions(model, tokens, target)            # who wrote the logit of a token
without = ablate(model, [(0, 3), (1, 2)])                # a model in which heads are silent
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from attention_jax.arguments import brief, integer_array, static_int
from attention_jax.dispatch import attention
from attention_jax.modules.attention import MultiHeadAttention, recover_weights
from attention_jax.modules.layers import ModuleList
from attention_jax.modules.transformer import TransformerLM
from attention_jax.statistics import AttentionStatistics, attention_statistics
from attention_jax.typing import MaskLike


class Heads(NamedTuple):
    """What a `MultiHeadAttention` was called with, and what its heads made of it."""

    query: jax.Array
    """`[*B, T, N, H]`, rotated and normalised."""
    key: jax.Array
    """`[*B, S, K, H]`."""
    output: jax.Array
    """`[*B, T, N, H]`, before the heads are joined."""
    mask: MaskLike | None
    """As the module was called with it."""
    attention_fn: Callable
    """The module's own."""


class Contributions(NamedTuple):
    """Parts of a logit, which add up to it."""

    heads: jax.Array
    """`[layers, *B, N]`, what each head adds by itself, without what later layers make of it."""
    rest: jax.Array
    """`[*B]`, what embeddings, feed-forward networks and biases add."""
    logit: jax.Array
    """`[*B]`."""


def inspect(model: nnx.Module, tokens: Any, **options: Any) -> jax.Array:
    """The attention weights of every layer.

    Args:
      model: of `MultiHeadAttention` modules, such as a `TransformerLM`; called with `tokens` and `**options`.
      tokens: integers `[*B, T]`; or what else the model takes.
      **options: of the call, such as `mask=`.

    Returns:
      `[layers, *B, N, T, S]`, in the order in which the layers ran.

    Raises:
      ValueError: no `MultiHeadAttention`, one that runs inside a transformation of the model's own, layers whose
        weights differ in shape (see `record`), or an option that leaves no whole sequence to look at.

    >>> model = TransformerLM(65, 16, 32, 4, 2, rngs=nnx.Rngs(0))
    >>> inspect(model, jnp.arange(10)).shape
    (2, 4, 10, 10)
    """
    heads, _ = record(model, tokens, **options)
    return _stacked([recover_weights(each.attention_fn, each.query, each.key, each.mask) for each in heads])


def inspect_statistics(model: nnx.Module, tokens: Any, *, top_k: int = 4, **options: Any) -> AttentionStatistics:
    """What `attention_statistics` says of every layer, with a leading axis of layers; in linear memory.

    Args:
      model, tokens, **options: as `inspect`; the model's `attention_fn` is `attention` or a `partial` of it. Scores
        that ask which tokens are the same are those of a `TransformerLM` only.
      top_k: as `attention_statistics`.

    Returns:
      `AttentionStatistics`, each field `[layers, ...]`.

    Raises:
      ValueError: another `attention_fn`, of which only the weights can be had; and as `inspect`.

    >>> model = TransformerLM(65, 16, 32, 4, 2, rngs=nnx.Rngs(0))
    >>> inspect_statistics(model, jnp.arange(10) % 4).induction.shape
    (2, 4)
    """
    heads, _ = record(model, tokens, **options)
    tokens = tokens if isinstance(model, TransformerLM) else None
    layers = []
    for each in heads:
        known = {} if each.attention_fn is attention else dict(getattr(each.attention_fn, "keywords", {}))
        known.pop("implementation", None)
        whole = each.attention_fn is attention or getattr(each.attention_fn, "func", None) is attention
        if not whole or not known.keys() <= {"score", "scale", "precision", "positions"}:
            raise ValueError(
                "statistics are those of attention_jax.attention, or of a partial of it with score, scale, precision "
                f"or positions; this model attends by {each.attention_fn}: take the weights, by inspect"
            )
        layers.append(attention_statistics(each.query, each.key, mask=each.mask, top_k=top_k, tokens=tokens, **known))
    return jax.tree.map(lambda *leaves: _stacked(leaves), *layers)


def contributions(
    model: TransformerLM, tokens: ArrayLike, target: ArrayLike, *, position: int = -1, mask: MaskLike | None = None
) -> Contributions:
    """How much of a logit each head wrote: direct logit attribution (Elhage et al. 2021, "A Mathematical Framework for
    Transformer Circuits").

    The last norm's scale is taken as it is, which makes the logit a sum over all that was added to the residual stream.

    Args:
      model: a `TransformerLM`.
      tokens: `[*B, T]`.
      target: the token whose logit it is, an integer or `[*B]`.
      position: where it is predicted, from the end if negative (static int).
      mask: as the model takes it.

    Raises:
      TypeError: another model than a `TransformerLM`.
      ValueError: a position or target that there is not, a norm that is neither LayerNorm nor RMSNorm.

    >>> model = TransformerLM(65, 16, 32, 4, 2, rngs=nnx.Rngs(0))
    >>> parts = contributions(model, jnp.arange(10), target=7)
    >>> parts.heads.shape, parts.logit.shape
    ((2, 4), ())
    """
    _check_model(model)
    position, T = static_int("position", position), jnp.shape(tokens)[-1]
    if not -T <= position < T:
        raise ValueError(f"position must lie in {-T} .. {T - 1}, got {position}")
    vocab_size = model.tokens.num_embeddings
    known, batch = not isinstance(target, jax.core.Tracer), jnp.shape(tokens)[:-1]
    if known and not (np.min(target) >= 0 and np.max(target) < vocab_size):
        raise ValueError(f"target must be a token, 0 to {vocab_size - 1}, got {target}")
    target = integer_array("target", target)
    if target.shape not in ((), batch):
        raise ValueError(f"target must be one token, or [*B] = {list(batch)} of them, got {brief(target)}")
    target = jnp.broadcast_to(target, batch)
    heads, residual = record(model, tokens, mask=mask)
    residual, norm = residual[..., position, :].astype(jnp.float32), model.norm  # type: ignore[index]
    matrix = model.tokens.embedding[...] if model.head is None else model.head.kernel[...].T
    direction = matrix[target].astype(jnp.float32)
    if isinstance(norm, nnx.LayerNorm):
        centred = residual - residual.mean(-1, keepdims=True)
    elif isinstance(norm, nnx.RMSNorm):
        centred = residual
    else:
        raise ValueError(f"the last norm must be an nnx.LayerNorm or nnx.RMSNorm, got {type(norm).__name__}")
    shrink = jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + norm.epsilon)
    if norm.scale is not None:
        direction *= jnp.broadcast_to(norm.scale[...], direction.shape)
    direction *= shrink
    if isinstance(norm, nnx.LayerNorm):  # it takes the mean from each part, as from the whole
        direction -= direction.mean(-1, keepdims=True)

    def of_layer(each: Heads, attention: MultiHeadAttention) -> jax.Array:
        *_, N, H = each.output.shape
        kernel = attention.out.kernel[...].reshape(N, H, -1)
        return jnp.einsum("...nh,nhd,...d->...n", each.output[..., position, :, :], kernel, direction)

    blocks = zip(heads, _unstacked(model).blocks, strict=True)
    shares = jnp.stack([of_layer(each, block.attention) for each, block in blocks])
    logit = model.logits(norm(residual))
    logit = jnp.take_along_axis(logit, target[..., None], axis=-1)[..., 0]
    return Contributions(shares, logit - shares.sum((0, -1)), logit)


def ablate(
    model: TransformerLM,
    heads: Sequence[tuple[int, int]],
    *,
    mean_over: ArrayLike | None = None,
    mask: MaskLike | None = None,
) -> TransformerLM:
    """A copy of the model in which some heads say nothing, or always the same.

    It is an ordinary model, to be evaluated, sampled from or inspected: a head that adds 0 is one whose rows of the
    output projection are 0, and one that adds its mean has that in the bias.

    Args:
      model: a `TransformerLM`; it stays as it is.
      heads: pairs of layer and head.
      mean_over: tokens `[*B, T]`; the heads then add their mean output over all of these positions. Default: 0.
      mask: of the call on them.

    Raises:
      TypeError: another model than a `TransformerLM`, or heads that are no pairs of integers.
      ValueError: a head that the model does not have; a mean where the output projection has no bias to hold it.

    >>> model = TransformerLM(65, 16, 32, 4, 2, rngs=nnx.Rngs(0))
    >>> ablate(model, [(1, 2)])(jnp.arange(10)).shape
    (10, 65)
    """
    _check_model(model)
    N = (model.blocks if model.scan else model.blocks[0]).attention.num_heads
    if any(np.shape(pair) != (2,) for pair in heads):
        raise TypeError(f"heads must be pairs of layer and head, such as [(0, 3)]; got {heads}")
    heads = [(static_int("layer", layer), static_int("head", head)) for layer, head in heads]
    for layer, head in heads:
        if not (0 <= layer < model.num_layers and 0 <= head < N):
            raise ValueError(f"heads has {(layer, head)}, but the model {model.num_layers} layers of {N} heads each")
    recorded = None if mean_over is None else record(model, mean_over, mask=mask)[0]
    copy = nnx.clone(model)
    for layer, head in heads:
        out = copy.blocks.attention.out if model.scan else copy.blocks[layer].attention.out
        at = (layer,) if model.scan else ()
        H = out.in_features // N
        rows = (*at, slice(head * H, (head + 1) * H))
        if recorded is not None:
            if out.bias is None:
                raise ValueError("mean_over= needs output projections with a bias: build with use_bias=True")
            mean = recorded[layer].output[..., head, :].reshape(-1, H).mean(0)
            bias = out.bias[...]
            out.bias[...] = bias.at[at].add((mean @ out.kernel[...][rows]).astype(bias.dtype))
        out.kernel[...] = out.kernel[...].at[rows].set(0)
    return copy


def record(model: nnx.Module, tokens: Any, **options: Any) -> tuple[list[Heads], jax.Array | None]:
    """Call a copy of the model, and note what each `MultiHeadAttention` in it did, in the order in which they ran.

    Args:
      model, tokens, **options: as `inspect`.

    Returns:
      What the heads did; and, of a `TransformerLM`, what its last norm was given, `[*B, T, D]`.

    Raises:
      ValueError: as `inspect`.

    >>> model = TransformerLM(65, 16, 32, 4, 2, rngs=nnx.Rngs(0))
    >>> heads, residual = record(model, jnp.arange(10))
    >>> len(heads), heads[0].query.shape, residual.shape
    (2, (10, 4, 8), (10, 32))
    """
    for name in ("cache", "return_weights"):
        if options.get(name):
            raise ValueError(f"{name}= cannot be looked at: call with all tokens, and without it")
    heads: list[Heads] = []
    residual: list[jax.Array] = []
    copy = nnx.clone(_unstacked(model))
    for _, module in nnx.iter_graph(copy):
        if isinstance(module, MultiHeadAttention):
            module.attention_fn = _Watch(module.attention_fn, heads)
    if isinstance(copy, TransformerLM):
        norm = copy.norm
        copy.norm = lambda x: residual.append(x) or norm(x)  # type: ignore[func-returns-value]
        copy.hidden(tokens, **options)  # without the logits of all positions, which take the most memory
    else:
        copy(tokens, **options)
    if not heads:
        raise ValueError(
            f"{type(model).__name__} has no MultiHeadAttention that ran, and there is nothing else to look at; "
            "ConcatenatedHeads becomes one by to_multi_head()"
        )
    for each in heads:
        try:
            each.output + 0
        except jax.errors.UnexpectedTracerError as error:
            raise ValueError(
                "attention that runs inside a jit, remat or scan of the model's own cannot be looked at: call the "
                "model without"
            ) from error
    return heads, residual[0] if residual else None


class _Watch:
    """An `attention_fn` whose calls are noted."""

    def __init__(self, attention_fn: Callable, heads: list[Heads]) -> None:
        self.watched, self.heads = attention_fn, heads

    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, *, mask: MaskLike | None = None, **options: Any
    ) -> jax.Array:
        output = self.watched(query, key, value, mask=mask, **options)
        self.heads.append(Heads(query, key, output, mask, self.watched))
        return output


def _check_model(model: nnx.Module) -> None:
    if not isinstance(model, TransformerLM):
        raise TypeError(f"model must be a TransformerLM, got {type(model).__name__}")


def _stacked(layers: Sequence[jax.Array]) -> jax.Array:
    if len({layer.shape for layer in layers}) > 1:
        raise ValueError(
            f"the layers' weights differ in shape, {[layer.shape for layer in layers]}, and cannot be stacked: look at "
            "each, by record"
        )
    return jnp.stack(layers)


def _unstacked(model: nnx.Module) -> Any:
    """The same model with its blocks one by one, so that each can be watched."""
    if not isinstance(model, TransformerLM) or not (model.scan or model.remat):
        return model
    copy = nnx.clone(model)
    if model.scan:
        graphdef, params = nnx.split(copy.blocks)
        layers = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(model.num_layers)]
        copy.blocks = ModuleList([nnx.merge(graphdef, params) for params in layers])
    copy.scan = copy.remat = False
    return copy
