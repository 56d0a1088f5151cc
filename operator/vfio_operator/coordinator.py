"""Which migrations have a task: every active one, on the leader only. Fed by kopf's events and index."""

import asyncio
import contextlib
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import structlog
from pydantic import ValidationError

from vfio_api.errors import Reason
from vfio_api.names import MIGRATION_LABEL
from vfio_api.spans import Sink
from vfio_api.types import MigrationKey
from vfio_operator import observe
from vfio_operator.channel import Agents
from vfio_operator.context import Context
from vfio_operator.evacuation import EvacuationTask, has_ended
from vfio_operator.history import History
from vfio_operator.janitor import Janitor
from vfio_operator.kept import Kept
from vfio_operator.kube import API_ERRORS, OperatorApi
from vfio_operator.kube_evacuations import KubeEvacuations
from vfio_operator.kube_lists import Lists
from vfio_operator.leader import Leadership
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.migration import MigrationTask
from vfio_operator.observed import DeviceRecord, Limits, Pair, ends_of
from vfio_operator.policies import Policy, policy_of
from vfio_operator.settings import OperatorSettings
from vfio_operator.sweeper import Sweeper
from vfio_operator.turns import Quota, Turnstile

log = structlog.get_logger()
MOST_REMEMBERED = 4096
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
        self._policies: dict[str, Policy] = {}
        self._evacuations: dict[str, Mapping[str, Any]] = {}
        self._ended_evacuations: dict[str, Mapping[str, Any]] = {}
        self._evacuating: dict[str, asyncio.Task[None]] = {}
        self._bodies: dict[str, Mapping[str, Any]] = {}
        self._uids: dict[tuple[str, str], str] = {}  # of these, by namespace and name
        # UIDs, until the watch sees that they have left: what it shows of them until then is older
        self._brought_to_an_end: dict[str, None] = {}
        self._tasks: dict[str, tuple[MigrationTask, asyncio.Task[None]]] = {}
        self._context: Context | None = None
        self._background: list[asyncio.Task[None]] = []
        self._crashes: dict[str, int] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def device(self, body: Mapping[str, Any], *, deleted: bool) -> None:
        """A VFIODevice was seen."""
        record = observe.device_of(body)
        before = self._devices.get((record.node, record.address))
        if deleted:
            self._devices.pop((record.node, record.address), None)
        else:
            self._devices[record.node, record.address] = record
        if deleted or record.node not in self._nodes:
            self._nodes = {node for node, _ in self._devices}
            self._expect_agents()
        if before is not None and before.claim_uid != record.claim_uid:
            self._changed(before)
        self._changed(record)

    def migration(self, body: Mapping[str, Any], *, deleted: bool) -> None:
        """A VFIOMigration was seen."""
        uid, name = body["metadata"]["uid"], (body["metadata"]["namespace"], body["metadata"]["name"])
        if deleted or (observe.is_finished(body) and not observe.has_finalizer(body)):
            self._bodies.pop(uid, None)
            if self._uids.get(name) == uid:
                del self._uids[name]
        elif uid not in self._brought_to_an_end:
            self._bodies[uid], self._uids[name] = body, uid
            self._ensure(uid)
        if deleted:
            self._brought_to_an_end.pop(uid, None)
        if deleted and uid in self._tasks:
            self._tasks[uid][0].missed()

    def evacuation(self, body: Mapping[str, Any], *, deleted: bool) -> None:
        """A VFIOEvacuation was seen."""
        uid = body["metadata"]["uid"]
        self._ended_evacuations.pop(uid, None)
        if not deleted and observe.expires_at(body) is not None:
            self._ended_evacuations[uid] = body
        if deleted or has_ended(body):
            self._evacuations.pop(uid, None)
        else:
            self._evacuations[uid] = body
            self._evacuate(uid)

    def _evacuate(self, uid: str) -> None:
        context = self._context
        if context is None or uid in self._evacuating:
            return
        kube = KubeEvacuations(self._api)
        body, unfinished = self._evacuations[uid], self._unfinished
        task = EvacuationTask(body, kube, context.inventory, self.agents, self.emptied, unfinished)
        running = self._evacuating[uid] = asyncio.create_task(task.run(), name=f"evacuation {uid}")
        running.add_done_callback(partial(self._evacuated, uid))

    def _evacuated(self, uid: str, task: asyncio.Task[None]) -> None:
        self._evacuating.pop(uid, None)
        if not task.cancelled():  # it has ended or is gone, whatever the watch has missed of that
            self._evacuations.pop(uid, None)

    def emptied(self) -> frozenset[str]:
        """Nodes that are being emptied: nothing new goes there."""
        return frozenset(body["spec"]["nodeName"] for body in self._evacuations.values())

    @property
    def inventory(self) -> Mapping[tuple[str, str], DeviceRecord]:
        """Every VFIODevice that was seen, by node and address; a view."""
        return MappingProxyType(self._devices)

    def moving(self, namespace: str, pod: str) -> Mapping[str, Any] | None:
        """The unfinished migration that moves a pod, or that brings it; None if there is none."""
        return next((body for body in self._bodies.values() if observe.moves(body, namespace, pod)), None)

    def _unfinished(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        return self._bodies.get(self._uids.get((namespace, name), ""))

    def policy(self, body: Mapping[str, Any], *, deleted: bool) -> None:
        """A VFIOMigrationPolicy was seen; one that does not fit the model counts for nothing."""
        name = body["metadata"]["name"]
        self._policies.pop(name, None)
        if not deleted:
            try:
                self._policies[name] = policy_of(body)
            except ValidationError as error:
                log.error("policy is not valid, and counts for nothing", policy=name, error=str(error))
        self._woken("")

    def pod(self, body: Mapping[str, Any], *, deleted: bool) -> None:
        """A pod with the label of a migration was seen."""
        found = self._tasks.get(body["metadata"].get("labels", {}).get(MIGRATION_LABEL, ""))
        if found is not None:
            found[0].pod(body, deleted=deleted)

    async def look_up(self) -> None:
        """What rules a migration or an evacuation from its beginning, and what the watches may show only later.

        Raises API_ERRORS.
        """
        lists = Lists(self._api)
        async for body in lists.devices():
            self.device(body, deleted=False)
        async for body in lists.policies():
            self.policy(body, deleted=False)
        async for body in lists.evacuations():
            self.evacuation(body, deleted=False)

    def lead(self) -> None:
        """This replica was elected: start a task for every active migration."""
        settings = self._settings
        inventory = self.inventory
        kept = Kept(self._api, self.agents, self._tasks.__contains__)
        self._context = Context(
            self._api,
            self.agents,
            self._leadership,
            self._metrics,
            inventory,
            self._history,
            settled_at=asyncio.get_running_loop().time() + settings.settle_seconds,
            limits=Limits(
                settings.prepare_seconds,
                settings.release_seconds,
                settings.api_seconds,
                settings.target_pod_seconds,
            ),
            turnstile=Turnstile(
                Quota(settings.parallel_migrations, settings.parallel_migrations_per_node), self._let_in
            ),
            policies=MappingProxyType(self._policies),
            emptied=self.emptied,
            kept=kept,
            successor_seconds=settings.successor_seconds,
            traces=self._traces,
        )
        self._metrics.leader.set(1)
        self._metrics.elections.inc()
        self._metrics.epoch.set(self._leadership.epoch)
        for uid, body in self._bodies.items():
            # before any task chooses
            if not (pairs := observe.persisted_pairs(body)):
                continue
            self._context.reserved[uid] = ends_of(pairs)
            if not observe.is_finished(body):
                self._context.turnstile.runs(observe.ticket_of(body, pairs, 0))
        # those first whose devices may be down: they ask before the others do
        for uid in sorted(self._bodies, key=lambda uid: not observe.persisted_pairs(self._bodies[uid])):
            self._ensure(uid)
        for uid in self._evacuations:
            self._evacuate(uid)
        janitor = Janitor(self._api, self.agents, inventory, self._tasks.__contains__, self._undertake, kept)
        sweeper = Sweeper(self._api, self._metrics, self._ended_evacuations.values)
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
        for background in (*self._background, *self._evacuating.values()):
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
        if not task.cancelled() and task.exception() is None and self._bodies.pop(uid, None) is not None:
            self._brought_to_an_end[uid] = None
            if len(self._brought_to_an_end) > MOST_REMEMBERED:  # a watch that was cut does not tell who left meanwhile
                del self._brought_to_an_end[next(iter(self._brought_to_an_end))]
        crashed = not task.cancelled() and task.exception() is not None
        if self._context is not None and not crashed:  # one that is started again keeps its devices and its turn
            self._context.reserved.pop(uid, None)
            self._context.turnstile.leave(uid)
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
        elif uid not in self._tasks and self._context is not None:  # it is gone, and so is what it had reserved
            self._context.reserved.pop(uid, None)
            self._context.turnstile.leave(uid)

    def _woken(self, uid: str) -> None:
        if uid:
            found = self._tasks.get(uid)
            if found is not None:
                found[0].wake()
            return
        for migration, _ in self._tasks.values():
            migration.wake()

    def _let_in(self) -> None:
        """There is room: wake who may run now. The others stand as they stood, and look again at leisure."""
        if self._context is not None:
            for uid in self._context.turnstile.next():
                self._woken(uid)

    def _changed(self, device: DeviceRecord | None) -> None:
        """Wake whom a VFIODevice may concern: who has it, and all that have not chosen any yet."""
        if self._context is None or device is None:
            return
        if device.claim_uid:
            self._woken(device.claim_uid)
        for uid in self._tasks.keys() - self._context.reserved.keys():
            self._woken(uid)
