"""Decisions that are kept beyond their migrations' ends: a session that is left may still have to be told of them.

A migration can end with an agent away, or with a target that cannot start. Whoever comes back later obeys only what the
VFIOSwitchover says, so that must not go with the VFIOMigration's object. Runs on the leader.
"""

from collections.abc import Callable

import structlog

from vfio_api.types import MigrationKey
from vfio_operator import observe
from vfio_operator.channel import Agents
from vfio_operator.kube import API_ERRORS, OperatorApi, brief
from vfio_operator.kube_lists import Lists

log = structlog.get_logger()


class Kept:
    """The VFIOSwitchovers that our finalizer holds after the end. An earlier leader's are found by `look`.

    active(uid): whether a migration has a task, which releases its switchover itself.
    """

    def __init__(self, api: OperatorApi, agents: Agents, active: Callable[[str], bool]):
        self._api, self._agents, self._active = api, agents, active
        self._keys: dict[str, MigrationKey] = {}
        self._recalled = False

    def keep(self, key: MigrationKey) -> None:
        """A migration has ended, and sessions of it may be left."""
        if key.uid not in self._keys:  # what is left is tried again and again
            log.info("the decision is kept: sessions may be left", migration=str(key), uid=key.uid)
        self._keys[key.uid] = key

    async def look(self) -> None:
        """Let go of those that no session can need any more. Raises API_ERRORS if those of before cannot be listed."""
        if not self._recalled:
            async for body in Lists(self._api).switchovers(ended=False):
                key = MigrationKey(
                    body["metadata"]["name"], body["metadata"]["namespace"], body["spec"]["migrationName"]
                )
                if observe.has_finalizer(body) and not self._active(key.uid):
                    self._keys.setdefault(key.uid, key)
            self._recalled = True
            return  # agents have not dialled yet
        for uid, key in list(self._keys.items()):
            if self._active(uid) or self._agents.has_session(uid):
                continue
            try:
                if await self._over(key):
                    await self._api.release_switchover(key)
                    del self._keys[uid]
                    log.info("the decision is not needed any more", migration=str(key), uid=uid)
            except API_ERRORS as error:  # the others are looked at all the same
                log.warning("a kept decision was not looked at", migration=str(key), uid=uid, error=brief(error))

    async def _over(self, key: MigrationKey) -> bool:
        """Whether a migration has ended and none of its nodes can have a session of it."""
        body = await self._api.switchover(key)
        if body is None:
            return True
        nodes = {*body["spec"]["sourceNodes"], *body["spec"]["targetNodes"]}
        for node in sorted(nodes - self._agents.connected):  # nobody knows what an agent has that is away
            if await self._api.node_exists(node):
                return False
        if self._agents.has_session(key.uid):  # one that has come meanwhile
            return False
        found = await self._api.migration_or_none(key)
        return found is None or observe.is_finished(found)
