"""With and without the factor 1/sqrt(d) (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1).

The logits of a query and a key of d independent numbers of variance 1 have variance d: where d is large, softmax gives
all weight to one key, and hardly any gradient to the others.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from attention_jax import attention
from attention_jax.inspection import inspect_statistics
from attention_jax.modules import MultiHeadAttention, TransformerBlock, TransformerLM
from train.experiments.comparison import verdict
from train.experiments.learning import Learned, english, learn, plot_losses, validate
from train.experiments.report import Report

DIMS = 4, 16, 64, 256
EMBED_DIM, HEADS, LAYERS, CONTEXT, STEPS, SEEDS = 128, 1, 2, 64, 600, 3


def random_logits(report: Report) -> None:
    """What the factor does to random queries and keys."""
    rows, random = [], np.random.default_rng(0)
    figure = Figure(figsize=(7, 3), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for d in DIMS:
        query, key = random.normal(size=(2, 64, d))
        logits = query @ key.T
        entropies = []
        for panel, scaled in zip(panels, (logits, logits / np.sqrt(d)), strict=True):
            weights = np.asarray(jax.nn.softmax(scaled, axis=-1))
            entropies.append(float(-(weights * np.log(np.maximum(weights, 1e-30))).sum(-1).mean()))
            panel.plot(1 + np.arange(64), np.sort(weights)[:, ::-1].mean(0), label=f"d = {d}")
        rows.append(
            [str(d), f"{logits.std():.2f}", f"{(logits / np.sqrt(d)).std():.2f}", *(f"{e:.2f}" for e in entropies)]
        )
    for panel, title in zip(panels, ("query . key", "query . key / sqrt(d)"), strict=True):
        panel.set(title=title, xlabel="keys, largest weight first", xscale="log")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("mean weight")
    panels[1].legend()
    report.say(
        f"Random queries and 64 random keys of d numbers; even weights would have an entropy of {np.log(64):.2f} nats."
    )
    report.table(["d", "logits' deviation", "with 1/sqrt(d)", "entropy, nats", "with 1/sqrt(d)"], rows)
    report.figure(figure, "How the weight is spread over the keys.")


def model(vocab_size: int, scale: float | None, seed: int) -> TransformerLM:
    """One head as wide as the model, so that d is large."""
    heads = partial(MultiHeadAttention, attention_fn=partial(attention, scale=scale))
    block = partial(TransformerBlock, attention=heads)
    return TransformerLM(vocab_size, CONTEXT, EMBED_DIM, HEADS, LAYERS, block=block, rngs=nnx.Rngs(seed))


def run(report: Report) -> None:
    """Look at random logits; then train a model with the factor and one without."""
    random_logits(report)
    data, rows, losses = english(CONTEXT), [], {}
    curves: dict[str, Learned] = {}
    tokens = jnp.asarray(data.validation[0].tokens[:, :-1])
    even = np.mean(np.log(np.arange(1, CONTEXT + 1)))
    for name, scale in (("1/sqrt(d)", None), ("no factor", 1.0)):
        found, shares = [], []
        for seed in range(SEEDS):
            start = model(len(data.tokenizer), scale, seed)
            learned = learn(start, data.batch, STEPS, report, name=f"{name}, seed {seed}")
            pair = start, learned.model
            shares.append([inspect_statistics(each, tokens).entropy[0].mean() / even for each in pair])
            found.append(validate(learned.model, data)["validation_loss"])
            curves.setdefault(name, learned)
        first, last = (f"{100 * share:.0f} %" for share in np.mean(shares, axis=0))
        rows.append([name, first, last, f"{np.mean(found):.3f}", f"{min(found):.3f}", f"{max(found):.3f}"])
        losses[name] = found
    d = EMBED_DIM // HEADS
    report.say(
        f"A model of {LAYERS} layers with heads of size {d} learns English by characters, {STEPS} steps, {SEEDS} seeds."
    )
    report.table(["", "entropy at the start", "and at the end", "validation loss", "lowest", "highest"], rows)
    report.say("Entropies are of the first layer, as shares of that of even weights.")
    report.figure(plot_losses(curves), "Training losses of the first seed.")
    report.conclude(
        f"{verdict(losses)} At the start the weights have {rows[0][1]} of the entropy of even ones with 1/sqrt(d), and "
        f"{rows[1][1]} without."
    )
