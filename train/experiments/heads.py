"""1 head against 8, of the same channels (Vaswani et al. 2017, arXiv:1706.03762, table 3, rows A)."""

from train.experiments.comparison import compare
from train.experiments.report import Report


def run(report: Report) -> None:
    """Train with one wide head, and with eight narrow ones."""
    compare(report, 1, 8, embed_dim=64, steps=800)
