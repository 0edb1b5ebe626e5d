"""The pictures a run leaves behind."""

from pathlib import Path

from matplotlib.figure import Figure


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
    panel.plot(*zip(*train, strict=True), color="tab:blue", alpha=0.25, linewidth=0.8)
    panel.plot([step for step, _ in train], smooth, color="tab:blue", label="training")
    panel.plot(*zip(*validation, strict=True), color="tab:orange", marker="o", markersize=4, label="validation")
    panel.annotate(
        f"{validation[-1][1]:.3f}", validation[-1], xytext=(0, 8), textcoords="offset points", ha="right", fontsize=9
    )
    panel.set(xlabel="step", ylabel="loss, nats per token", title="Learning")
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(path, dpi=150)
