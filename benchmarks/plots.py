"""A plot of every table in which others stand beside ours."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.page import by_table, file_name, peers
from benchmarks.results import OURS, Results, Row, ratio

GREY = "#808080"  # is read on white and on black
LOOKS = {  # the same in every plot
    f"{OURS}, reference": (GREY, "x"),
    "torch": ("#d9692b", "o"), "torch, eager": ("#d9692b", "o"), "torch.compile": ("#b8891c", "D"),
    "jax.nn": ("#3b82c4", "s"), "nnx function": ("#2a9d74", "^"), "tokamax": ("#a663c7", "v"),
    "equinox": ("#d14d72", "P"), "transformers": ("#d9692b", "o"),
}  # fmt: skip
STYLE = {
    "svg.hashsalt": "attention_jax", "font.size": 10, "font.family": "DejaVu Sans", "text.color": GREY,
    "axes.labelcolor": GREY, "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
}  # fmt: skip


def write(results: Results, folder: Path) -> None:
    """One SVG a table, the same bytes for the same rows."""
    tables = {name: cases for _, rows in results.values() for name, cases in by_table(rows).items()}
    with matplotlib.rc_context(STYLE):
        for name, cases in tables.items():
            if peers(cases):
                figure = plot(cases)
                figure.savefig(folder / file_name(name), transparent=True, metadata={"Date": None, "Creator": None})


def plot(cases: dict[str, list[Row]]) -> Figure:
    """A case a line; every other implementation at its multiple of ours, with the middle half of the rounds."""
    names = peers(cases)
    width = max(5, 3 + 0.09 * max(map(len, cases)))  # the label below is not shortened
    figure = Figure(figsize=(width, 1.3 + 0.2 * len(names) + 0.35 * len(cases)), layout="constrained")
    panel = figure.subplots()
    for line, (ours, *others) in enumerate(cases.values()):
        for row in others:
            low, median, high = ratio(row, ours)
            colour, marker = LOOKS[row.implementation]
            panel.plot([low, high], [line, line], color=colour, alpha=0.6)
            panel.plot(median, line, marker, color=colour, label=row.implementation, markersize=6)
    panel.axvline(1, color=GREY, linewidth=1)
    what = "memory" if ours.unit == "MiB" else "time"
    panel.set(xscale="log", xlabel=f"multiples of our {what}: beyond 1, ours takes less", ylim=(len(cases) - 0.5, -0.5))
    low, high = panel.get_xlim()
    panel.set_xlim(min(low, 0.45), max(high, 2.2))  # however near they are, with the marks of half and twice
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_yticks(range(len(cases)), list(cases))
    panel.spines[["top", "right"]].set_visible(False)
    handles = dict(reversed(pair) for pair in zip(*panel.get_legend_handles_labels(), strict=True))
    figure.legend([handles[name] for name in names], names, loc="outside upper left", ncols=2, frameon=False)
    return figure
