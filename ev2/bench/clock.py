"""How a call is timed: some that do not count, then enough for a percentile."""

import time
from collections.abc import Callable
from typing import Any

WARM_UP_CALLS = 3
# Calls that count: until this many, or this long and enough for a percentile.
MAX_CALLS, MAX_SECONDS, MIN_CALLS = 100, 20.0, 10


def time_calls(call: Callable[[], Any]) -> list[float]:
    """Returns the seconds of each call, after a few that do not count."""
    for _ in range(WARM_UP_CALLS):
        call()
    seconds: list[float] = []
    while len(seconds) < MIN_CALLS or (
        len(seconds) < MAX_CALLS and sum(seconds) < MAX_SECONDS
    ):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds
