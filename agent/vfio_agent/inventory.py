"""Publishes this node's devices as VFIODevice objects, without opening any that is in use.

Flags come from devices that are held already, or from free ones, opened once per boot (opening resets a vfio-pci
function, which a free one does not mind).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from vfio_agent.adoption import duplicate, find
from vfio_agent.devices.protocol import Backend, DeviceInfo
from vfio_agent.holdings import Held, Holdings, adopted, read_state
from vfio_agent.kube import API_ERRORS, AgentApi
from vfio_agent.metrics import AgentMetrics
from vfio_agent.pods import PodRef, Pods
from vfio_api.device import DeviceState, MigrationFlags
from vfio_api.errors import DeviceError
from vfio_api.models import device_object_name
from vfio_api.types import Goal

log = structlog.get_logger()
Status = dict[str, Any]
LASTING_SECONDS = 1.0
AGAIN_SECONDS = 1.0
PASSING_SECONDS = 30.0


class Inventory:
    """What this node has, as it was last published. in_use: which migration uses a device just now, "" if none does."""

    def __init__(
        self,
        node: str,
        backends: Mapping[str, Backend],
        holdings: Holdings,
        pods: Pods,
        api: AgentApi,
        metrics: AgentMetrics,
        in_use: Callable[[str], str] = lambda _address: "",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._in_use, self._clock = in_use, clock
        self._passing: dict[str, float] = {}  # since when what a device is like has not been published
        self._node, self._backends, self._holdings, self._pods = node, backends, holdings, pods
        self._api, self._metrics = api, metrics
        self._flags: dict[str, MigrationFlags | None] = {}
        self._published: dict[str, Status] = {}
        self._answers: dict[str, tuple[str, Status]] = {}  # incarnation, and what it said when it was asked last
        self._processes: Mapping[str, Sequence[int]] | None = None  # of every pod, once a look has asked for them
        self._busy = False  # a device could not be asked this time
        self._wake = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []

    def changed(self) -> None:
        """Something was opened, released or has a new holder: publish soon. On the event loop."""
        self._wake.set()

    def passed(self, goal: Goal | None) -> None:
        """A session has come to `goal`: at some, others hold its devices than before.

        What a migration holds is published if it lasts: a request to the API server is work that devices which are
        down would wait for.
        """
        if goal is Goal.RELEASED:
            self.changed()
        elif goal in (Goal.PREPARED, Goal.RUNNING):
            asyncio.get_running_loop().call_later(LASTING_SECONDS, self.changed)

    async def refreshed(self) -> None:
        """Look, and publish what is found; returns when that is done."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wake.set()
        await waiter

    async def run(self, every: float) -> None:
        """Publish what changed, at least every `every` seconds; until cancelled."""
        while True:
            self._wake.clear()
            asked = len(self._waiters)
            try:
                await self._publish(await asyncio.to_thread(self._look))
                for waiter in self._waiters[:asked]:
                    if not waiter.done():
                        waiter.set_result(None)
                del self._waiters[:asked]
            except API_ERRORS as error:
                log.warning("inventory not published", error=str(error).partition("\n")[0])
            try:
                async with asyncio.timeout(min(every, AGAIN_SECONDS) if self._busy else every):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _publish(self, found: dict[str, tuple[str, Status]]) -> None:
        self._metrics.inventory({a: (status["driver"], status["migratable"]) for a, (_, status) in found.items()})
        for address, (backend, status) in found.items():
            if self._published.get(address) == status:
                self._passing.pop(address, None)
                continue
            if self._passes(address, status):
                continue
            spec = {"nodeName": self._node, "address": address, "backend": backend}
            known = address in self._published
            await self._api.apply_device(device_object_name(self._node, address), spec, status, known=known)
            self._published[address] = status
            self._passing.pop(address, None)
            log.info("device published", device=address, **{k: status[k] for k in ("driver", "holder")})

    def _passes(self, address: str, status: Status) -> bool:
        """Whether all that is new is a state on the way through a migration: ERROR is published at once, others at the
        first look after a while, so that what is published is never much older than that.

        The VFIOMigration shows them all; here each is one more write for each device.
        """
        before, moment = self._published.get(address, {}), self._clock()
        new = {key for key in before.keys() | status.keys() if before.get(key) != status.get(key)}
        if not new <= {"state", "stopCopyBytes"} or status.get("state") == "ERROR" or not self._in_use(address):
            return False
        return moment - self._passing.setdefault(address, moment) < PASSING_SECONDS

    def _look(self) -> dict[str, tuple[str, Status]]:
        """Every device of this node that can be looked at: address -> (backend, status). Blocking."""
        found = {}
        self._busy, self._processes = False, None
        for backend in self._backends.values():
            for info in backend.list():
                try:
                    found[info.address] = (backend.name.capitalize(), self._status(backend, info))
                except Exception:  # whatever one device does must not hide the others, nor end the agent
                    log.exception("device cannot be looked at", device=info.address)
        return found

    def _status(self, backend: Backend, info: DeviceInfo) -> Status:
        held = self._holdings.get(info.address)
        status: Status = {"driver": info.driver, "model": info.model, "holder": "", "incarnation": ""}
        if held is not None:
            self._flags[info.address] = held.flags
            pod = self._pods.ref(held.pod) if held.pod else None
            status |= {"holder": held.holder, "incarnation": held.incarnation, **self._ask(held), **_pod(pod)}
        elif info.opener:
            uid = self._pods.uid_of(info.opener.pid) if info.opener.pid else ""
            pod = self._pods.ref(uid) if uid else None
            status |= {"holder": f"pod {pod}" if pod else str(info.opener), **_pod(pod)}
            if pod is not None:
                status |= self._glance(backend, info.address, pod)
        elif info.address not in self._flags:
            self._flags[info.address] = self._holdings.probe(backend, info.address)
        flags = self._flags.get(info.address)
        names = [flag.name for flag in MigrationFlags if flags and flag in flags]
        known = held is not None or not info.opener or flags is not None
        return {
            "migrationFlags": names,
            "migratable": bool(flags) and "STOP_COPY" in names,
            "message": _message(flags, known),
            **status,
        }

    def _glance(self, backend: Backend, address: str, pod: PodRef) -> Status:
        """Flags and state of a device that a pod's process has open, asked through a duplicate; it notices nothing."""
        try:
            if self._processes is None:
                self._processes = self._pods.by_pod()
            opening = find(self._pods, pod.uid, address, backend.nodes(), self._processes.get(pod.uid, ()))
            if opening is None:
                return {}
            device, self._flags[address] = adopted(backend, address, [duplicate(self._pods, opening, pod.uid)])
        except (OSError, DeviceError) as error:
            return {"message": str(error)}
        try:
            return {"state": device.state().name}
        except OSError as error:
            return {"message": f"{opening} of pod {pod} does not answer: {error}"}
        finally:
            device.close()

    def _ask(self, held: Held) -> Status:
        """State and size of a held device; what it said last while an arc is under way, which is not held up for it."""
        if held.lock.acquire(blocking=False):
            try:
                now = self._holdings.get(held.address)
                # it may have been closed meanwhile, which is no error of the device
                if now is not None and now.incarnation == held.incarnation:
                    self._answers[held.address] = held.incarnation, _answer(held)
            finally:
                held.lock.release()
        else:
            self._busy = True
        incarnation, answer = self._answers.get(held.address, ("", {}))
        return answer if incarnation == held.incarnation else {}


def _pod(pod: PodRef | None) -> Status:
    return {"pod": {"uid": pod.uid, "namespace": pod.namespace, "name": pod.name}} if pod is not None else {}


def _answer(held: Held) -> Status:
    """The device's state, and if it runs what it would give if it were stopped now; without that if it does not say."""
    state = read_state(held)
    answer: Status = {"state": state.name}
    if state is DeviceState.RUNNING:
        with contextlib.suppress(OSError):
            answer["stopCopyBytes"] = two_digits(held.device.data_size())
    return answer


def two_digits(number: int) -> int:
    """`number` rounded up to two significant digits, so that small changes are not published."""
    unit: int = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit


def _message(flags: MigrationFlags | None, known: bool) -> str:
    if flags is None:
        return "migration flags unknown: the device is open elsewhere" if not known else "cannot be opened"
    if not flags:
        return "its driver does not implement VFIO migration"
    return ""
