"""vfio-operator to which each VFIOMigration is first shown as its user made it, whatever has become of it since, and
once the agents are there: nothing else makes the leader wait, and look again.

No mutant of a rule: such a watch must not mislead a leader.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from vfio_api.names import FINALIZER
from vfio_operator.__main__ import main
from vfio_operator.coordinator import Coordinator

_told = Coordinator.migration
_shown = set[str]()
_held: dict[str, asyncio.Task[None]] = {}
AGENTS, POLL_SECONDS = 2, 0.05


def as_made(body: Mapping[str, Any]) -> dict[str, Any]:
    """The object before any operator wrote to it."""
    metadata = {**body["metadata"], "resourceVersion": "1"}
    metadata["finalizers"] = [each for each in metadata.get("finalizers", ()) if each != FINALIZER]
    return {key: value for key, value in body.items() if key != "status"} | {"metadata": metadata}


def behind(self: Coordinator, body: Mapping[str, Any], *, deleted: bool) -> None:
    if body["metadata"]["uid"] in _shown:
        _told(self, body, deleted=deleted)
    elif body["metadata"]["uid"] not in _held:
        task = asyncio.create_task(_show(self, body))
        _held[body["metadata"]["uid"]] = task


async def _show(self: Coordinator, body: Mapping[str, Any]) -> None:
    while len(self.agents.connected) < AGENTS:  # noqa: ASYNC110 - the product has no event for it
        await asyncio.sleep(POLL_SECONDS)
    _shown.add(body["metadata"]["uid"])
    _told(self, as_made(body), deleted=False)


if __name__ == "__main__":
    Coordinator.migration = behind  # type: ignore[method-assign]
    main()
