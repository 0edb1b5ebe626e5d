"""Attention over training on `copy`, `reverse` and `sort`: where a head learns to look for the letter to be written."""

import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from attention_jax.modules import TransformerLM
from attention_jax.view import html, plot
from configs import PRESETS
from train.data import END, Dataset, open_dataset
from train.experiments.learning import learn, validate
from train.experiments.report import Report
from train.model import build_model
from train.show import weights_of

STEPS = {"copy": 1000, "reverse": 1000, "sort": 1400}
KEPT = 0, 25, 50, 100, 200, 400, 700


def right_keys(task: str, text: str) -> np.ndarray:
    """Which letters each position of `question=answer` has to look at to write the next one, bool `[T, T]`.

    >>> right_keys("reverse", "abc=cba").nonzero()
    (array([3, 4, 5]), array([2, 1, 0]))
    """
    question, answer = text.split("=")
    right = np.zeros((len(text), len(text)), bool)
    for index, letter in enumerate(answer):
        keys = [s for s, other in enumerate(question) if other == letter]
        if task != "sort":
            keys = [index if task == "copy" else len(question) - 1 - index]
        right[len(question) + index, keys] = True
    return right


def look(model: TransformerLM, data: Dataset, task: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean weight that each head `[layers, N]` gives to the right letters; and the weights on the example shown."""
    tokens = data.validation[0].tokens[:, :-1]
    graphdef, params = nnx.split(model)
    weights = np.asarray(weights_of(params, tokens, graphdef=graphdef))
    shares = []
    for b, row in enumerate(tokens):
        text = data.tokenizer.decode(row).split(END)[0]
        right = right_keys(task, text)
        length, asking = len(text), right.any(1)
        shares.append((weights[:, b, :, :length, :length] * right).sum(-1)[..., asking])
    return np.concatenate(shares, axis=-1).mean(-1), weights[:, example(data)]


def example(data: Dataset) -> int:
    """The longest of the questions looked at."""
    return int(np.argmax(data.validation[0].counts().sum(1)))


def run(report: Report) -> None:
    """Train on each task, and follow the head that in the end looks most at the right letter."""
    found = []
    for task, steps in STEPS.items():
        config = replace(PRESETS[task], steps=steps)
        data = open_dataset(config)
        model = build_model(config.model, len(data.tokenizer), jax.random.key(config.seed))
        rate = config.optimizer.learning_rate
        learned = learn(model, data.batch, steps, report, name=task, learning_rate=rate, keep=(*KEPT, steps))
        looks = {step: look(kept, data, task) for step, kept in learned.kept.items()}
        accuracies = {step: validate(kept, data, 4)["accuracy"] for step, kept in learned.kept.items()}
        shares = looks[steps][0]
        layer, head = np.unravel_index(np.argmax(shares), shares.shape)
        report.say(f"{task}: the head that ends up looking most at the right letter is head {head} of layer {layer}.")
        rows = [
            [str(step), f"{look[0][layer, head]:.2f}", f"{100 * accuracies[step]:.0f} %"]
            for step, look in looks.items()
        ]
        report.table(["step", "weight on the right letter", "answers right"], rows)

        text = data.tokenizer.decode(data.validation[0].tokens[example(data), :-1])
        words = list(text.split(END)[0])
        T = len(words)
        pictures = np.stack([weights[layer, head, :T, :T] for _, weights in looks.values()])
        caption = f"{task}: head {head} of layer {layer} through training."
        report.figure(plot.plot_training(pictures, list(looks), words), caption)
        with tempfile.TemporaryDirectory() as folder:
            film = Path(folder) / "head.gif"
            plot.animate_training(pictures, list(looks), words).save(film, writer="pillow", dpi=80)
            report.image(film.read_bytes(), "gif", f"The same as a film: {task}.")
        report.page(html(looks[steps][1][..., :T, :T], words, title=f"{task}, step {steps}"), f"All heads: {task}.")
        found.append((task, looks[0][0][layer, head], shares[layer, head], accuracies[steps]))
    sentences = [
        f"{task}: from {start:.2f} to {end:.2f}, {100 * accuracy:.0f} % of the answers right"
        for task, start, end, accuracy in found
    ]
    report.conclude(f"Weight on the letter to be written, before and after. {'; '.join(sentences)}.")
