"""Two ways to cut the same channels into heads, over several seeds."""

import jax
import numpy as np

from configs import schema
from train.experiments.learning import Learned, english, learn, plot_losses, validate
from train.experiments.report import Report
from train.model import build_model

SEEDS = 3


def compare(report: Report, one: int, other: int, *, embed_dim: int, steps: int) -> None:
    """Train with `one` number of heads and with the `other`, and say whether the difference is larger than chance."""
    losses: dict[str, list[float]] = {}
    curves: dict[str, Learned] = {}
    for heads in (one, other):
        sizes = schema.Model(num_layers=2, num_heads=heads, embed_dim=embed_dim, context_length=64)
        data = english(sizes.context_length)
        for seed in range(SEEDS):
            model = build_model(sizes, len(data.tokenizer), jax.random.key(seed))
            name = f"{heads} head{'s' * (heads > 1)} of size {embed_dim // heads}"
            learned = learn(model, data.batch, steps, report, name=f"{name}, seed {seed}")
            losses.setdefault(name, []).append(validate(learned.model, data)["validation_loss"])
            curves.setdefault(name, learned)
    report.say(
        f"The same channels, {embed_dim}, and as many parameters, cut into heads in two ways; English by characters, "
        f"{steps} steps, {SEEDS} seeds each."
    )
    rows = [[name, f"{np.mean(found):.4f}", f"{min(found):.4f}", f"{max(found):.4f}"] for name, found in losses.items()]
    report.table(["", "validation loss", "lowest", "highest"], rows)
    report.figure(plot_losses(curves), "Training losses of the first seed.")
    report.conclude(verdict(losses))


def verdict(losses: dict[str, list[float]]) -> str:
    """Which of two did better, by the losses of their seeds.

    >>> verdict({"one": [1.0, 1.1], "other": [1.05, 1.25]})
    'one did better by 0.100 nats on average, but the seeds overlap: this does not show that it matters here.'
    """
    better, worse = sorted(losses, key=lambda name: np.mean(losses[name]))
    gain = np.mean(losses[worse]) - np.mean(losses[better])
    if max(losses[better]) < min(losses[worse]):
        return (
            f"{better} did better than {worse} by {gain:.3f} nats a character, and the worst of its seeds better than "
            "the best of the others."
        )
    return (
        f"{better} did better by {gain:.3f} nats on average, but the seeds overlap: this does not show that it matters "
        "here."
    )
