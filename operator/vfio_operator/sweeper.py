"""Looks after finished migrations and evacuations: deletes those whose time is over, and keeps their status current.

Finished migrations are out of the tasks' watch; they have one of their own, of which only those are remembered that
are to be looked at, now or later: thousands that are to be kept cost nothing. Before anything is written, an object is
read again. One that has the label but is not finished, as a copied manifest has, loses the label, so that the tasks'
watch sees it. Runs on the leader.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import structlog
from kubernetes.aio.client.exceptions import ApiException

from vfio_api.reasons import EventReason
from vfio_api.types import MigrationKey
from vfio_operator import observe
from vfio_operator.kube import API_ERRORS, OperatorApi, brief
from vfio_operator.kube_evacuations import KubeEvacuations
from vfio_operator.kube_lists import DELETED, Lists
from vfio_operator.metrics import OperatorMetrics

log = structlog.get_logger()
EVERY_SECONDS = 10.0
# What a watch may end with; ValueError: a line that is no event, or longer than any object.
WATCH_ERRORS = (*API_ERRORS, ValueError)
Body = Mapping[str, Any]


class Sweeper:
    """Does what the ttlSecondsAfterFinished and the generation of finished objects ask for.

    evacuations: those that have ended, as the watch has them.
    """

    def __init__(self, api: OperatorApi, metrics: OperatorMetrics, evacuations: Callable[[], Iterable[Body]]):
        self._api, self._lists, self._metrics = api, Lists(api), metrics
        self._evacuations, self._ended = KubeEvacuations(api), evacuations
        self._due: dict[str, tuple[datetime, MigrationKey]] = {}  # by UID: when it is to be looked at

    async def run(self) -> None:
        """Until cancelled. An object that cannot be looked after does not keep the others from it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._sweep_again_and_again())

    async def _follow(self) -> None:
        while True:
            self._due.clear()  # the list that comes first has all of them
            try:
                async for kind, body in self._lists.follow_finished():
                    self.seen(body, deleted=kind == DELETED)
            except WATCH_ERRORS as error:
                log.warning("finished migrations not watched", error=brief(error))
            await asyncio.sleep(EVERY_SECONDS)

    def seen(self, body: Body, *, deleted: bool) -> None:
        """A migration with the label of finished ones was seen, or is not there any more, or has the label no more."""
        key, due = observe.key_of(body), None if deleted else observe.due_of(body)
        if due is None:
            self._due.pop(key.uid, None)
        else:
            self._due[key.uid] = due, key

    async def _sweep_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.sweep(datetime.now(UTC))

    async def sweep(self, moment: datetime) -> None:
        """Look after what is due at `moment`."""
        for uid, (due, key) in [each for each in self._due.items() if each[1][0] <= moment]:
            if self._due.pop(uid, None) is None:  # it was deleted meanwhile
                continue
            try:
                await self._look(key)
            except API_ERRORS as error:
                if isinstance(error, ApiException) and error.status == HTTPStatus.NOT_FOUND:
                    continue
                self._due.setdefault(uid, (due, key))
                if not isinstance(error, ApiException) or error.status != HTTPStatus.CONFLICT:  # it has changed
                    log.warning("finished migration not looked after", migration=str(key), error=brief(error))
        for body in [each for each in self._ended() if observe.is_expired(each, moment)]:
            try:
                await self._look_at_evacuation(body)
            except API_ERRORS as error:
                name = body["metadata"]["name"]
                log.warning("finished evacuation not looked after", evacuation=name, error=brief(error))

    async def _look_at_evacuation(self, seen: Body) -> None:
        name = seen["metadata"]["name"]
        body = await self._evacuations.get(name)  # what was seen may be old, and its user quick
        if body is not None and observe.is_expired(body, datetime.now(UTC)):
            await self._evacuations.delete(name, body["metadata"]["uid"])
            self._metrics.api_writes.labels("delete").inc()
            log.info("finished evacuation deleted", evacuation=name)

    async def _look(self, key: MigrationKey) -> None:
        body = await self._api.migration(key)  # what was seen may be old, and its user quick
        if body["metadata"]["uid"] != key.uid:
            return
        if not observe.is_finished(body):
            await self._lists.unlabel(key)
            log.info("label of finished migrations taken from one that is not", migration=str(key), uid=key.uid)
        elif observe.is_expired(body, datetime.now(UTC)):
            await self._lists.delete_migration(body)
            self._metrics.api_writes.labels("delete").inc()
            log.info("finished migration deleted", migration=str(key), uid=key.uid)
            with contextlib.suppress(*API_ERRORS):  # the namespace may be going, too
                await self._api.event(key, EventReason.EXPIRED, "ttlSecondsAfterFinished is over: deleted")
        elif observe.is_outdated(body):
            await self._api.apply_status(key, observe.brought_up_to_date(body))
            self._metrics.api_writes.labels("status").inc()
