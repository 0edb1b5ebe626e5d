"""What a run says of itself: one line of JSON a record, and progress on the terminal."""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from configs.schema import Config
from train.errors import InputError, say_no_more
from train.evaluate import describe

PLAIN_LINES = 20
WIDE = 60
"""Columns of a terminal that has room for a bar and the speed, too."""


class Speed(NamedTuple):
    """What a step is in tokens, and in operations."""

    tokens: int
    flops: float
    peak: float | None
    """Operations a second that the devices could do, if that is known."""

    def describe(self, rate: float) -> str:
        """So many steps a second in words, with the share of the peak that they use (arXiv:2204.02311).

        >>> Speed(1024, 5e9, 1e12).describe(20.0)
        '20,480 tokens/s, 10.0 % of peak'
        """
        share = "" if self.peak is None else f", {100 * rate * self.flops / self.peak:.1f} % of peak"
        return f"{rate * self.tokens:,.0f} tokens/s{share}"


class Terminal(Console):
    """What is said to who reads it; a run does not end because nobody does, as after `| head`."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        say_no_more()


class Metrics:
    """Appends to `metrics.jsonl`, and shows a progress bar; plain lines where there is no terminal.

    A context manager; the bar is gone when it ends.
    """

    def __init__(self, path: Path, config: Config, speed: Speed, done: int = 0):
        """`done` steps have their records in the file already; what comes after them is cut off."""
        path.touch()
        lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        try:
            self.records = [record for record in map(json.loads, lines) if done and record["step"] <= done]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not the records of a run ({error}); put it right to go on") from error
        missing = set(range(1, done + 1)).difference(each["step"] for each in self.records if "train_loss" in each)
        if missing:
            print(f"{path}: {len(missing)} of {done} steps are missing, from step {min(missing)} on", file=sys.stderr)
        os.truncate(path, sum(map(len, lines[: len(self.records)])))  # at once: a kill here loses nothing
        self.file = path.open("a", encoding="utf-8")
        self.console = Terminal(file=sys.stdout, quiet=config.quiet, highlight=False, soft_wrap=True)
        self.steps, self.speed = config.steps, speed
        self.previous: float | None = None
        self.seconds, self.timed = 0.0, 0
        self.wide = self.console.width >= WIDE
        columns = (MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        if self.wide:
            columns = (BarColumn(), *columns)
        live = self.console.is_terminal and not config.quiet
        self.progress = Progress(*columns, console=self.console, disable=not live, transient=True)
        self.bar = self.progress.add_task("compiling", total=config.steps, completed=done)

    def __enter__(self) -> "Metrics":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()
        self.file.close()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False, emoji=False)

    def record(self, **values: float) -> None:
        """Write a record, of step and numbers, to the file; what is not finite, JSON cannot hold, and is null."""
        record = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.records.append(record)
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """Record and show a finished step."""
        now = time.monotonic()
        if self.previous is not None:
            self.seconds, self.timed = self.seconds + now - self.previous, self.timed + 1
        self.previous = now
        self.record(step=step, train_loss=loss, learning_rate=learning_rate)
        speed = self.speed.describe(self.timed / self.seconds) if self.timed else ""
        shown = f"loss {loss:.3f}" + (f"  {speed}" if self.wide else "")
        self.progress.update(self.bar, completed=step, description=shown)
        if self.progress.disable and step % max(self.steps // PLAIN_LINES, 1) == 0:
            self.say(f"step {step}/{self.steps}  loss {loss:.3f}  {speed}".rstrip())

    def validation(self, step: int, found: dict[str, float]) -> None:
        """Record and show what `evaluate` found; its time does not count as that of a step."""
        self.previous = None
        self.record(step=step, **found)
        self.say(f"step {step}/{self.steps}  {describe(found)}")

    def sync(self) -> None:
        """Have all records on disk, before a checkpoint, whose time does not count as that of a step."""
        self.previous = None
        os.fsync(self.file.fileno())
