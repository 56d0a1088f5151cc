"""Ends sessions and frees claims that no migration needs any more: left by a crash, or an agent away at the end.

A session of a migration that is gone or finished is ended by the decision that its VFIOSwitchover holds. A claim is
freed only if its migration is gone or finished AND the device's agent is connected and reports no session of it. Runs
on the leader.
"""

import asyncio
from collections.abc import Callable, Mapping

import structlog
from kubernetes.aio.client.exceptions import ApiException

from vfio_api.types import Command, Goal, MigrationKey, Outcome, Role, SessionReport
from vfio_operator import observe
from vfio_operator.channel import Agents
from vfio_operator.kube import API_ERRORS, OperatorApi, brief
from vfio_operator.observed import DeviceRecord

log = structlog.get_logger()
EVERY_SECONDS = 5.0
DEADLINE_MILLISECONDS = 30_000


class Janitor:
    """Looks at every claim from time to time. `active(uid)` tells whether a migration has a task."""

    def __init__(
        self,
        api: OperatorApi,
        agents: Agents,
        inventory: Mapping[tuple[str, str], DeviceRecord],
        active: Callable[[str], bool],
        epoch: Callable[[], int],
    ):
        self._api, self._agents, self._inventory, self._active = api, agents, inventory, active
        self._epoch = epoch

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            for node, report in self._agents.orphans(self._active):
                try:
                    await self._end(node, report)
                except API_ERRORS as error:
                    log.warning("session not looked at", node=node, uid=report.migration_uid, error=brief(error))
            for record in [r for r in self._inventory.values() if r.claim_uid and not self._active(r.claim_uid)]:
                try:
                    await self._look(record)
                except API_ERRORS as error:
                    log.warning("claim not looked at", device=record.object_name, error=brief(error))

    async def _look(self, record: DeviceRecord) -> None:
        if record.node not in self._agents.connected or self._in_session(record):
            return
        if await self._needed(record):
            return
        # compare-and-set on what the watch showed: a claim taken meanwhile stays
        await self._api.set_claim(record.object_name, record.resource_version, None)
        log.info("orphaned claim freed", device=record.object_name, migration=record.claim_name)

    async def _end(self, node: str, report: SessionReport) -> None:
        """Bring an orphaned session one step nearer to its end."""
        claims = [r for r in self._inventory.values() if r.node == node and r.claim_uid == report.migration_uid]
        if not claims or await self._needed(claims[0]):
            return
        namespace, _, name = claims[0].claim_name.partition("/")
        key = MigrationKey(report.migration_uid, namespace, name)
        switchover = observe.switchover_of(await self._api.switchover(key))
        decision = switchover.decision
        if switchover.exists and decision is None:
            # the migration vanished in its switchover and no leader was there to decide
            decision = observe.switchover_of(await self._api.decide(key, Outcome.ABORT)).decision
        goal = Goal.RELEASED
        if report.role is Role.SOURCE and decision is not Outcome.COMMIT and report.reached is not Goal.RUNNING:
            goal = Goal.RUNNING
        command = Command(key, report.role, goal, self._epoch(), report.sequence + 1, DEADLINE_MILLISECONDS, decision)
        self._agents.send(node, command)
        log.info("orphaned session told to end", node=node, migration=str(key), role=report.role.value, goal=goal.value)

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
