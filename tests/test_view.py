"""Tables and figures show the weights that they were given."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

import attention_jax as aj
from attention_jax.view import plot, text

RANDOM = np.random.default_rng(0)
TOKENS = ["The", " cat", "sat\n", "", "on"]


def weights(*lead, T=5, S=None):
    raw = RANDOM.random((*lead, T, S or T))
    raw = raw * np.tril(np.ones(raw.shape[-2:])) if S is None else raw
    return raw / raw.sum(-1, keepdims=True)


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return Image.open(file)


def names(panel):
    return [label.get_text() for label in panel.get_xticklabels()], [
        label.get_text() for label in panel.get_yticklabels()
    ]


def test_the_table_holds_the_numbers():
    values = weights()
    lines = text(values, TOKENS).splitlines()
    assert lines[0].split() == ["The", "␣cat", "sat↵", "∅", "on"]
    for t, line in enumerate(lines[1:]):
        label, *cells = line.split()
        assert label == lines[0].split()[t]
        assert cells[t + 1 :] == ["---"] * (4 - t)
        np.testing.assert_allclose([float(cell) for cell in cells[: t + 1]], values[t, : t + 1], atol=0.005)
    assert len({len(line) for line in lines}) == 1  # columns stand below each other


def test_a_mask_says_what_is_masked():
    values, seen = np.eye(3), np.tril(np.ones((3, 3), bool))
    table = text(values, list("abc"), mask=aj.causal())
    assert [line.split()[1:] for line in table.splitlines()[1:]] == [
        ["1.00", "---", "---"], ["0.00", "1.00", "---"], ["0.00", "0.00", "1.00"],
    ]  # fmt: skip
    assert text(values, list("abc"), mask=seen) == table
    assert text(weights(T=2, S=3), list("ab"), key_tokens=list("xyz")).splitlines()[0].split() == list("xyz")


def test_what_cannot_be_printed_is_spelled_out():
    table = text(np.eye(2), ["a\x1b[31m", "averylongtokenindeed"])
    assert r"a\x1b[31m" in table and "\x1b" not in table and "averylongto…" in table


def test_one_head():
    values = weights(T=4, S=5)
    figure = plot.plot_head(values, list("wxyz"), key_tokens=TOKENS, title="head 3")
    panel = figure.axes[0]
    np.testing.assert_allclose(panel.images[0].get_array(), values, rtol=1e-6)
    assert names(panel) == (["The", "␣cat", "sat↵", "∅", "on"], list("wxyz")) and panel.get_title() == "head 3"
    assert panel.images[0].get_clim() == (0, 1) and png(figure).size[0] > 100


@pytest.mark.parametrize("token, angle", [("a", 0), ("one", 90), ("道", 90)])
def test_long_labels_stand_upright(token, angle):
    """And so does a character that the font lacks, whose number is written."""
    panel = plot.plot_head(np.eye(3), [token] * 3).axes[0]
    assert [label.get_rotation() for label in panel.get_xticklabels()] == [angle] * 3


def test_a_notebook_shows_a_figure_without_pyplot():
    figure = plot.plot_head(weights(T=4, S=5), list("wxyz"), key_tokens=TOKENS)
    shown = np.asarray(Image.open(io.BytesIO(figure._repr_png_())))
    assert shown.ndim == 3 and shown.std() > 10


def test_a_grid_of_heads():
    values = weights(2, 3)
    figure = plot.plot_heads(values, TOKENS)
    panels = [panel for panel in figure.axes if panel.images and panel.get_title()]
    assert [panel.get_title() for panel in panels] == [f"layer {i}, head {j}" for i in range(2) for j in range(3)]
    for panel, each in zip(panels, values.reshape(6, 5, 5), strict=True):
        np.testing.assert_allclose(panel.images[0].get_array(), each, rtol=1e-6)
    assert png(figure).size[0] > 200


def test_a_head_through_training():
    values, steps = weights(6), [0, 10, 20, 50, 100, 400]
    figure = plot.plot_training(values, steps, TOKENS)
    shown = [panel for panel in figure.axes if panel.get_visible() and panel.get_title()]
    assert [panel.get_title() for panel in shown] == [f"step {step}" for step in steps]
    np.testing.assert_allclose([panel.images[0].get_array() for panel in shown], values, rtol=1e-6)
    assert png(figure).size[0] > 200


def test_a_film_of_a_head(tmp_path):
    values = weights(3)
    plot.animate_training(values, [0, 5, 9], TOKENS).save(tmp_path / "head.gif", writer="pillow")
    with Image.open(tmp_path / "head.gif") as film:
        assert film.n_frames == 3
        frames = []
        for index in range(3):
            film.seek(index)
            frames.append(np.asarray(film.convert("RGB")))
    assert not np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[1], frames[2])


@pytest.mark.parametrize("mask, T, S", [(aj.sliding_window(5, 0), 24, 24), (aj.causal(offset=7), 10, 17)])
def test_a_mask_with_its_blocks(mask, T, S):
    figure = plot.plot_mask(mask, T, S, block_size=(4, 6))
    blocks, cells = figure.axes[0].images
    seen = np.asarray(mask.to_array(T, S))
    np.testing.assert_array_equal(cells.get_array()[..., 3] > 0, seen)
    for i, j in np.ndindex(blocks.get_array().shape):
        block = seen[4 * i : 4 * i + 4, 6 * j : 6 * j + 6]
        assert blocks.get_array()[i, j] == (0 if not block.any() else 2 if block.all() else 1)
        colour = blocks.cmap(blocks.norm(blocks.get_array()[i, j]))
        assert colour == to_rgba(plot.KIND_COLOURS[int(blocks.get_array()[i, j])])
    labels = [label.get_text() for label in figure.legends[0].get_texts()]
    counts = [f"{(blocks.get_array() == kind).sum()} {name}" for kind, name in enumerate(plot.KINDS)]
    assert labels == [*counts, "dark: may be seen"]
    assert png(figure).size[0] > 100


def test_a_mask_without_blocks_and_of_many_examples():
    figure = plot.plot_mask(aj.key_lengths(np.array([3, 5])), 5)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array()[..., 3] > 0, np.arange(5) < np.full((5, 1), 3))
    assert not figure.legends


def test_labels_that_the_font_lacks_are_spelled_out():
    """A box for each would say nothing, and matplotlib would warn, which is an error here."""
    figure = plot.plot_head(np.eye(2), ["日", "$x$"])
    assert names(figure.axes[0])[0] == [r"\u65e5", r"\$x\$"] and png(figure).size[0] > 50


def test_of_many_tokens_some_are_named():
    figure = plot.plot_head(weights(T=300), [f"t{i}" for i in range(300)])
    assert names(figure.axes[0])[0] == [f"t{i}" for i in range(0, 300, 4)]


@pytest.mark.parametrize("call, error, message", [
    (lambda: text(weights(2), TOKENS), ValueError, r"one head, \[T, S\] = \[5, 5\].*weights\[layer, head\]"),
    (lambda: text(weights(), TOKENS[1:]), ValueError, r"\[4, 4\]"),
    (lambda: text(weights(), "abcde"), TypeError, "list of strings"),
    (lambda: text(weights(), [1, 2, 3, 4, 5]), TypeError, "list of strings"),
    (lambda: text(weights(), TOKENS, mask=np.ones((4, 5), bool)), ValueError, r"mask array has shape \(4, 5\), expected .* \[\.\.\., 5, 5\]"),
    (lambda: text(weights(), TOKENS, mask=np.ones((2, 5, 5), bool)), ValueError, r"mask must be \[T, S\] = \[5, 5\], got \[2, 5, 5\]"),
    (lambda: text(weights(), TOKENS, mask=np.ones((5, 5))), TypeError, "a mask is bool"),
    (lambda: plot.plot_head(weights(3), TOKENS), ValueError, r"\[T, S\] with T = 5"),
    (lambda: plot.plot_heads(weights(3), TOKENS), ValueError, r"\[layers, N, T, S\]"),
    (lambda: plot.plot_training(weights(3), [1, 2], TOKENS), ValueError, "2 steps"),
    (lambda: plot.plot_heads(np.zeros((0, 2, 5, 5)), TOKENS), ValueError, "got"),
    (lambda: plot.plot_mask(np.ones((4, 5), bool), 5, 5), ValueError, "mask"),
    (lambda: plot.plot_mask(aj.causal(), 0), ValueError, "T must be at least 1"),
    (lambda: plot.plot_mask(aj.causal(), 5, block_size=(0, 1)), ValueError, "block_size must be at least 1"),
    (lambda: plot.plot_mask(aj.causal(), 5, block_size=2), TypeError, "block_size must be a pair"),
    (lambda: plot.plot_training(weights(3), [1, 2, 3], TOKENS, columns=0), ValueError, "columns must be at least 1"),
    (lambda: text(weights(), None), TypeError, "got NoneType"),
])  # fmt: skip
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
