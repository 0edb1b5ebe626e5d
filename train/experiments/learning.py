"""A small model, trained as `python -m train` does it, with copies of it kept on the way."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from attention_jax.modules import TransformerLM
from configs import schema
from train.data import Dataset, open_dataset
from train.evaluate import evaluate
from train.experiments.report import Report
from train.optimizer import build_optimizer
from train.step import Batch, create_state, train_step


class Learned(NamedTuple):
    """What became of a model."""

    model: TransformerLM
    losses: np.ndarray
    """`[steps]`, of each step's batch."""
    kept: dict[int, TransformerLM]
    """The model after so many steps."""

    @property
    def last(self) -> float:
        """The mean loss of the last 50 steps."""
        return float(self.losses[-50:].mean())


def learn(
    model: TransformerLM,
    batch: Callable[[int], Batch],
    steps: int,
    report: Report,
    *,
    name: str,
    learning_rate: float = 3e-3,
    keep: Sequence[int] = (),
) -> Learned:
    """Train a model on the batches of steps 1, 2, ...; `keep` are steps after which a copy is wanted."""
    optimizer = optimizer_of(learning_rate, steps)
    graphdef, state = create_state(model, optimizer, jax.random.key(0))
    kept, losses = {0: model} if 0 in keep else {}, []
    for step in range(1, steps + 1):
        state, metrics = train_step(state, batch(step), graphdef=graphdef, optimizer=optimizer)
        losses.append(metrics["loss"])
        if step in keep:
            kept[step] = nnx.merge(graphdef, jax.tree.map(np.array, state.params))
        if step % 20 == 0:
            report.progress(f"{name}: step {step} of {steps}, loss {losses[-1]:.3f}")
    return Learned(nnx.merge(graphdef, state.params), np.array(jax.device_get(losses)), kept)


def validate(model: TransformerLM, data: Dataset, batches: int | None = None) -> dict[str, float]:
    """`train.evaluate.evaluate` on the first so many batches."""
    graphdef, params = nnx.split(model)
    return evaluate(nnx.to_pure_dict(params), data.validation[:batches], data.answers, graphdef=graphdef)


@cache
def optimizer_of(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """The same object for the same numbers, so that a step is compiled once for models of a shape."""
    return build_optimizer(schema.Optimizer(learning_rate=learning_rate), steps)


def english(context_length: int) -> Dataset:
    """The help topics that every Python ships, by characters."""
    return open_dataset(schema.Config(model=schema.Model(context_length=context_length)))


def plot_losses(learned: dict[str, Learned], window: int = 25) -> Figure:
    """Training losses against steps, each the mean of so many."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    panel = figure.subplots()
    for name, each in learned.items():
        smooth = np.convolve(each.losses, np.ones(window) / window, mode="valid")
        panel.plot(np.arange(len(smooth)) + window, smooth, label=name)
    panel.set(xlabel="step", ylabel="training loss, nats per token")
    panel.grid(alpha=0.3)
    panel.legend()
    return figure
