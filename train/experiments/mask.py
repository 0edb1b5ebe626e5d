"""The causal mask removed: a model that sees the character it is to predict learns to copy it, and nothing else."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from attention_jax import attention
from attention_jax.generate import generate
from attention_jax.inspection import inspect
from attention_jax.typing import MaskLike
from attention_jax.view import plot
from configs import schema
from train.experiments.learning import english, learn, plot_losses
from train.experiments.report import Report
from train.model import build_model
from train.step import next_token_losses

STEPS = 1000
SIZES = schema.Model(num_layers=2, num_heads=4, embed_dim=64, context_length=64)
SHOWN = 24


def unmasked(
    query: jax.Array, key: jax.Array, value: jax.Array, *, mask: MaskLike | None = None, **options: Any
) -> jax.Array:
    """Attention that sees everything."""
    return attention(query, key, value, **options)


@partial(jax.jit, static_argnames="graphdef")
def honest_losses(params: Any, tokens: np.ndarray, *, graphdef: nnx.GraphDef) -> jax.Array:
    """Loss of the last token of `[B, T + 1]`, which no position of the input shows."""
    losses, _ = next_token_losses(nnx.merge(graphdef, params), tokens)
    return losses[:, -1]


def run(report: Report) -> None:
    """Train with the mask and without, and ask both for characters that are not in their input."""
    data = english(SIZES.context_length)
    tokens = np.concatenate([batch.tokens for batch in data.validation])
    rng, results = jax.random.key(0), {}
    for name, attention_fn in (("causal mask", attention), ("no mask", unmasked)):
        model = build_model(SIZES, len(data.tokenizer), rng, attention_fn)
        results[name] = learn(model, data.batch, STEPS, report, name=name)
    honest = {}
    for name, each in results.items():
        graphdef, params = nnx.split(each.model)
        honest[name] = float(honest_losses(params, tokens, graphdef=graphdef).mean())
    report.say("A character model learns English twice, once with the causal mask and once without it.")
    header = ["", "training loss", "loss of the next character, not in the input"]
    report.table(header, [[name, f"{each.last:.3f}", f"{honest[name]:.3f}"] for name, each in results.items()])
    report.figure(plot_losses(results), "Training losses, nats a character.")

    words = [data.tokenizer.decode([token]) for token in tokens[0, :SHOWN]]
    for name, each in results.items():
        weights = inspect(each.model, tokens[0, :SHOWN])
        report.figure(plot.plot_heads(weights, words), f"Attention of the last model, {name}.")
    for name, each in results.items():
        text = generate(each.model, data.tokenizer.encode("The "), 150, rng=rng).tokens
        report.sample(f"What it writes, {name}", data.tokenizer.decode(np.asarray(text)))

    report.conclude(verdict([each.last for each in results.values()], list(honest.values())))


def verdict(training: Sequence[float], honest: Sequence[float]) -> str:
    """Whether the mask matters, by the training losses, and the losses of what no input shows, with it and without."""
    (masked, unmasked), (masked_honest, unmasked_honest) = training, honest
    if unmasked >= masked / 2 or unmasked_honest <= masked_honest:
        return "These numbers do not show that the mask matters."
    return (
        f"Without the mask the training loss falls to {unmasked:.3f} nats, {masked / unmasked:.0f} times lower than "
        f"with it ({masked:.3f}), and means nothing: where the next character is not in the input, that model loses "
        f"{unmasked_honest:.2f} nats, the masked one {masked_honest:.2f}."
    )
