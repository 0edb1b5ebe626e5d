"""The training step is loss, gradient and update, compiled once."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attention_jax.modules import TransformerBlock, TransformerLM
from configs.schema import Model, Optimizer
from train.optimizer import build_optimizer, learning_rate
from train.run_directory import build_model
from train.step import create_state, eval_step, next_token_loss, train_step

TOKENS = np.random.default_rng(0).integers(0, 11, (4, 9)).astype(np.int32)
loss_of = nnx.jit(next_token_loss)


def tiny(dropout_rate=0.0):
    block = partial(TransformerBlock, dropout_rate=dropout_rate)
    return TransformerLM(11, 8, 16, 2, 1, block=block, rngs=nnx.Rngs(0))


def test_loss_is_the_mean_surprise_at_the_next_token():
    model = tiny()
    logits = np.asarray(nnx.jit(lambda model: model(TOKENS[:, :-1]))(model), np.float64)
    surprises = [
        np.log(np.exp(logits[b, t]).sum()) - logits[b, t, TOKENS[b, t + 1]] for b in range(4) for t in range(8)
    ]
    assert loss_of(model, TOKENS) == pytest.approx(np.mean(surprises), rel=1e-5)
    assert loss_of(model, TOKENS) == pytest.approx(np.log(11), rel=0.02)  # a new model knows nothing


def test_a_step_goes_down_the_gradient():
    model, optimizer = tiny(), optax.sgd(0.1)
    gradient = nnx.to_pure_dict(nnx.jit(nnx.grad(next_token_loss))(model, TOKENS))
    graphdef, state = create_state(model, optimizer, jax.random.key(0))
    before = jax.tree.map(np.array, state.params)
    state, metrics = train_step(state, TOKENS, graphdef=graphdef, optimizer=optimizer)
    expected = jax.tree.map(lambda param, slope: param - 0.1 * np.asarray(slope), before, gradient)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), state.params, expected)
    assert state.step == 1 and state.step.dtype == jnp.int32
    assert metrics["loss"] == pytest.approx(float(loss_of(model, TOKENS)), rel=1e-5)
    norm = np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(gradient)))
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    after = nnx.merge(graphdef, state.params)
    assert eval_step(state.params, TOKENS, graphdef=graphdef) == pytest.approx(float(loss_of(after, TOKENS)), rel=1e-5)


def test_one_compilation_for_many_steps():
    optimizer = optax.adam(1e-2)
    graphdef, state = create_state(tiny(dropout_rate=0.1), optimizer, jax.random.key(0))
    losses = []
    traced = jax.jit(
        chex.assert_max_traces(train_step.__wrapped__, n=1), static_argnames=("graphdef", "optimizer"), donate_argnums=0
    )
    for _ in range(40):
        state, metrics = traced(state, TOKENS, graphdef=graphdef, optimizer=optimizer)
        losses.append(float(metrics["loss"]))
    assert state.step == 40 and losses[-1] < losses[0] - 0.5


def test_a_step_that_is_not_finite_changes_nothing():
    """And the next good one does, with a count that starts anew."""
    optimizer = optax.adam(0.1)
    graphdef, state = create_state(tiny(), optimizer, jax.random.key(0))
    state = state._replace(params=jax.tree.map(jnp.copy, state.params))
    state.params["norm"]["scale"] = state.params["norm"]["scale"].at[3].set(jnp.inf)
    before = jax.tree.map(np.array, (state.params, state.opt_state))
    for number in (1, 2):
        state, metrics = train_step(state, TOKENS, graphdef=graphdef, optimizer=optimizer)
        assert (state.step, state.skipped, metrics["skipped"]) == (number, number, number)
        assert not metrics["finite"]["norm"]["scale"]
        jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), before)
    state.params["norm"]["scale"] = jnp.ones(16)
    state, metrics = train_step(state, TOKENS, graphdef=graphdef, optimizer=optimizer)
    assert state.skipped == 0 and metrics["finite"]["norm"]["scale"] and np.isfinite(metrics["loss"])


def test_the_state_is_donated():
    optimizer = optax.sgd(0.1)
    graphdef, state = create_state(tiny(), optimizer, jax.random.key(0))
    old = state.params["tokens"]["embedding"]
    train_step(state, TOKENS, graphdef=graphdef, optimizer=optimizer)
    assert old.is_deleted()


def test_dropout_is_a_function_of_seed_and_step():
    optimizer = optax.sgd(0.0)  # the parameters stay, so that losses differ by dropout alone

    def losses(seed):
        graphdef, state = create_state(tiny(dropout_rate=0.3), optimizer, jax.random.key(seed))
        result = []
        for _ in range(3):
            state, metrics = train_step(state, TOKENS, graphdef=graphdef, optimizer=optimizer)
            result.append(float(metrics["loss"]))
        return result

    assert losses(0) == losses(0)
    assert len(set(losses(0) + losses(1))) == 6


def test_the_configured_model_drops_out():
    model = build_model(Model(num_layers=1, num_heads=2, embed_dim=16, dropout_rate=0.5), 11, jax.random.key(0))
    assert loss_of(model, TOKENS) != loss_of(model, TOKENS, nnx.Rngs(dropout=0))


def test_only_matrices_decay():
    config = Optimizer(learning_rate=0.1, weight_decay=0.5, warmup_steps=0)
    optimizer = build_optimizer(config, steps=10)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_learning_rate_rises_and_falls():
    rate = learning_rate(Optimizer(learning_rate=2.0, warmup_steps=10, final_fraction=0.1), steps=110)
    assert [round(float(rate(step)), 4) for step in (0, 5, 10, 60, 110)] == [0.0, 1.0, 2.0, 1.1, 0.2]


def test_gradients_are_clipped():
    optimizer = build_optimizer(Optimizer(clip_norm=0.5), steps=10)
    params = {"kernel": jnp.zeros((2, 2))}
    big = {"kernel": jnp.full((2, 2), 1e6)}
    _, state = optimizer.update(big, optimizer.init(params), params)
    mu = next(leaf.mu for leaf in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(leaf, "mu"))
    np.testing.assert_allclose(mu["kernel"], 0.1 * 0.25, rtol=1e-4)  # norm 0.5 over four entries, times 1 - b1
