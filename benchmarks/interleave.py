"""Timing that a noisy machine cannot bend far: every contender runs in every round, in a random order."""

import random
import time
from collections.abc import Callable

UNTIMED, TIMED = 0.05, 0.01
"""Seconds for which a contender runs before it is timed, and for which it is timed: for the time of a call at least."""


def seconds(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a call of each contender, round by round.

    What precedes is not timed: threads of another library's pool spin for a while after their work, a core that had
    nothing to do takes milliseconds to be as fast as before, and the gigabytes another had are given back.
    """
    for run in contenders.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(contenders), len(contenders)):
            _seconds_a_call(contenders[name], UNTIMED)
            times[name].append(_seconds_a_call(contenders[name], TIMED))
    return times


def _seconds_a_call(run: Callable[[], object], least: float) -> float:
    """Of as many calls, one after another, as take so many seconds."""
    start, calls, passed = time.perf_counter(), 0, 0.0
    while not calls or passed < least:
        run()
        calls, passed = calls + 1, time.perf_counter() - start
    return passed / calls
