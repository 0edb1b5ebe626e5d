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
from train.model import build_model
from train.optimizer import build_optimizer, learning_rate
from train.step import Batch, create_state, eval_step, next_token_losses, train_step

TOKENS = np.random.default_rng(0).integers(0, 11, (4, 9)).astype(np.int32)
BATCH = Batch(jnp.asarray(TOKENS))


def mean_loss(model, tokens, rngs=None):
    return next_token_losses(model, tokens, rngs)[0].mean()


loss_of = nnx.jit(mean_loss)


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


@pytest.mark.slow
def test_a_step_goes_down_the_gradient():
    model, optimizer = tiny(), optax.sgd(0.1)
    gradient = nnx.to_pure_dict(nnx.jit(nnx.grad(mean_loss))(model, TOKENS))
    graphdef, state = create_state(model, optimizer, jax.random.key(0))
    before = jax.tree.map(np.array, state.params)
    state, metrics = train_step(state, BATCH, graphdef=graphdef, optimizer=optimizer)
    expected = jax.tree.map(lambda param, slope: param - 0.1 * np.asarray(slope), before, gradient)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), state.params, expected)
    assert state.step == 1 and state.step.dtype == jnp.int32
    assert metrics["loss"] == pytest.approx(float(loss_of(model, TOKENS)), rel=1e-5)
    norm = np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(gradient)))
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    after = nnx.merge(graphdef, state.params)
    total, count, _ = eval_step(state.params, BATCH, graphdef=graphdef)
    assert count == 32 and total / count == pytest.approx(float(loss_of(after, TOKENS)), rel=1e-5)


@pytest.mark.slow
def test_one_compilation_for_many_steps():
    optimizer = optax.adam(1e-2)
    graphdef, state = create_state(tiny(dropout_rate=0.1), optimizer, jax.random.key(0))
    losses = []
    traced = jax.jit(
        chex.assert_max_traces(train_step.__wrapped__, n=1), static_argnames=("graphdef", "optimizer"), donate_argnums=0
    )
    for _ in range(40):
        state, metrics = traced(state, BATCH, graphdef=graphdef, optimizer=optimizer)
        losses.append(float(metrics["loss"]))
    assert state.step == 40 and losses[-1] < losses[0] - 0.5


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_nothing():
    """And the next good one does, with a count that starts anew."""
    optimizer = optax.adam(0.1)
    graphdef, state = create_state(tiny(), optimizer, jax.random.key(0))
    state = state._replace(params=jax.tree.map(jnp.copy, state.params))
    state.params["norm"]["scale"] = state.params["norm"]["scale"].at[3].set(jnp.inf)
    before = jax.tree.map(np.array, (state.params, state.opt_state))
    for number in (1, 2):
        state, metrics = train_step(state, BATCH, graphdef=graphdef, optimizer=optimizer)
        assert (state.step, state.skipped, metrics["skipped"]) == (number, number, number)
        assert not metrics["finite"].all()
        jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), before)
    state.params["norm"]["scale"] = jnp.ones(16)
    state, metrics = train_step(state, BATCH, graphdef=graphdef, optimizer=optimizer)
    assert state.skipped == 0 and metrics["finite"].all() and np.isfinite(metrics["loss"])


@pytest.mark.slow
def test_a_step_that_would_leave_the_numbers_is_skipped():
    """Its gradient is finite, and what becomes of the parameters is not."""
    optimizer = optax.sgd(float("inf"))
    graphdef, state = create_state(tiny(), optimizer, jax.random.key(0))
    before = jax.tree.map(np.array, state.params)
    state, metrics = train_step(state, BATCH, graphdef=graphdef, optimizer=optimizer)
    assert metrics["finite"].all() and state.skipped == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, before)


def test_the_state_is_donated():
    optimizer = optax.sgd(0.1)
    graphdef, state = create_state(tiny(), optimizer, jax.random.key(0))
    old = state.params["tokens"]["embedding"]
    train_step(state, BATCH, graphdef=graphdef, optimizer=optimizer)
    assert old.is_deleted()


@pytest.mark.slow
def test_dropout_is_a_function_of_seed_and_step():
    optimizer = optax.sgd(0.0)  # the parameters stay, so that losses differ by dropout alone

    def losses(seed):
        graphdef, state = create_state(tiny(dropout_rate=0.3), optimizer, jax.random.key(seed))
        result = []
        for _ in range(3):
            state, metrics = train_step(state, BATCH, graphdef=graphdef, optimizer=optimizer)
            result.append(float(metrics["loss"]))
        return result

    assert losses(0) == losses(0)
    assert len(set(losses(0) + losses(1))) == 6


@pytest.mark.slow
def test_the_configured_model_drops_out():
    model = build_model(Model(num_layers=1, num_heads=2, embed_dim=16, dropout_rate=0.5), 11, jax.random.key(0))
    assert loss_of(model, TOKENS) != loss_of(model, TOKENS, nnx.Rngs(dropout=0))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adamw", "muon"])
