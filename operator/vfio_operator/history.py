"""What this leader has measured lately, for forecasts: the median of the last few of each kind.

Lately is two minutes, well below the default convergenceTimeoutSeconds, and a step is believed when it was measured
twice: slow arcs must not keep every later migration from converging, when nothing new would be measured either.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from statistics import median_low
from typing import Generic, TypeVar

from vfio_api.types import Role
from vfio_operator.forecast import SMALL_BYTES, between, kinds_of, shape, slowest
from vfio_operator.observed import Known, Observed, Shape

KEPT = 8
LATELY_SECONDS = 120.0
_Key = TypeVar("_Key")


class _Recent(Generic[_Key]):
    """The last KEPT measurements of each thing, with when they were made."""

    def __init__(self) -> None:
        self._made: defaultdict[_Key, deque[tuple[float, int]]] = defaultdict(lambda: deque(maxlen=KEPT))

    def add(self, key: _Key, moment: float, value: int) -> None:
        self._made[key].append((moment, value))

    def median(self, key: _Key, since: float, at_least: int) -> int | None:
        values = [value for at, value in self._made.get(key, ()) if at >= since]
        return median_low(values) if len(values) >= at_least else None

    def measured(self) -> tuple[_Key, ...]:
        return tuple(self._made)


class _Medians(Mapping[_Key, int]):
    """The median of what was measured of each thing since a moment; worked out when it is asked for.

    There are some for every node and every kind of device, of which a forecast looks at a few.
    """

    def __init__(self, recent: _Recent[_Key], since: float, at_least: int = 1):
        self._recent, self._since, self._at_least = recent, since, at_least

    def __getitem__(self, key: _Key) -> int:
        found = self._recent.median(key, self._since, self._at_least)
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[_Key]:
        return (key for key in self._recent.measured() if key in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class History:
    """Fed from the event loop; `known` is for a plan that is made at once. Durations in microseconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._round_trips: _Recent[str] = _Recent()
        self._writes: _Recent[str] = _Recent()
        self._steps: _Recent[tuple[str, str, str]] = _Recent()
        self._rates: _Recent[str] = _Recent()
        self._between: _Recent[Shape] = _Recent()

    def round_trip(self, node: str, microseconds: int) -> None:
        """A message to the node's agent and its answer took this long."""
        self._round_trips.add(node, self._clock(), microseconds)

    def wrote(self, microseconds: int) -> None:
        """A small object was written: a decision, or the Lease, whose renewals show what a write takes just now."""
        self._writes.add("", self._clock(), microseconds)

    def succeeded(
        self, observed: Observed, downtime: int | None = None, left_bytes: int | None = None, *, decided_in: int = 0
    ) -> None:
        """A migration has ended well: keep how long its steps took, how fast its links were, and what else its downtime
        was made of. downtime: None if there was none, or if it was not of one leader that went straight on: another
        one's election is no part of what the next downtime will be. decided_in: what the decision's write took of it.
        left_bytes: what was to be sent when it was stopped, if that is known; how long a transfer took is kept of small
        ones only, as the rate does not tell it of those.

        Nothing is learned from one that failed: what made it fail may be what made it slow.
        """
        kinds, moment = kinds_of(observed), self._clock()
        small = left_bytes is not None and left_bytes < SMALL_BYTES
        for participant in observed.participants:
            report = participant.report
            if report is None:
                continue
            for step, microseconds in slowest(report).items():
                if step == "transfer" and not small:
                    continue
                self._steps.add((participant.node, kinds.get(participant.node, ""), step), moment, microseconds)
            if participant.role is Role.SOURCE and report.link_bytes_per_second:
                self._rates.add(participant.node, moment, report.link_bytes_per_second)
        if downtime is not None:
            self._between.add(shape(observed, observed.pairs), moment, between(observed, downtime, decided_in))

    @property
    def known(self) -> Known:
        """All of it, as of now."""
        since = self._clock() - LATELY_SECONDS
        return Known(
            round_trips=_Medians(self._round_trips, since),
            decision=self._writes.median("", since, 1) or 0,
            steps=_Medians(self._steps, since, at_least=2),
            rates=_Medians(self._rates, since),
            between=_Medians(self._between, since, at_least=2),
        )
