"""Attention weights as matplotlib figures."""

import jax
import numpy as np
from matplotlib.figure import Figure


def plot_heads(weights: jax.Array, tokens: list[str]) -> Figure:
    """A grid of all heads, one row a layer: who (down) looks at whom (across), darker is more.

    Args:
      weights: `[layers, N, T, T]`, as `TransformerLM` returns them for one example.
      tokens: T labels.

    Returns:
      A matplotlib figure, with no reference to the display; save it with `figure.savefig(path)`.

    Raises:
      ValueError: the weights and labels do not fit each other.

    >>> plot_heads(np.full((2, 3, 4, 4), 0.25), list("abcd")).savefig("/dev/null", format="png")
    """
    weights = np.asarray(weights, np.float32)
    T = len(tokens)
    if weights.ndim != 4 or weights.shape[2:] != (T, T):
        raise ValueError(f"expected weights [layers, N, T, T] with T = {T} tokens, got {weights.shape}")
    layers, N = weights.shape[:2]
    labels = [token.replace("\n", "\\n").replace(" ", "␣").replace("$", r"\$") for token in tokens]
    size = 0.6 + 0.075 * max(T, 20)
    figure = Figure(figsize=(N * size + 0.9, layers * size + 1.0), layout="constrained")
    panels = figure.subplots(layers, N, squeeze=False, sharex=True, sharey=True)
    for layer in range(layers):
        for head in range(N):
            panel = panels[layer, head]
            image = panel.imshow(weights[layer, head], cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
            panel.set_title(f"layer {layer}, head {head}", fontsize=8)
            panel.set_xticks(range(T), labels, fontsize=5, family="monospace")
            panel.set_yticks(range(T), labels, fontsize=5, family="monospace")
            panel.tick_params(length=0, pad=1)
            panel.label_outer()
    figure.supxlabel("looked at", fontsize=9)
    figure.supylabel("looking", fontsize=9)
    figure.colorbar(image, ax=panels, shrink=0.6, aspect=30, label="attention weight")
    return figure
