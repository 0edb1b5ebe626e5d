"""Attention weights and masks as matplotlib figures.

No figure touches the display: save it by `figure.savefig(path)`, or end a notebook's cell with it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.animation import FuncAnimation
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from attention_jax.arguments import static_int
from attention_jax.mask_tree import as_mask
from attention_jax.typing import MaskLike
from attention_jax.view.table import labels

KINDS = "empty", "in part", "full"
KIND_COLOURS = "#f4f4f4", "#f2c46d", "#7fb2d9"


class _ShownFigure(Figure):
    """One that a notebook shows without pyplot, which alone would teach it to."""

    def _repr_png_(self) -> bytes:
        self.savefig(content := io.BytesIO(), format="png", bbox_inches="tight")
        return content.getvalue()


def plot_head(
    weights: ArrayLike, tokens: Sequence[str], *, key_tokens: Sequence[str] | None = None, title: str = ""
) -> Figure:
    """One head: who (down) looks at whom (across), darker is more.

    Args:
      weights: `[T, S]`.
      tokens: T labels.
      key_tokens: S labels. Default: `tokens`.
      title: above the picture.

    Raises:
      ValueError: the weights and labels do not fit each other.

    >>> plot_head(np.full((3, 3), 1 / 3), list("abc")).savefig("/dev/null", format="png")
    """
    weights, rows, columns = _checked(weights, tokens, key_tokens, "[T, S]")
    size = 1.5 + 0.22 * max(len(rows), len(columns), 8)
    figure = _ShownFigure(figsize=(size + 0.8, size), layout="constrained")
    panel = figure.subplots()
    image = _draw(panel, weights, rows, columns, fontsize=8)
    panel.set(xlabel="looked at", ylabel="looking", title=title)
    figure.colorbar(image, ax=panel, shrink=0.7, label="attention weight")
    return figure


def plot_heads(weights: ArrayLike, tokens: Sequence[str], *, key_tokens: Sequence[str] | None = None) -> Figure:
    """A grid of all heads, one row a layer.

    Args:
      weights: `[layers, N, T, S]`, as `inspect` gives them for one example.
      tokens, key_tokens: as `plot_head`.

    Raises:
      ValueError: the weights and labels do not fit each other.

    >>> plot_heads(np.full((2, 3, 4, 4), 0.25), list("abcd")).savefig("/dev/null", format="png")
    """
    weights, rows, columns = _checked(weights, tokens, key_tokens, "[layers, N, T, S]")
    titles = [[f"layer {layer}, head {head}" for head in range(weights.shape[1])] for layer in range(len(weights))]
    return _grid(weights, titles, rows, columns)


def plot_training(
    weights: ArrayLike,
    steps: Sequence[int],
    tokens: Sequence[str],
    *,
    key_tokens: Sequence[str] | None = None,
    columns: int = 4,
) -> Figure:
    """One head through training: a picture for each step that was kept.

    Args:
      weights: `[len(steps), T, S]`.
      steps: of training, for the titles.
      tokens, key_tokens: as `plot_head`.
      columns: pictures side by side.

    Raises:
      ValueError: weights, steps and labels that do not fit each other.

    >>> plot_training(np.full((3, 4, 4), 0.25), [0, 10, 100], list("abcd")).savefig("/dev/null", format="png")
    """
    weights, rows, keys = _checked(weights, tokens, key_tokens, "[steps, T, S]", steps)
    columns = min(static_int("columns", columns, minimum=1), len(steps))
    titles = [f"step {step}" for step in steps]
    titles = [titles[first : first + columns] for first in range(0, len(titles), columns)]
    pictures = iter(weights)
    return _grid([[next(pictures) for _ in line] for line in titles], titles, rows, keys)


def animate_training(
    weights: ArrayLike, steps: Sequence[int], tokens: Sequence[str], *, key_tokens: Sequence[str] | None = None
) -> FuncAnimation:
    """The same as a film: `animation.save("head.gif", writer="pillow")`, or `animation.to_jshtml()` in a notebook.

    Args:
      weights, steps, tokens, key_tokens: as `plot_training`.

    Raises:
      ValueError: weights, steps and labels that do not fit each other.

    >>> animation = animate_training(np.full((3, 4, 4), 0.25), [0, 10, 100], list("abcd"))
    >>> "<img" in animation.to_jshtml()
    True
    """
    weights, *_ = _checked(weights, tokens, key_tokens, "[steps, T, S]", steps)
    figure = plot_head(weights[0], tokens, key_tokens=key_tokens, title=f"step {steps[0]}")
    panel = figure.axes[0]

    def show(index: int) -> Sequence[Artist]:
        panel.images[0].set_data(weights[index])
        panel.set_title(f"step {steps[index]}")
        return panel.images

    return FuncAnimation(figure, show, frames=len(steps), interval=400)


def plot_mask(mask: MaskLike, T: int, S: int | None = None, *, block_size: tuple[int, int] | None = None) -> Figure:
    """Which keys each query sees; and, by colour, which blocks see none, some or all of theirs. `explain` counts those
    that `attention` skips, or takes without a mask, by the mask's rule.

    Args:
      mask: `Mask`, or bool `[T, S]`; of one with batch or heads, its first.
      T, S: queries and keys. Default of S: T.
      block_size: queries and keys in a block. Default: no blocks are drawn.

    Raises:
      TypeError: sizes that are not integers.
      ValueError: a mask that is not one for T queries and S keys, sizes below 1.

    >>> from attention_jax import sliding_window
    >>> plot_mask(sliding_window(20, 0), 64, block_size=(16, 16)).savefig("/dev/null", format="png")
    """
    T = static_int("T", T, minimum=1)
    S, mask = static_int("S", T if S is None else S, minimum=1), as_mask(mask)
    seen = np.asarray(mask.to_array(T, S))
    seen = seen[(0,) * (seen.ndim - 2)]
    if seen.shape != (T, S):
        raise ValueError(f"mask must be [T, S] = {[T, S]}, got {list(seen.shape)}")
    height = min(max(2.5, 0.12 * T), 7.0)
    figure = _ShownFigure(figsize=(min(max(3.0, height * S / T), 10.0) + 1.6, height + 0.8), layout="constrained")
    panel = figure.subplots()
    handles = []
    if block_size is not None:
        if np.shape(block_size) != (2,):
            raise TypeError(f"block_size must be a pair, queries and keys, got {block_size!r}")
        t, s = (static_int("block_size", size, minimum=1) for size in block_size)
        kinds = np.zeros((-(-T // t), -(-S // s)), int)
        for i, j in np.ndindex(*kinds.shape):
            block = seen[i * t : (i + 1) * t, j * s : (j + 1) * s]
            kinds[i, j] = int(block.any()) + int(block.all())
        colours = ListedColormap(KIND_COLOURS)
        edges = -0.5, kinds.shape[1] * s - 0.5, kinds.shape[0] * t - 0.5, -0.5
        panel.imshow(kinds, cmap=colours, norm=BoundaryNorm(range(4), 3), extent=edges, interpolation="nearest")
        lines: dict[str, Any] = {"colors": "white", "linewidth": 1.0}
        panel.vlines(np.arange(1, kinds.shape[1]) * s - 0.5, -0.5, T - 0.5, **lines)
        panel.hlines(np.arange(1, kinds.shape[0]) * t - 0.5, -0.5, S - 0.5, **lines)
        counts = [int((kinds == kind).sum()) for kind in range(3)]
        handles = [
            Rectangle((0, 0), 1, 1, color=colour, label=f"{count} {kind}")
            for colour, count, kind in zip(KIND_COLOURS, counts, KINDS, strict=True)
        ]
    shade = np.zeros((T, S, 4))
    shade[seen] = colour = (0.1, 0.25, 0.45, 0.55 if block_size else 0.9)
    panel.imshow(shade, interpolation="nearest", aspect="auto")
    panel.set(xlabel="key", ylabel="query", xlim=(-0.5, S - 0.5), ylim=(T - 0.5, -0.5))
    name = repr(mask)
    panel.set_title(name if len(name) <= 70 else name[:69] + "…", fontsize=9)
    if handles:
        handles.append(Rectangle((0, 0), 1, 1, color=colour, linewidth=0, label="dark: may be seen"))
        figure.legend(handles=handles, title="blocks", loc="outside right upper", fontsize=8, title_fontsize=8)
    return figure


def _grid(pictures: Sequence[Any] | np.ndarray, titles: list[list[str]], rows: list[str], columns: list[str]) -> Figure:
    tokens = max(len(rows), len(columns))
    size, fontsize = 0.6 + 0.075 * max(tokens, 20), min(max(5.0, 65 / tokens), 8.0)
    figure = _ShownFigure(figsize=(len(titles[0]) * size + 0.9, len(titles) * size + 1.0), layout="constrained")
    panels = figure.subplots(len(titles), len(titles[0]), squeeze=False, sharex=True, sharey=True)
    for panel in panels.flat:
        panel.set_visible(False)
    for line, line_titles, line_panels in zip(pictures, titles, panels, strict=True):
        for picture, title, panel in zip(line, line_titles, line_panels, strict=False):
            panel.set_visible(True)
            image = _draw(panel, picture, rows, columns, fontsize)
            panel.set_title(title, fontsize=8)
            panel.label_outer()
    figure.supxlabel("looked at", fontsize=9)
    figure.supylabel("looking", fontsize=9)
    figure.colorbar(image, ax=panels, shrink=0.6, aspect=30, label="attention weight")
    return figure


def _draw(panel: Axes, weights: np.ndarray, rows: list[str], columns: list[str], fontsize: float) -> AxesImage:
    image = panel.imshow(weights, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    font: dict[str, Any] = {"fontsize": fontsize, "family": "monospace"}
    places, names = _ticks(columns)
    panel.set_xticks(places, names, rotation=90 if max(map(len, names)) > 2 else 0, **font)
    panel.set_yticks(*_ticks(rows), **font)
    panel.tick_params(length=0, pad=1)
    return image


def _ticks(names: list[str], most: int = 80) -> tuple[range, list[str]]:
    """Where labels go: at every token, or, where they would cover each other, at some."""
    every = -(-len(names) // most)
    known = get_font(findfont("monospace")).get_charmap()
    names = ["".join(c if ord(c) in known else f"\\u{ord(c):04x}" for c in name) for name in names[::every]]
    return range(0, every * len(names), every), [name.replace("$", r"\$") for name in names]


def _checked(
    weights: ArrayLike,
    tokens: Sequence[str],
    key_tokens: Sequence[str] | None,
    letters: str,
    steps: Sequence[int] | None = None,
) -> tuple[np.ndarray, list[str], list[str]]:
    weights = np.asarray(weights, np.float32)
    rows, columns = labels(tokens), labels(tokens if key_tokens is None else key_tokens)
    fits = weights.ndim == letters.count(",") + 1 and weights.shape[-2:] == (len(rows), len(columns)) and weights.size
    if not fits or (steps is not None and len(steps) != len(weights)):
        wanted = f"{letters} with T = {len(rows)}, S = {len(columns)}"
        wanted += f" and {len(steps)} steps" if steps is not None else ""
        raise ValueError(f"weights must be {wanted}, as the labels say; got {list(weights.shape)}")
    return weights, rows, columns
