"""Where every migration of this leader is, for gauges: counted when they are scraped, so that none is left over."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from vfio_api.models_status import Phase

UNDERWAY_PHASES = tuple(phase for phase in Phase if phase not in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED))


class Wait(StrEnum):
    """What a migration that holds no device yet waits for."""

    API_SERVER = "ApiServer"
    INVENTORY = "Inventory"
    TURN = "Turn"
    CLAIMS = "Claims"
    RESTART = "Restart"


# step of the plan -> what it waits for
WAITS = {
    "Authorize": Wait.API_SERVER,
    "FindPod": Wait.API_SERVER,
    "AddFinalizer": Wait.API_SERVER,
    "PersistPairs": Wait.API_SERVER,
    "AwaitInventory": Wait.INVENTORY,
    "AwaitAgents": Wait.INVENTORY,
    "AwaitTurn": Wait.TURN,
    "Claim": Wait.CLAIMS,
}


@dataclass(frozen=True, slots=True)
class _Place:
    phase: Phase | None
    since: float
    wait: Wait | None


class Underway:
    """Written on the event loop, read by whatever thread serves the metrics. clock: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._places: dict[str, _Place] = {}

    def at(self, uid: str, phase: Phase, step: str) -> None:
        """A migration has come to a step of the plan."""
        before, wait = self._places.get(uid), WAITS.get(step)
        stays = before is not None and before.phase is phase and (before.wait is Wait.TURN) == (wait is Wait.TURN)
        since = before.since if before is not None and stays else self._clock()
        self._places[uid] = _Place(phase, since, wait)

    def failed(self, uid: str) -> None:
        """The task of a migration ended on a bug and will be started again."""
        self._places[uid] = _Place(None, self._clock(), Wait.RESTART)

    def gone(self, uid: str) -> None:
        """A migration is not under way here any more."""
        self._places.pop(uid, None)

    def clear(self) -> None:
        """This replica does not lead any more."""
        self._places.clear()

    def count(self, phase: Phase) -> int:
        """How many are in a phase."""
        return sum(1 for place in tuple(self._places.values()) if place.phase is phase)

    def oldest(self, phase: Phase) -> float:
        """Seconds for which the longest has been in a phase, 0 if none is. Who waits for its turn does not count."""
        now, places = self._clock(), tuple(self._places.values())
        ages = (now - each.since for each in places if each.phase is phase and each.wait is not Wait.TURN)
        return max(ages, default=0.0)

    def waiting(self, wait: Wait) -> int:
        """How many wait for this."""
        return sum(1 for place in tuple(self._places.values()) if place.wait is wait)
