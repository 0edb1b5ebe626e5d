"""Errors that are shown as one line."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn


class InputError(Exception):
    """Says which file or field is wrong, and the fix. Exit status 2."""


class StoppedError(Exception):
    """Why a run had to stop, what is kept, and what to try. Exit status 1."""


def exit_status(run: Callable[[], int | None]) -> int:
    """What a command ends with: the status it returns, 0 for None, or that of its error, once that is shown."""
    try:
        return run() or 0
    except (InputError, StoppedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        say_no_more()
        return 1


def end_when_asked() -> None:
    """Have Ctrl-C and SIGTERM end this process at once. Of an exception, an import or a destructor that is interrupted
    may make another, or nothing."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    os.write(sys.stderr.fileno(), b"\ninterrupted\n")
    os._exit(128 + number)


def say_no_more() -> None:
    """Print to nowhere from here on, where nobody reads, as after `| head`; or Python says so again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
