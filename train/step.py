"""One step of training, whole: loss, gradient, update. The file to copy.

The model is split once, into a graph definition (static) and a plain dict of parameter arrays; the state goes in and
comes out, and its memory is donated. The model exists only inside the loss.

    graphdef, state = create_state(model, optimizer, jax.random.key(0))
    state, metrics = train_step(state, tokens, graphdef=graphdef, optimizer=optimizer)
"""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx


class TrainState(NamedTuple):
    """All that changes while training."""

    step: jax.Array
    """Steps done, int32."""
    params: dict[str, Any]
    """Parameter arrays, as `nnx.to_pure_dict` gives them."""
    opt_state: optax.OptState
    rng: jax.Array
    """Random key of the whole run; a step uses it folded with its number."""
    skipped: jax.Array
    """Steps in a row, up to the last one, that changed nothing since their loss or gradient was not finite, int32."""


def create_state(model: nnx.Module, optimizer: optax.GradientTransformation, rng: jax.Array):
    """The graph definition of `model`, and the state before the first step.

    The parameters are copied: a step donates those it is given, and `model` keeps its own.
    """
    graphdef, params = nnx.split(model, nnx.Param)
    params = jax.tree.map(jnp.copy, nnx.to_pure_dict(params))
    zero = jnp.zeros((), jnp.int32)
    return graphdef, TrainState(zero, params, optimizer.init(params), rng, jnp.copy(zero))


def next_token_loss(model: nnx.Module, tokens: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
    """Mean cross-entropy, in nats a token, of predicting each token of `[B, T + 1]` from those before it."""
    chex.assert_rank(tokens, 2)
    logits = model(tokens[:, :-1], rngs=rngs).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@partial(jax.jit, static_argnames=("graphdef", "optimizer"), donate_argnames="state")
def train_step(state: TrainState, tokens: jax.Array, *, graphdef: nnx.GraphDef, optimizer):
    """One update on `tokens`, int `[B, T + 1]`. Returns the next state, and metrics of the step as arrays.

    Where the loss or any gradient is not finite, parameters and optimiser stay as they were, and the step counts as
    skipped; `finite` in the metrics says which parameters' gradients were.
    """

    def loss_of(params):
        rngs = nnx.Rngs(dropout=jax.random.fold_in(state.rng, state.step))
        return next_token_loss(nnx.merge(graphdef, params), tokens, rngs)

    loss, gradient = jax.value_and_grad(loss_of)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    finite = jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), gradient)
    good = jnp.isfinite(loss) & jnp.stack(jax.tree.leaves(finite)).all()

    def keep(new, old):
        return jax.tree.map(partial(jnp.where, good), new, old)

    skipped = jnp.where(good, 0, state.skipped + 1)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), "skipped": skipped, "finite": finite}
    params, opt_state = keep(params, state.params), keep(opt_state, state.opt_state)
    return TrainState(state.step + 1, params, opt_state, state.rng, skipped), metrics


@partial(jax.jit, static_argnames="graphdef")
def eval_step(params: dict[str, Any], tokens: jax.Array, *, graphdef: nnx.GraphDef) -> jax.Array:
    """The mean loss on `tokens`, int `[B, T + 1]`, without dropout."""
    return next_token_loss(nnx.merge(graphdef, params), tokens)
