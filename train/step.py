"""One step of training, whole: loss, gradient, update. The file to copy.

The model is split once, into a graph definition (static) and a plain dict of parameter arrays; the state goes in and
comes out, and its memory is donated. The model exists only inside the loss.

    graphdef, state = create_state(model, optimizer, jax.random.key(0))
    state, metrics = train_step(state, Batch(tokens), graphdef=graphdef, optimizer=optimizer)
"""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import DTypeLike


class Batch(NamedTuple):
    """Sequences to learn from."""

    tokens: jax.Array | np.ndarray
    """int `[B, T + 1]`, of which each token but the first is predicted from those before it."""
    counted: jax.Array | np.ndarray | None = None
    """bool `[B, T]`, which predictions count; all if it is None."""

    def counts(self) -> jax.Array | np.ndarray:
        """`counted`, made out where it is the default."""
        return jnp.ones(self.tokens[:, 1:].shape, bool) if self.counted is None else self.counted


class TrainState(NamedTuple):
    """All that changes while training."""

    step: jax.Array
    """Steps done, int32."""
    params: dict[str, Any]
    """Parameter arrays, as `nnx.to_pure_dict` gives them."""
    opt_state: optax.OptState
    """What `optimizer.init` makes of the parameters."""
    rng: jax.Array
    """Random key of the whole run; a step uses it folded with its number."""
    skipped: jax.Array
    """Steps in a row, up to the last one, that changed nothing since their loss or gradient was not finite, int32."""
    average: dict[str, Any] | None = None
    """Moving average of the parameters, if there is one."""

    @property
    def best(self) -> dict[str, Any]:
        """The parameters to evaluate: the average, if there is one."""
        return self.params if self.average is None else self.average


def create_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, rng: jax.Array, *, average: bool = False
) -> tuple[nnx.GraphDef, TrainState]:
    """The graph definition of `model`, and the state before the first step.

    The parameters are copied: a step donates those it is given, and `model` keeps its own.

    Args:
      model: called with tokens and `rngs=`, returns logits, as `TransformerLM` does.
      optimizer: of Optax.
      rng: random key of the whole run.
      average: whether to keep a moving average of the parameters.

    Returns:
      The graph definition, which is static, and a `TrainState`.

    >>> from attention_jax.modules import TransformerLM
    >>> model = TransformerLM(65, 16, 32, 4, 2, rngs=nnx.Rngs(0))
    >>> graphdef, state = create_state(model, optax.adamw(1e-3), jax.random.key(0))
    >>> int(state.step), state.params["tokens"]["embedding"].shape
    (0, (65, 32))
    """
    graphdef, params = nnx.split(model, nnx.Param)
    params = jax.tree.map(jnp.copy, nnx.to_pure_dict(params))
    zero = jnp.zeros((), jnp.int32)
    averages = jax.tree.map(jnp.copy, params) if average else None
    return graphdef, TrainState(zero, params, optimizer.init(params), rng, jnp.copy(zero), averages)


