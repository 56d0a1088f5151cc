"""Which migrations have a task: every active one, on the leader only. Fed by kopf's events and index."""

import asyncio
import contextlib
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import structlog

from vfio_api.errors import Reason
from vfio_api.spans import Sink
from vfio_api.types import MigrationKey
from vfio_operator import observe
from vfio_operator.channel import Agents
from vfio_operator.history import History
from vfio_operator.janitor import Janitor
from vfio_operator.kube import API_ERRORS, OperatorApi
from vfio_operator.leader import Leadership
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.migration import Context, MigrationTask
from vfio_operator.observed import DeviceRecord, Limits, Pair, ends_of
from vfio_operator.settings import OperatorSettings
from vfio_operator.sweeper import Sweeper

log = structlog.get_logger()
FIRST_RESTART_SECONDS, LAST_RESTART_SECONDS = 5.0, 300.0


class Coordinator:
    """Keeps what the watches say, and one task per active migration while this replica leads."""

    def __init__(
        self,
        api: OperatorApi,
        leadership: Leadership,
        metrics: OperatorMetrics,
        settings: OperatorSettings,
        traces: Sink | None = None,
    ):
        self._traces = traces
        self._api, self._leadership, self._metrics, self._settings = api, leadership, metrics, settings
        self._history = History()
        leadership.written = self._history.wrote
        self.agents = Agents(self._woken, metrics, self._history)
        self._devices: dict[tuple[str, str], DeviceRecord] = {}
        self._nodes: set[str] = set()  # that have devices
        self._bodies: dict[str, Mapping[str, Any]] = {}
        self._tasks: dict[str, tuple[MigrationTask, asyncio.Task[None]]] = {}
        self._context: Context | None = None
        self._background: list[asyncio.Task[None]] = []
        self._crashes: dict[str, int] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def device(self, body: Mapping[str, Any], *, deleted: bool) -> None:
        """A VFIODevice was seen."""
        record = observe.device_of(body)
        if deleted:
            self._devices.pop((record.node, record.address), None)
        else:
            self._devices[record.node, record.address] = record
        if deleted or record.node not in self._nodes:
            self._nodes = {node for node, _ in self._devices}
            self._expect_agents()
        if self._context is not None and not self._context.agents.connected.isdisjoint({record.node}):
            self._woken("")

    def migration(self, body: Mapping[str, Any], *, deleted: bool) -> None:
        """A VFIOMigration was seen."""
        uid = body["metadata"]["uid"]
        if deleted or (observe.is_finished(body) and not observe.has_finalizer(body)):
            self._bodies.pop(uid, None)
        else:
            self._bodies[uid] = body
            self._ensure(uid)
        if deleted and uid in self._tasks:
            self._tasks[uid][0].missed()

    def lead(self) -> None:
        """This replica was elected: start a task for every active migration."""
        settings = self._settings
        inventory = MappingProxyType(self._devices)
        self._context = Context(
            self._api,
            self.agents,
            self._leadership,
            self._metrics,
            inventory,
            self._history,
            settled_at=asyncio.get_running_loop().time() + settings.settle_seconds,
            limits=Limits(settings.prepare_seconds, settings.release_seconds, settings.api_seconds),
            successor_seconds=settings.successor_seconds,
            traces=self._traces,
        )
        self._metrics.leader.set(1)
        self._metrics.elections.inc()
        self._metrics.epoch.set(self._leadership.epoch)
        for uid, body in self._bodies.items():
            # before any task chooses
            self._context.reserved[uid] = ends_of(observe.persisted_pairs(body))
        for uid in list(self._bodies):
            self._ensure(uid)
        janitor = Janitor(self._api, self.agents, inventory, self._tasks.__contains__, self._undertake)
        sweeper = Sweeper(self._api, self._metrics)
        self._background = [
            asyncio.create_task(janitor.run(settings.janitor_seconds), name="janitor"),
            asyncio.create_task(sweeper.run(), name="sweeper"),
        ]
        self._expect_agents()

    async def stop(self) -> None:
        """End every task; each can be taken up from any point by the next leader."""
        self._context = None
        self._metrics.leader.set(0)
        tasks = [task for _, task in self._tasks.values()]
        for background in self._background:
            background.cancel()
            tasks.append(background)
        for migration, task in self._tasks.values():
            migration.stop()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._expect_agents()
        self._metrics.underway.clear()

    def _expect_agents(self) -> None:
        """The nodes with devices are those that must have an agent; only the leader can tell whether they have."""
        self._metrics.expect_agents(self._nodes if self._context is not None else ())

    def _ensure(self, uid: str) -> None:
        body = self._bodies[uid]
        if uid in self._tasks:
            self._tasks[uid][0].notice(body)
        elif self._context is not None:
            self._start(MigrationTask(observe.key_of(body), body, self._context))

    def _start(self, migration: MigrationTask) -> None:
        task = asyncio.create_task(migration.run(), name=f"migration {migration.key}")
        task.add_done_callback(partial(self._ended, migration.key.uid))
        self._tasks[migration.key.uid] = migration, task

    def _undertake(self, key: MigrationKey, body: Mapping[str, Any] | None, pairs: tuple[Pair, ...]) -> None:
        """Bring what is left of a migration that is gone or finished to its end."""
        if self._context is not None and key.uid not in self._tasks:
            self._start(MigrationTask(key, observe.body_of_what_is_left(key, body), self._context, left=pairs))

    def _ended(self, uid: str, task: asyncio.Task[None]) -> None:
        migration, _ = self._tasks.pop(uid)
        migration.stop()
        if task.cancelled() or task.exception() is None:
            self._crashes.pop(uid, None)
        if self._context is not None:
            self._context.reserved.pop(uid, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(
                "task of a migration failed; it is started again",
                migration=str(migration.key),
                exc_info=error,
            )
            self._crashed(migration, error)

    def _crashed(self, migration: MigrationTask, error: BaseException) -> None:
        """Try again, ever more slowly, and say so: a migration half-way cannot be ended by what does not work."""
        uid = migration.key.uid
        self._metrics.crashes.inc()
        self._metrics.underway.failed(uid)
        crashes = self._crashes[uid] = self._crashes.get(uid, 0) + 1
        seconds = min(FIRST_RESTART_SECONDS * 2 ** (crashes - 1), LAST_RESTART_SECONDS)
        asyncio.get_running_loop().call_later(seconds, self._restart, uid)
        message = f"the operator fails at this migration: {error!r}; it tries again in {seconds:g} s; see its log"
        telling = asyncio.create_task(self._tell(migration, message))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _tell(self, migration: MigrationTask, message: str) -> None:
        with contextlib.suppress(*API_ERRORS):  # an Event is a courtesy
            await self._api.event(migration.key, Reason.INTERNAL_ERROR, message, warning=True)

    def _restart(self, uid: str) -> None:
        self._metrics.underway.gone(uid)
        if uid in self._bodies and uid not in self._tasks:
            self._ensure(uid)

    def _woken(self, uid: str) -> None:
        if uid:
            found = self._tasks.get(uid)
            if found is not None:
                found[0].wake()
            return
        for migration, _ in self._tasks.values():
            migration.wake()
