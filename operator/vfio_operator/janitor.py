"""Frees claims that no migration needs any more: left by a crash, a restore, or an agent that was away at the end.

A claim is freed only if its migration is gone or finished AND the device's agent is connected and reports no session
of it. Runs on the leader.
"""

import asyncio
from collections.abc import Callable, Mapping

import structlog
from kubernetes.aio.client.exceptions import ApiException

from vfio_api.types import Goal, MigrationKey, Role
from vfio_operator import observe
from vfio_operator.channel import Agents
from vfio_operator.kube import OperatorApi, brief
from vfio_operator.observed import DeviceRecord

log = structlog.get_logger()
EVERY_SECONDS = 5.0


class Janitor:
    """Looks at every claim from time to time. `active(uid)` tells whether a migration has a task."""

    def __init__(
        self,
        api: OperatorApi,
        agents: Agents,
        inventory: Mapping[tuple[str, str], DeviceRecord],
        active: Callable[[str], bool],
    ):
        self._api, self._agents, self._inventory, self._active = api, agents, inventory, active

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            for record in [r for r in self._inventory.values() if r.claim_uid and not self._active(r.claim_uid)]:
                try:
                    await self._look(record)
                except (ApiException, OSError, TimeoutError) as error:
                    log.warning("claim not looked at", device=record.object_name, error=brief(error))

    async def _look(self, record: DeviceRecord) -> None:
        if record.node not in self._agents.connected or self._in_session(record):
            return
        if await self._needed(record):
            return
        # compare-and-set on what the watch showed: a claim taken meanwhile stays
        await self._api.set_claim(record.object_name, record.resource_version, None)
        log.info("orphaned claim freed", device=record.object_name, migration=record.claim_name)

    def _in_session(self, record: DeviceRecord) -> bool:
        reports = (self._agents.report(record.node, record.claim_uid, role) for role in Role)
        return any(report is not None and report.reached is not Goal.RELEASED for report in reports)

    async def _needed(self, record: DeviceRecord) -> bool:
        namespace, _, name = record.claim_name.partition("/")
        try:
            body = await self._api.migration(MigrationKey(record.claim_uid, namespace, name))
        except ApiException as error:
            if error.status == 404:
                return False
            raise
        return body["metadata"]["uid"] == record.claim_uid and not observe.is_finished(body)
