"""An induction head in a two-layer model (Olsson et al. 2022, arXiv:2209.11895).

Random letters, repeated with a period that differs from example to example: the only way to know the next letter is to
find where the current one stood before, and to see what came after it. That takes two heads, one after the other.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from attention_jax import rotary_embedding, rotary_frequencies
from attention_jax.inspection import ablate, contributions, inspect, inspect_statistics
from attention_jax.modules import MultiHeadAttention, TransformerBlock, TransformerLM
from attention_jax.view import html
from train.experiments.learning import learn
from train.experiments.report import Report
from train.step import Batch, next_token_losses

LETTERS = 26
LENGTH = 48
SHORTEST, LONGEST = 8, 20
STEPS = 1500
KEPT = tuple(range(0, STEPS + 1, 150))
SIZES: dict[str, Any] = {"vocab_size": LETTERS, "context_length": LENGTH, "embed_dim": 64, "num_heads": 4}


def repeats(step: int, size: int = 64) -> Batch:
    """Sequences `[size, LENGTH + 1]` of random letters that begin anew after a period; a function of the step."""
    random = np.random.Generator(np.random.Philox(key=[0, step]))
    tokens = np.empty((size, LENGTH + 1), np.int32)
    for row in tokens:
        row[:] = np.resize(random.integers(LETTERS, size=random.integers(SHORTEST, LONGEST + 1)), LENGTH + 1)
    return Batch(tokens)


def model(num_layers: int) -> TransformerLM:
    """A small model with rotary positions, which know distances only."""
    rotary = partial(rotary_embedding, frequencies=rotary_frequencies(SIZES["embed_dim"] // SIZES["num_heads"]))
    block = partial(TransformerBlock, attention=partial(MultiHeadAttention, rotary=rotary))
    return TransformerLM(**SIZES, num_layers=num_layers, block=block, positions=None, rngs=nnx.Rngs(0))


@partial(jax.jit, static_argnames="graphdef")
def losses(params: Any, tokens: jax.Array, *, graphdef: nnx.GraphDef) -> tuple[jax.Array, jax.Array]:
    """Mean loss of letters that come for the first time, and of those past the longest period, which all repeat."""
    each, _ = next_token_losses(nnx.merge(graphdef, params), tokens)
    return each[:, : SHORTEST - 1].mean(), each[:, LONGEST:].mean()


@partial(jax.jit, static_argnames="graphdef")
def statistics(params: Any, tokens: jax.Array, *, graphdef: nnx.GraphDef) -> tuple[jax.Array, jax.Array]:
    """The mean scores of each head, `[layers, N]`: induction, and weight on the token before."""
    found: Any = inspect_statistics(nnx.merge(graphdef, params), tokens)
    return found.induction.mean(1), found.previous_token.mean(1)


def run(report: Report) -> None:
    """Train one layer and two; find the induction head, watch it come, and take it away."""
    asked = repeats(10**6, 128).tokens

    def measure(fn: Callable[..., Any], model: nnx.Module) -> list[np.ndarray]:
        graphdef, params = nnx.split(model)
        return [np.asarray(x) for x in fn(params, asked if fn is losses else asked[:, :-1], graphdef=graphdef)]

    learned = {
        f"{layers} layer{'s' * (layers > 1)}": learn(
            model(layers), repeats, STEPS, report, name=f"{layers} layers", keep=KEPT
        )
        for layers in (1, 2)
    }
    report.say(f"Even guesses lose {np.log(LETTERS):.2f} nats. What the models lose after {STEPS} steps:")
    repeated = {name: measure(losses, each.model) for name, each in learned.items()}
    rows = [[name, f"{new:.2f}", f"{known:.3f}"] for name, (new, known) in repeated.items()]
    report.table(["", "new letters", "repeated letters"], rows)

    two = learned["2 layers"]
    induction, previous = measure(statistics, two.model)
    layer, head = map(int, np.unravel_index(np.argmax(induction), induction.shape))
    before = int(np.argmax(previous[0]))
    report.say("What each head of the two layers does: weight on the key after an earlier copy, and on the key before.")
    names = [f"layer {i}, head {j}" for i, j in np.ndindex(*induction.shape)]
    report.table(["", "induction", "previous token"], [
        [name, f"{a:.2f}", f"{b:.2f}"] for name, a, b in zip(names, induction.flat, previous.flat, strict=True)
    ])  # fmt: skip

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    panel = figure.subplots()
    steps = list(two.kept)
    scores = [measure(statistics, kept) for kept in two.kept.values()]
    panel.plot(steps, [score[0][layer, head] for score in scores], label=f"induction of head {head}, layer {layer}")
    panel.plot(steps, [score[1][0, before] for score in scores], label=f"previous token, head {before}, layer 0")
    panel.set(xlabel="step", ylabel="mean weight", ylim=(0, 1))
    other = panel.twinx()
    other.plot(steps, [measure(losses, kept)[1] for kept in two.kept.values()], color="black", linestyle=":")
    other.set(ylabel="loss of repeated letters (dotted), nats", ylim=(0, None))
    panel.legend(loc="center right")
    report.figure(figure, "The head comes when the loss of what repeats goes down.")

    inductive = [(i, j) for i, j in np.argwhere(induction > 0.5)]
    others = [(layer, j) for j in range(induction.shape[1]) if (layer, j) not in inductive]
    one_back = [(0, j) for j in np.flatnonzero(previous[0] > 0.2)]
    changes = [
        ("nothing", []),
        (f"head {head} of layer {layer}, the most inductive", [(layer, head)]),
        (f"all {len(inductive)} that are inductive by half", inductive),
        (f"what else is in layer {layer}", others),
        ("those of layer 0 that look one back", one_back),
    ]
    ablated = [ablate(two.model, heads, mean_over=asked[:, :-1]) for _, heads in changes]
    without = [float(measure(losses, each)[1]) for each in ablated]
    report.say("The loss of repeated letters when heads say their mean only:")
    rows = zip(changes, without, strict=True)
    report.table(["ablated", "loss"], [[name, f"{loss:.2f}"] for (name, _), loss in rows])
    shares = contributions(two.model, jnp.asarray(asked[:, :-1]), jnp.asarray(asked[:, -1])).heads.mean(1)
    direct = sum(shares[i, j] for i, j in inductive)
    report.say(
        f"Of the right letter's logit the inductive heads write {direct:.1f} themselves, on average, and all others "
        f"{shares.sum() - direct:.1f}."
    )

    words = [chr(ord("a") + token) for token in asked[0, :-1]]
    page = html(inspect(two.model, asked[0, :-1]), words, title="Two layers on a repeated word")
    report.page(page, "All heads on one example.")
    report.conclude(verdict((layer, head), induction, without, float(repeated["1 layer"][1])))


def verdict(best: tuple[int, int], induction: np.ndarray, without: Sequence[float], one_layer: float) -> str:
    """Whether there is an induction head.

    Args:
      best: layer and number of the most inductive head.
      induction: the score of each head, `[layers, N]`.
      without: the loss of repeated letters with all heads, without the best, without all that are inductive, and
        without the others of that layer.
      one_layer: the loss of a model of one layer.
    """
    layer, head = best
    whole, _, gone, still, *_ = without
    what = (
        f"head {head} of layer {layer} gives {induction[best]:.2f} of its weight to the key after a copy; without the "
        f"{(induction > 0.5).sum()} of its kind the loss of repeated letters goes from {whole:.2f} to {gone:.2f} nats, "
        f"without what else is in that layer to {still:.2f}."
    )
    if induction[best] > 0.5 and layer > 0 and gone > whole + 1 and gone > 2 * still:
        alone = f"One layer alone {'cannot do it, and ' if one_layer > whole + 1 else ''}ends at {one_layer:.2f}."
        return f"There is an induction head: {what} {alone}"
    return f"These numbers show no induction head: {what}"
