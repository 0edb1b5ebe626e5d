"""Timing that a noisy machine cannot bend far: every contender runs in every round, in a random order."""

import random
import time
from collections.abc import Callable


def seconds(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a call of each contender, round by round, after two calls to warm up.

    Before each there is a pause, for the threads of one library's pool spin for a while after their work and would take
    the cores from the next, and a call that is not timed, so that none pays for the gigabytes another gives back.
    """
    for run in contenders.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(contenders), len(contenders)):
            time.sleep(0.02)
            contenders[name]()
            start = time.perf_counter()
            contenders[name]()
            times[name].append(time.perf_counter() - start)
    return times