@pytest.mark.parametrize("scan", [False, True])
def test_only_matrices_decay(method, scan):
    config = Optimizer(method=method, learning_rate=0.1, weight_decay=0.5, warmup_steps=0)
    optimizer = build_optimizer(config, steps=10)
    model = build_model(Model(num_layers=2, num_heads=2, embed_dim=16, scan=scan), 11, jax.random.key(0))
    params = jax.tree.map(jnp.ones_like, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        decays = path[-1].key in ("kernel", "embedding", "table")
        np.testing.assert_allclose(update, -0.05 if decays else 0, rtol=1e-5, err_msg=str(path))


@pytest.mark.slow
def test_muon_steps_are_orthogonal():
    """The update of a matrix has equal singular values, nearly, whatever its gradient's were; of others AdamW's."""
    config = {"learning_rate": 0.1, "warmup_steps": 0, "weight_decay": 0.0}
    shapes = {"blocks": {0: {"kernel": (8, 24), "bias": (24,)}}, "tokens": {"embedding": (11, 8)}}
    rngs = iter(jax.random.split(jax.random.key(0), 3))
    params = jax.tree.map(lambda shape: jnp.zeros(shape), shapes, is_leaf=lambda x: isinstance(x, tuple))
    slopes = jax.tree.map(lambda param: jax.random.normal(next(rngs), param.shape), params)
    slopes["blocks"][0]["kernel"] *= jnp.arange(1.0, 9.0)[:, None]
    updates = {}
    for method in ("adamw", "muon"):
        optimizer = build_optimizer(Optimizer(method=method, **config), steps=10)
        updates[method], _ = optimizer.update(slopes, optimizer.init(params), params)
    values = np.linalg.svd(updates["muon"]["blocks"][0]["kernel"], compute_uv=False)
    assert values.max() / values.min() < 2 < 4 < np.divide(*np.linalg.svd(slopes["blocks"][0]["kernel"])[1][[0, -1]])
    assert np.sqrt(np.mean(values**2 / 24)) == pytest.approx(0.1 * 0.2, rel=0.2)  # as long as AdamW's steps are
    np.testing.assert_allclose(
        updates["muon"]["tokens"]["embedding"], updates["adamw"]["tokens"]["embedding"], rtol=1e-6
    )


@pytest.mark.parametrize("schedule, expected", [
    ("cosine", [0.0, 1.0, 2.0, 1.1, 0.2, 0.2]),
    ("constant", [0.0, 1.0, 2.0, 2.0, 2.0, 2.0]),
    ("wsd", [0.0, 1.0, 2.0, 2.0, 0.2, 0.2]),
])  # fmt: skip
def test_schedules(schedule, expected):
    config = Optimizer(learning_rate=2.0, warmup_steps=10, final_fraction=0.1, schedule=schedule, decay_fraction=0.4)
    rate = learning_rate(config, steps=110)
    assert [round(float(rate(step)), 4) for step in (0, 5, 10, 60, 110, 150)] == expected
    if schedule == "wsd":
        assert float(rate(66)) == 2.0 and float(rate(88)) == pytest.approx(1.1)
    assert learning_rate(Optimizer(learning_rate=2.0, warmup_steps=0, schedule=schedule), steps=9)(0) == 2.0


@pytest.mark.slow
def test_gradients_are_clipped():
    optimizer = build_optimizer(Optimizer(clip_norm=0.5), steps=10)
    params = {"kernel": jnp.zeros((2, 2))}
    big = {"kernel": jnp.full((2, 2), 1e6)}
    _, state = optimizer.update(big, optimizer.init(params), params)
    mu = next(leaf.mu for leaf in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(leaf, "mu"))
    np.testing.assert_allclose(mu["kernel"], 0.1 * 0.25, rtol=1e-4)  # norm 0.5 over four entries, times 1 - b1


SGD = optax.sgd(0.1)  # one, so that its step is compiled once


def updated(model, batch, steps=1, **options):
    """The state after some steps with plain gradients, and the first step's metrics."""
    graphdef, state = create_state(model, SGD, jax.random.key(0), average=options.get("ema_decay", 0) > 0)
    first = None
    for _ in range(steps):
        state, metrics = train_step(state, batch, graphdef=graphdef, optimizer=SGD, **options)
        first = first or metrics
    return state, first


def assert_close(one, other, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), one, other)


COUNTED = jnp.asarray(np.random.default_rng(1).random((4, 8)) < 0.4)


