"""16 heads of size 4 against 4 of size 16: whether a query of 4 numbers is enough to find a key."""

from train.experiments.comparison import compare
from train.experiments.report import Report


def run(report: Report) -> None:
    """Train with many very narrow heads, and with a few wider ones."""
    compare(report, 16, 4, embed_dim=64, steps=800)
