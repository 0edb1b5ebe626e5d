"""What a run shows of its model: samples of what it writes, and pictures."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from matplotlib.figure import Figure

from attention_jax.generate import generate
from attention_jax.inspection import inspect
from attention_jax.modules import TransformerLM
from attention_jax.sampling import Sampling
from attention_jax.view.plot import plot_heads
from train.data import END, Dataset

SAMPLE_LENGTH = 400
PICTURE_LENGTH = 32


def sample(model: TransformerLM, dataset: Dataset, rng: jax.Array) -> str:
    """Text that goes on from a piece of the validation part; or answers to its questions, and where they are wrong."""
    tokenizer = dataset.tokenizer
    if not dataset.answers:
        prompt = tokenizer.encode(dataset.shown[0][0])[:1]
        return tokenizer.decode(np.asarray(generate(model, prompt, SAMPLE_LENGTH, rng=rng).tokens)[1:])
    lines = []
    prompts = [tokenizer.encode(question) for question, _ in dataset.shown]
    lengths = [len(prompt) for prompt in prompts]
    table = np.stack([np.pad(prompt, (0, max(lengths) - len(prompt))) for prompt in prompts])
    options: dict[str, Any] = {"rng": rng, "sampling": Sampling(temperature=0.0), "stop": tokenizer.encode(END)}
    texts = generate(model, table, max(model.context_length - min(lengths), 1), lengths=lengths, **options)
    for (question, answer), first, tokens, end in zip(dataset.shown, lengths, *map(np.asarray, texts), strict=True):
        written = tokenizer.decode(tokens[first:end]).split(END)[0]
        lines.append(f"{question}{written}" + ("" if written == answer else f"   (right: {answer})"))
    return "\n".join(lines)


def plot_attention(model: TransformerLM, dataset: Dataset, path: Path) -> None:
    """All heads on the first of the examples that are shown, as a PNG."""
    tokens = dataset.tokenizer.encode("".join(dataset.shown[0]))[: min(PICTURE_LENGTH, model.context_length)]
    graphdef, params = nnx.split(model)
    path.parent.mkdir(exist_ok=True)
    labels = [dataset.tokenizer.decode([token]) for token in tokens]
    plot_heads(weights_of(params, tokens, graphdef=graphdef), labels).savefig(path, dpi=130)


@partial(jax.jit, static_argnames="graphdef")
def weights_of(params: Any, tokens: ArrayLike, *, graphdef: nnx.GraphDef) -> jax.Array:
    """`inspect`, compiled once for all models of a shape."""
    return inspect(nnx.merge(graphdef, params), tokens)


def plot_loss(records: list[dict], path: Path) -> None:
    """Training and validation loss against steps, as a PNG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    panel = figure.subplots()
    train, validation = (
        [(record["step"], record[name]) for record in records if record.get(name) is not None]
        for name in ("train_loss", "validation_loss")
    )
    smooth, window = [], max(len(train) // 100, 1)
    for index in range(len(train)):
        recent = [loss for _, loss in train[max(index + 1 - window, 0) : index + 1]]
        smooth.append(sum(recent) / len(recent))
    steps, losses = [step for step, _ in train], [loss for _, loss in train]
    panel.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    panel.plot(steps, smooth, color="tab:blue", label="training")
    if validation:
        panel.plot(*zip(*validation, strict=True), color="tab:orange", marker="o", markersize=4, label="validation")
        last: dict[str, Any] = {"xytext": (0, 8), "textcoords": "offset points", "ha": "right", "fontsize": 9}
        panel.annotate(f"{validation[-1][1]:.3f}", validation[-1], **last)
    panel.set(xlabel="step", ylabel="loss, nats per token", title="Learning")
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(path, dpi=150)
