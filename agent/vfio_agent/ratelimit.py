"""A token bucket shared by the streams of one session."""

import threading
import time
from collections.abc import Callable


class TokenBucket:
    """Lets `rate` bytes per second through, in bursts of at most `burst_seconds` worth; rate 0 lets all through."""

    def __init__(
        self,
        rate: int,
        *,
        burst_seconds: float = 0.02,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._rate, self._burst, self._clock = rate, rate * burst_seconds, clock
        self._level, self._then = self._burst, clock()
        self._lock = threading.Lock()

    def take(self, count: int) -> float:
        """Account for `count` bytes; returns the seconds to wait before sending them."""
        if self._rate <= 0:
            return 0.0
        with self._lock:
            now = self._clock()
            self._level = min(self._burst, self._level + (now - self._then) * self._rate)
            self._then = now
            self._level -= count
            return max(0.0, -self._level / self._rate)