def next_token_losses(
    model: nnx.Module, tokens: jax.Array | np.ndarray, rngs: nnx.Rngs | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy, in nats, of predicting each token from those before it; and the logits.

    Args:
      model: called with tokens and `rngs=`, returns logits.
      tokens: int `[B, T + 1]`.
      rngs: a `dropout` stream; without it there is no dropout.

    Returns:
      `[B, T]`, and `[B, T, vocab_size]`, both float32.

    >>> from attention_jax.modules import TransformerLM
    >>> model = TransformerLM(65, 16, 32, 4, 2, rngs=nnx.Rngs(0))
    >>> losses, logits = next_token_losses(model, jnp.zeros((3, 11), int))
    >>> losses.shape, logits.shape
    ((3, 10), (3, 10, 65))
    """
    chex.assert_rank(tokens, 2)
    logits = model(tokens[:, :-1], rngs=rngs).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]), logits


@partial(jax.jit, static_argnames=("graphdef", "optimizer", "dtype", "accumulate", "label_smoothing", "z_loss",
                                   "ema_decay"), donate_argnames="state")  # fmt: skip
def train_step(
    state: TrainState, batch: Batch, *, graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation,
    dtype: DTypeLike = "float32", accumulate: int = 1, label_smoothing: float = 0.0, z_loss: float = 0.0,
    ema_decay: float = 0.0,
) -> tuple[TrainState, dict[str, jax.Array]]:  # fmt: skip
    """One update on a batch.

    Where the loss, a gradient or what it would lead to is not finite, parameters and optimiser stay as they were, and
    the step counts as skipped; `finite` in the metrics says which gradients were, in the order of `jax.tree.leaves`.

    Args:
      state: it is donated.
      batch: B a multiple of `accumulate`.
      graphdef: as `create_state` returns it.
      optimizer: of Optax, the one that the state was made with.
      dtype: what the model computes in.
      accumulate: parts that the batch is cut into, whose gradients are summed one after another.
      label_smoothing: share of each target spread over all tokens.
      z_loss: factor on the squared log of the softmax's denominator.
      ema_decay: how slowly `state.average`, if there is one, forgets.

    Returns:
      The next `TrainState`, and the step's metrics as arrays: loss (nats), gradient_norm, skipped, finite.

    >>> from attention_jax.modules import TransformerLM
    >>> optimizer = optax.adamw(1e-3)
    >>> model = TransformerLM(65, 16, 32, 4, 2, rngs=nnx.Rngs(0))
    >>> graphdef, state = create_state(model, optimizer, jax.random.key(0))
    >>> batch = Batch(jnp.zeros((8, 17), int))
    >>> state, metrics = train_step(state, batch, graphdef=graphdef, optimizer=optimizer)
    >>> int(state.step), sorted(metrics)
    (1, ['finite', 'gradient_norm', 'loss', 'skipped'])
    """
    counted = batch.counts()
    count = jnp.maximum(counted.sum(), 1)

    def loss_of(
        params: dict[str, Any], tokens: jax.Array, counted: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        losses, logits = next_token_losses(merge(graphdef, params, dtype), tokens, nnx.Rngs(dropout=rng))
        objective = losses
        if label_smoothing or z_loss:
            log_z = jax.nn.logsumexp(logits, axis=-1)
            uniform = log_z - logits.mean(axis=-1)
            objective = (1 - label_smoothing) * losses + label_smoothing * uniform + z_loss * log_z**2
        return jnp.sum(objective, where=counted) / count, jnp.sum(losses, where=counted) / count

    def add_part(total: Any, part: Any) -> tuple[Any, None]:
        (_, loss), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params, *part)
        return jax.tree.map(jnp.add, total, (loss, gradient)), None

    rng = jax.random.fold_in(state.rng, state.step)
    if accumulate == 1:
        (_, loss), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params, batch.tokens, counted, rng)
    else:
        parts = [x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1) for x in (batch.tokens, counted)]
        zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params)
        (loss, gradient), _ = jax.lax.scan(add_part, zero, (*parts, jax.random.split(rng, accumulate)))

    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = None if state.average is None else optax.incremental_update(params, state.average, 1 - ema_decay)
    finite = _finite(gradient)
    good = jnp.isfinite(loss) & finite.all() & _finite((params, opt_state)).all()
    # not `where`, into each use of which XLA copies the whole computation of `good`: thrice the time to compile
    params, opt_state, average = jax.lax.cond(
        good,
        lambda: (params, opt_state, average),
        lambda: (state.params, state.opt_state, state.average),
    )
    skipped = jnp.where(good, 0, state.skipped + 1)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), "skipped": skipped, "finite": finite}
    return TrainState(state.step + 1, params, opt_state, state.rng, skipped, average), metrics


def _finite(tree: Any) -> jax.Array:
    """Which leaves are finite throughout."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])


@partial(jax.jit, static_argnames=("graphdef", "dtype"))
def eval_step(
    params: dict[str, Any], batch: Batch, *, graphdef: nnx.GraphDef, dtype: DTypeLike = "float32"
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the model makes of a batch, without dropout.

    Args:
      params: as `TrainState` holds them.
      batch: any B.
      graphdef: as `create_state` returns it.
      dtype: what the model computes in.

    Returns:
      The sum of the losses that count, how many there are, and how many sequences had every counted token as their
      likeliest prediction, which is to say that greedy decoding would write the same.

    >>> from attention_jax.modules import TransformerLM
    >>> model = TransformerLM(65, 16, 32, 4, 2, rngs=nnx.Rngs(0))
    >>> graphdef, state = create_state(model, optax.adamw(1e-3), jax.random.key(0))
    >>> loss, count, right = eval_step(state.best, Batch(jnp.zeros((8, 17), int)), graphdef=graphdef)
    >>> int(count)
    128
    """
    losses, logits = next_token_losses(merge(graphdef, params, dtype), batch.tokens)
    counted = batch.counts()
    right = jnp.all((jnp.argmax(logits, axis=-1) == batch.tokens[:, 1:]) | ~counted, axis=-1)
    return jnp.sum(losses, where=counted), counted.sum(), right.sum()


def merge(graphdef: nnx.GraphDef, params: dict[str, Any], dtype: DTypeLike = "float32") -> nnx.Module:
    """The model, with its parameters in the dtype that it is to compute in.

    Args:
      graphdef: as `create_state` returns it.
      params: as `TrainState` holds them.
      dtype: of floating-point parameters.

    >>> from attention_jax.modules import TransformerLM
    >>> model = TransformerLM(65, 16, 32, 4, 2, rngs=nnx.Rngs(0))
    >>> graphdef, state = create_state(model, optax.adamw(1e-3), jax.random.key(0))
    >>> merge(graphdef, state.best)(jnp.zeros((3, 10), int)).shape
    (3, 10, 65)
    """
    return nnx.merge(graphdef, jax.tree.map(lambda param: param.astype(dtype), params))
