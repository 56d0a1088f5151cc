"""A token bucket shared by the streams of one session."""

import threading
import time
from collections.abc import Callable

MIN_CHUNK = 4096  # bytes
MIN_PIECE = 64  # bytes
MAX_PIECE = 1 << 20  # bytes
BURST_SECONDS = 0.02
CHUNK_SECONDS = 0.02
PIECE_SECONDS = 0.01


class TokenBucket:
    """Lets `rate` bytes per second through, in bursts of at most `burst_seconds` worth; rate 0 lets all through.

    Over any second it is exceeded by a burst and a piece, 3 % together; a sender that is late by less than a burst
    makes up for it.
    """

    def __init__(
        self,
        rate: int,
        *,
        burst_seconds: float = BURST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._rate, self._burst, self._clock = rate, rate * burst_seconds, clock
        self._level, self._then = self._burst, clock()
        self._lock = threading.Lock()

    @property
    def rate(self) -> int:
        """Bytes per second, 0 for no limit."""
        return max(0, self._rate)

    def worth(self, seconds: float, at_most: int) -> int:
        """The bytes that are let through in `seconds`, but no more than `at_most`."""
        return min(at_most, int(self._rate * seconds)) if self._rate > 0 else at_most

    def chunk(self, at_most: int) -> int:
        """How much to read at once: little enough for the limit to be even."""
        return max(MIN_CHUNK, self.worth(CHUNK_SECONDS, at_most))

    def piece(self) -> int:
        """How much to take and send at once."""
        return max(MIN_PIECE, self.worth(PIECE_SECONDS, MAX_PIECE))

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
