"""What this leader has measured lately, for forecasts: the median of the last few of each kind.

Lately is two minutes, well below the default convergenceTimeoutSeconds, and a step is believed when it was measured
twice: slow arcs must not keep every later migration from converging, when nothing new would be measured either.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable
from statistics import median_low
from types import MappingProxyType
from typing import Generic, TypeVar

from vfio_api.types import Role
from vfio_operator.forecast import kinds_of
from vfio_operator.observed import Known, Observed

KEPT = 8
LATELY_SECONDS = 120.0
REFRESH_SECONDS = 1.0
_Key = TypeVar("_Key")


class _Recent(Generic[_Key]):
    """The last KEPT measurements of each thing, with when they were made."""

    def __init__(self) -> None:
        self._made: defaultdict[_Key, deque[tuple[float, int]]] = defaultdict(lambda: deque(maxlen=KEPT))

    def add(self, key: _Key, moment: float, value: int) -> None:
        self._made[key].append((moment, value))

    def medians(self, since: float, at_least: int = 1) -> MappingProxyType[_Key, int]:
        lately = {key: [v for at, v in made if at >= since] for key, made in self._made.items()}
        return MappingProxyType({key: median_low(values) for key, values in lately.items() if len(values) >= at_least})


class History:
    """Fed from the event loop; `known` is the frozen view of the moment. Durations in microseconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._round_trips: _Recent[str] = _Recent()
        self._writes: _Recent[str] = _Recent()
        self._steps: _Recent[tuple[str, str, str]] = _Recent()
        self._rates: _Recent[str] = _Recent()
        self._known: Known | None = None
        self._known_at = 0.0

    def round_trip(self, node: str, microseconds: int) -> None:
        """A message to the node's agent and its answer took this long."""
        self._round_trips.add(node, self._clock(), microseconds)
        self._known = None

    def wrote(self, microseconds: int) -> None:
        """A small object was written: a decision, or the Lease, whose renewals show what a write takes just now."""
        self._writes.add("", self._clock(), microseconds)
        self._known = None

    def succeeded(self, observed: Observed) -> None:
        """A migration has ended well: keep how long its steps took, and how fast its links were.

        Nothing is learned from one that failed: what made it fail may be what made it slow.
        """
        kinds, moment = kinds_of(observed), self._clock()
        for participant in observed.participants:
            report = participant.report
            if report is None:
                continue
            slowest: dict[str, int] = {}
            for timing in report.timings:
                step = timing.step.partition("/")[0]  # a load is timed for each device
                slowest[step] = max(slowest.get(step, 0), timing.microseconds)
            for step, microseconds in slowest.items():
                self._steps.add((participant.node, kinds.get(participant.node, ""), step), moment, microseconds)
            if participant.role is Role.SOURCE and report.link_bytes_per_second:
                self._rates.add(participant.node, moment, report.link_bytes_per_second)
        self._known = None

    @property
    def known(self) -> Known:
        """All of it, frozen."""
        moment = self._clock()
        if self._known is None or moment - self._known_at > REFRESH_SECONDS:
            since = moment - LATELY_SECONDS
            self._known_at = moment
            self._known = Known(
                round_trips=self._round_trips.medians(since),
                decision=self._writes.medians(since).get("", 0),
                steps=self._steps.medians(since, at_least=2),
                rates=self._rates.medians(since),
            )
        return self._known
