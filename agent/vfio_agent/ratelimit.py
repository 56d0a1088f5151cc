"""A token bucket shared by the streams of one session."""

import threading
import time
from collections.abc import Callable

from vfio_api.types import BURST_SECONDS

MIN_CHUNK = 4096  # bytes
MIN_PIECE = 64  # bytes
MAX_PIECE = 1 << 20  # bytes
CHUNK_SECONDS = 0.02
PIECE_SECONDS = 0.01


class TokenBucket:
    """Lets `rate` bytes per second through, in bursts of at most `burst_seconds` worth; rate 0 lets all through.

    Over any second it is exceeded by a burst and a piece, 3 % together, and once by two bursts more (`switch_over`); a
    sender that is late by less than a burst makes up for it.
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
        self._changed = threading.Condition()
        self._switched_over = False

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

    @property
    def switched_over(self) -> bool:
        """Whether `switch_over` was called."""
        return self._switched_over

    def switch_over(self) -> None:
        """Devices begin to be down: once, two bursts are given, and at most one is kept. Any thread.

        So who waits may go on, unless many do, and a burst may follow. What is left for it otherwise depends on the
        moment, and so would the downtime, which nobody could forecast.
        """
        with self._changed:
            if not self._switched_over:
                self._switched_over = True
                self._fill(2 * self._burst)
                self._changed.notify_all()

    def hold(self, seconds: float, given_up: Callable[[], bool], *, switched_over: bool) -> None:
        """Wait so long as `take` has said; no longer once it is given up, which `wake` has it look at, and for what is
        left to wait for once the devices begin to be down. switched_over: as it was before `take`.
        """
        with self._changed:
            self._changed.wait_for(lambda: given_up() or self._switched_over != switched_over, seconds)
            if self._switched_over != switched_over:
                self._changed.wait_for(given_up, self._owed())

    def wake(self) -> None:
        """Have those who wait look at whether they have given up."""
        with self._changed:
            self._changed.notify_all()

    def take(self, count: int) -> float:
        """Account for `count` bytes; returns the seconds to wait before sending them."""
        if self._rate <= 0:
            return 0.0
        with self._changed:
            self._fill()
            self._level -= count
            return self._owed()

    def has(self, count: int) -> bool:
        """Whether `take` of so many bytes would let them through at once."""
        if self._rate <= 0:
            return True
        with self._changed:
            self._fill()
            return self._level >= count

    def _fill(self, given: float = 0.0) -> None:
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._then) * self._rate + given)
        self._then = now

    def _owed(self) -> float:
        return max(0.0, -self._level / self._rate) if self._rate > 0 else 0.0
