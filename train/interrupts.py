"""Ctrl-C and SIGTERM: finish the step, save, and say by the exit status what it was."""

import signal
from types import FrameType


class Interrupts:
    """Notes the first signal, for the loop to look at; a second one stops at once. A context manager.

    `received` is the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "Interrupts":
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
