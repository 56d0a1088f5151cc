"""Looks after what no task looks after: sessions and claims left by a crash, or by an agent that was away at the end.

What is left of a migration that is gone or finished is ended by the same ladders as any other (`plan`), in a task of
its own: so barriers, the decision and the order of release hold here too. A claim is freed only if its migration is
gone or finished AND the device's agent is connected and reports no session of it. Runs on the leader.
"""

import asyncio
from collections.abc import Callable, Mapping

import structlog

from vfio_api.types import Goal, MigrationKey, Role, SessionReport
from vfio_operator import observe
from vfio_operator.channel import Agents
from vfio_operator.kept import Kept
from vfio_operator.kube import API_ERRORS, Json, OperatorApi, brief
from vfio_operator.kube_claims import KubeClaims
from vfio_operator.kube_lists import Lists
from vfio_operator.observed import DeviceRecord, Pair
from vfio_operator.orphans import pairs_of

log = structlog.get_logger()
AGAIN_SECONDS = 30.0  # what could not be ended is not tried again at once


class Janitor:
    """Looks from time to time. active(uid): whether a migration has a task; undertake: start one for what is left."""

    def __init__(
        self,
        api: OperatorApi,
        agents: Agents,
        inventory: Mapping[tuple[str, str], DeviceRecord],
        active: Callable[[str], bool],
        undertake: Callable[[MigrationKey, Json | None, tuple[Pair, ...]], None],
        kept: Kept,
    ):
        self._api, self._agents, self._inventory, self._active = api, agents, inventory, active
        self._undertake, self._lists, self._claims = undertake, Lists(api), KubeClaims(api)
        self._kept = kept
        self._tried: dict[str, float] = {}

    async def run(self, every_seconds: float) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._kept.look()
            except API_ERRORS as error:
                log.warning("kept decisions not looked at", error=brief(error))
            await asyncio.sleep(every_seconds)
            sessions: dict[str, list[tuple[str, SessionReport]]] = {}
            for node, report in self._agents.orphans(self._active):
                sessions.setdefault(report.migration_uid, []).append((node, report))
            for uid, left in sessions.items():
                try:
                    await self._end(uid, left)
                except API_ERRORS as error:
                    log.warning("sessions not looked at", uid=uid, error=brief(error))
            for record in [r for r in self._inventory.values() if r.claim_uid and not self._active(r.claim_uid)]:
                try:
                    await self._look(record)
                except API_ERRORS as error:
                    log.warning("claim not looked at", device=record.object_name, error=brief(error))

    async def _look(self, record: DeviceRecord) -> None:
        if record.node not in self._agents.connected or self._in_session(record):
            return
        namespace, _, name = record.claim_name.partition("/")
        body = await self._api.migration_or_none(MigrationKey(record.claim_uid, namespace, name))
        if body is not None and not observe.is_finished(body):
            return
        # compare-and-set on what the watch showed: a claim taken meanwhile stays
        await self._claims.set_claim(record.object_name, record.resource_version, None)
        log.info("orphaned claim freed", device=record.object_name, migration=record.claim_name)

    async def _end(self, uid: str, sessions: list[tuple[str, SessionReport]]) -> None:
        """Have the sessions of a migration that is gone or finished brought to their end."""
        moment = asyncio.get_running_loop().time()
        self._tried = {tried: at for tried, at in self._tried.items() if moment - at < AGAIN_SECONDS}
        if uid in self._tried:
            return
        switchover = await self._lists.switchover_of(uid)
        key = self._key(uid, switchover)
        body = await (self._api.migration_or_none(key) if key is not None else self._lists.migration_of(uid))
        if body is not None and not observe.is_finished(body):
            return  # it has a task soon: this replica has just been elected
        key = observe.key_of(body) if body is not None else key or MigrationKey(uid, "", "")
        spec = (switchover or {}).get("spec", {})
        pairs = observe.persisted_pairs(body) if body is not None else ()
        pairs = pairs or pairs_of(sessions, spec.get("sourceNodes", ()), spec.get("targetNodes", ()))
        self._tried[uid] = moment
        log.info("orphaned sessions are ended", migration=str(key), uid=uid, nodes=[node for node, _ in sessions])
        self._undertake(key, body, pairs)

    def _key(self, uid: str, switchover: Json | None) -> MigrationKey | None:
        if switchover is not None:
            return MigrationKey(uid, switchover["metadata"]["namespace"], switchover["spec"]["migrationName"])
        claim = next((r.claim_name for r in self._inventory.values() if r.claim_uid == uid), "")
        namespace, _, name = claim.partition("/")
        return MigrationKey(uid, namespace, name) if claim else None

    def _in_session(self, record: DeviceRecord) -> bool:
        reports = (self._agents.report(record.node, record.claim_uid, role) for role in Role)
        return any(report is not None and report.reached is not Goal.RELEASED for report in reports)
