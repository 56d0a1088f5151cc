"""Looks after finished migrations: deletes those whose time is over, and keeps their status current.

Finished objects are out of the watch, so they are listed from time to time, from the API server's cache. Runs on the
leader.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any

import structlog
from kubernetes.aio.client.exceptions import ApiException

from vfio_api.reasons import EventReason
from vfio_operator import observe
from vfio_operator.kube import API_ERRORS, OperatorApi, brief
from vfio_operator.metrics import OperatorMetrics

log = structlog.get_logger()
EVERY_SECONDS = 10.0
Json = dict[str, Any]


class Sweeper:
    """Lists finished migrations and does what their ttlSecondsAfterFinished and their generation ask for."""

    def __init__(self, api: OperatorApi, metrics: OperatorMetrics):
        self._api, self._metrics = api, metrics

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            try:
                async for body in self._api.finished_migrations():
                    await self._look(body)
            except API_ERRORS as error:
                log.warning("finished migrations not looked at", error=brief(error))

    async def _look(self, body: Json) -> None:
        key = observe.key_of(body)
        try:
            if observe.is_expired(body, datetime.now(UTC)):
                await self._api.event(key, EventReason.EXPIRED, "ttlSecondsAfterFinished is over: deleted")
                await self._api.delete_migration(key)
                self._metrics.api_writes.labels("delete").inc()
                log.info("finished migration deleted", migration=str(key), uid=key.uid)
            elif observe.is_outdated(body):
                await self._api.apply_status(key, observe.brought_up_to_date(body))
                self._metrics.api_writes.labels("status").inc()
        except ApiException as error:
            if error.status not in (404, 409):  # gone, or changed meanwhile: looked at again next time
                raise