@pytest.mark.parametrize("counted", [pytest.param(None, marks=pytest.mark.slow), COUNTED])
@pytest.mark.parametrize("parts", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_accumulated_parts_are_the_whole_batch(parts, counted):
    """Also where the parts have different numbers of tokens that count."""
    whole, metrics = updated(tiny(), Batch(BATCH.tokens, counted))
    cut, again = updated(tiny(), Batch(BATCH.tokens, counted), accumulate=parts)
    assert_close(cut.params, whole.params, atol=2e-7)
    assert again["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-6)


@pytest.mark.slow
def test_only_what_counts_is_learned():
    """The loss is that of the counted tokens, and other targets do not change the step."""
    model = tiny()
    state, metrics = updated(model, Batch(BATCH.tokens, COUNTED))
    losses = nnx.jit(next_token_losses)(model, TOKENS)[0]
    assert metrics["loss"] == pytest.approx(float(losses[COUNTED].mean()), rel=1e-6)
    last = jnp.zeros((4, 8), bool).at[:, 3].set(True)  # the fifth token is the last one that is looked at
    one, _ = updated(model, Batch(BATCH.tokens, last))
    other, _ = updated(model, Batch(BATCH.tokens.at[:, 5:].set(0), last))
    assert_close(one.params, other.params, rtol=0)


def test_evaluation_counts_what_is_right_as_a_whole():
    model = tiny()
    graphdef, params = nnx.split(model, nnx.Param)
    likeliest = np.asarray(jnp.argmax(nnx.jit(lambda model: model(TOKENS[:, :-1]))(model), axis=-1))
    tokens = TOKENS.copy()
    tokens[:, 8] = likeliest[:, 7]  # right in the last place of every row
    tokens[0, 8] = (tokens[0, 8] + 1) % 11  # but for the first row
    counted = np.zeros((4, 8), bool)
    counted[:, 7] = True
    params = nnx.to_pure_dict(params)
    assert eval_step(params, Batch(tokens, counted), graphdef=graphdef)[1:] == (4, 3)
    counted[1, 0] = True
    wrong = tokens.copy()
    wrong[1, 1] = (likeliest[1, 0] + 1) % 11
    assert eval_step(params, Batch(wrong, counted), graphdef=graphdef)[1:] == (5, 2)


@pytest.mark.slow
def test_label_smoothing_and_z_loss_against_their_formulas():
    smoothing, factor, model = 0.1, 0.01, tiny()

    def expected(model):
        logits = model(TOKENS[:, :-1])
        target = (1 - smoothing) * jax.nn.one_hot(TOKENS[:, 1:], 11) + smoothing / 11
        log_z = jnp.log(jnp.exp(logits).sum(-1))
        return (-(target * jax.nn.log_softmax(logits)).sum(-1) + factor * log_z**2).mean()

    gradient = nnx.to_pure_dict(nnx.jit(nnx.grad(expected))(model))
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    state, metrics = updated(model, BATCH, label_smoothing=smoothing, z_loss=factor)
    assert_close(state.params, jax.tree.map(lambda param, slope: param - 0.1 * slope, before, gradient), atol=1e-6)
    assert metrics["loss"] == pytest.approx(float(loss_of(model, TOKENS)), rel=1e-6)  # without what was added


@pytest.mark.slow
def test_the_average_is_the_closed_form():
    decay, steps, path = 0.7, 5, []
    for count in range(steps + 1):
        state, _ = updated(tiny(), BATCH, steps=count, ema_decay=decay)
        path.append(jax.tree.map(np.asarray, state.params))
    weights = [decay**steps, *((1 - decay) * decay ** (steps - step) for step in range(1, steps + 1))]
    closed = jax.tree.map(
        lambda *params: sum(w * p.astype(np.float64) for w, p in zip(weights, params, strict=True)), *path
    )
    assert_close(state.average, closed, rtol=1e-5, atol=1e-7)
    assert state.best is state.average and updated(tiny(), BATCH)[0].average is None


@pytest.mark.slow
def test_bfloat16_keeps_its_state_in_float32():
    model = tiny()
    exact, _ = updated(model, BATCH)
    state, metrics = updated(model, BATCH, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, metrics["loss"]))} == {jnp.dtype("float32")}
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    steps = [jax.tree.map(jnp.subtract, after.params, before) for after in (exact, state)]
    lengths = [float(optax.tree.norm(step)) for step in steps]
    apart = float(optax.tree.norm(jax.tree.map(jnp.subtract, *steps)))
    assert 0 < apart < 0.03 * lengths[0]  # as far as bfloat16's 8 bits go, and not at all only if it were float32
    logits = nnx.merge(*nnx.split(model)).__call__  # the products are bfloat16's own
    hlo = train_step.lower(
        create_state(model, SGD, jax.random.key(0))[1], BATCH,
        graphdef=nnx.graphdef(model), optimizer=SGD, dtype="bfloat16",
    ).as_text()  # fmt: skip
    assert "bf16" in hlo and logits(TOKENS[:, :-1]).dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"remat": True}, {"scan": True}])
def test_remat_and_scan_change_no_number(options):
    sizes = {"num_layers": 3, "num_heads": 2, "embed_dim": 16, "context_length": 8}
    plain, other = (build_model(Model(**sizes, **more), 11, jax.random.key(0)) for more in ({}, options))
    (one, first), (two, second) = (updated(model, BATCH) for model in (plain, other))
    assert second["loss"] == pytest.approx(float(first["loss"]), rel=1e-6)
    blocks = two.params["blocks"]
    if "scan" in options:
        blocks = {layer: jax.tree.map(lambda leaf, layer=layer: leaf[layer], blocks) for layer in range(3)}
    assert_close(dict(two.params, blocks=blocks), one.params, atol=2e-7)
