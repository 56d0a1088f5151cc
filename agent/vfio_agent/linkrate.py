"""How fast a link has been lately: bytes over the time in which at least one of its streams was busy with them."""

import threading
import time
from collections import deque
from collections.abc import Callable
from math import exp

# Busy spans that are remembered, to tell what of a new one is counted already. Those of before are taken for one.
_SPANS = 256
# A stream that goes from one piece to the next is not idle in between.
_TURN_SECONDS = 0.001


class LinkMeter:
    """Shared by the streams of one link; thread-safe.

    A stream tells of each piece when it is through, with the time since when it was busy with it: reading it, waiting
    for the rate limit, sending. Time in which several streams were busy counts once, 1 ms or more in which none was not
    at all. What is longer ago than `window_seconds` of busy time weighs little (it decays exponentially). ceiling:
    bytes per second that the link cannot exceed, 0 for none.
    """

    def __init__(self, *, ceiling: int = 0, window_seconds: float = 2.0, clock: Callable[[], float] = time.monotonic):
        self._ceiling, self._window, self._clock = ceiling, window_seconds, clock
        self._spans: deque[tuple[float, float]] = deque()  # more than a turn apart, in order
        self._bytes = self._seconds = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        """The clock's time in seconds, for `carried`."""
        return self._clock()

    def carried(self, began: float, count: int) -> None:
        """A stream was busy from `began` until now and carried `count` bytes."""
        with self._lock:
            now = self._clock()
            start, known = began, 0.0
            while self._spans and self._spans[-1][1] + _TURN_SECONDS > start:
                earlier, later = self._spans.pop()
                known += later - earlier
                start = min(start, earlier)
            self._spans.append((start, now))
            if len(self._spans) > _SPANS:
                # forgotten, it would be counted again by a slow stream that was busy all the while
                first, second = self._spans.popleft(), self._spans.popleft()
                self._spans.appendleft((first[0], second[1]))
            passed = max(0.0, now - start - known)
            kept = exp(-passed / self._window)
            self._bytes = self._bytes * kept + count
            self._seconds = self._seconds * kept + passed

    def bytes_per_second(self) -> int:
        """The recent rate; 0 if nothing was measured yet."""
        with self._lock:
            rate = int(self._bytes / self._seconds) if self._seconds > 0 else 0
        return min(rate, self._ceiling) if self._ceiling > 0 else rate
