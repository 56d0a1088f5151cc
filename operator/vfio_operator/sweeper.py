"""Looks after finished migrations: deletes those whose time is over, and keeps their status current.

Finished objects are out of the watch, so they are listed from time to time, from the API server's cache; before
anything is written, an object is read again. One that has the label but is not finished, as a copied manifest has,
loses the label, so that the watch sees it. Runs on the leader.
"""

import asyncio
from datetime import UTC, datetime

import structlog
from kubernetes.aio.client.exceptions import ApiException

from vfio_api.reasons import EventReason
from vfio_operator import observe
from vfio_operator.kube import API_ERRORS, Json, OperatorApi, brief
from vfio_operator.kube_lists import Lists
from vfio_operator.metrics import OperatorMetrics

log = structlog.get_logger()
EVERY_SECONDS = 10.0


class Sweeper:
    """Lists finished migrations and does what their ttlSecondsAfterFinished and their generation ask for."""

    def __init__(self, api: OperatorApi, metrics: OperatorMetrics):
        self._api, self._lists, self._metrics = api, Lists(api), metrics

    async def run(self) -> None:
        """Until cancelled. An object that cannot be looked after does not keep the others from it."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            try:
                async for body in self._lists.finished_migrations():
                    try:
                        await self._look(body)
                    except ApiException as error:
                        if error.status not in (404, 409):  # gone, or changed meanwhile: looked at again next time
                            log.warning(
                                "finished migration not looked after",
                                migration=str(observe.key_of(body)),
                                error=brief(error),
                            )
            except API_ERRORS as error:
                log.warning("finished migrations not listed", error=brief(error))

    async def _look(self, cached: Json) -> None:
        moment = datetime.now(UTC)
        if observe.is_finished(cached) and not observe.is_expired(cached, moment) and not observe.is_outdated(cached):
            return
        key = observe.key_of(cached)
        body = await self._api.migration(key)  # the cache may be old, and its user quick
        if body["metadata"]["uid"] != key.uid:
            return
        if not observe.is_finished(body):
            await self._lists.unlabel(key)
            log.info("label of finished migrations taken from one that is not", migration=str(key), uid=key.uid)
        elif observe.is_expired(body, moment):
            await self._lists.delete_migration(body)
            self._metrics.api_writes.labels("delete").inc()
            log.info("finished migration deleted", migration=str(key), uid=key.uid)
            await self._api.event(key, EventReason.EXPIRED, "ttlSecondsAfterFinished is over: deleted")
        elif observe.is_outdated(body):
            await self._api.apply_status(key, observe.brought_up_to_date(body))
            self._metrics.api_writes.labels("status").inc()
