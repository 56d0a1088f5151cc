"""Publishes this node's devices as VFIODevice objects, without opening any that is in use.

Flags come from devices that are held already, or from free ones, opened once per boot (opening resets a vfio-pci
function, which a free one does not mind).
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import structlog

from vfio_agent.devices.protocol import Backend, DeviceInfo
from vfio_agent.holdings import Held, Holdings, read_state
from vfio_agent.kube import API_ERRORS, AgentApi
from vfio_agent.metrics import AgentMetrics
from vfio_api.device import DeviceState, MigrationFlags
from vfio_api.models import device_object_name

log = structlog.get_logger()
Status = dict[str, Any]
AGAIN_SECONDS = 1.0


class Inventory:
    """What this node has, as it was last published."""

    def __init__(
        self,
        node: str,
        backends: Mapping[str, Backend],
        holdings: Holdings,
        api: AgentApi,
        metrics: AgentMetrics,
    ):
        self._node, self._backends, self._holdings = node, backends, holdings
        self._api, self._metrics = api, metrics
        self._flags: dict[str, MigrationFlags | None] = {}
        self._published: dict[str, Status] = {}
        self._answers: dict[str, tuple[str, Status]] = {}  # incarnation, and what it said when it was asked last
        self._busy = False  # a device could not be asked this time
        self._wake = asyncio.Event()

    def changed(self) -> None:
        """Something was opened, released or has a new holder: publish soon. On the event loop."""
        self._wake.set()

    async def run(self, every: float) -> None:
        """Publish what changed, at least every `every` seconds; until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self._publish(await asyncio.to_thread(self._look))
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
                continue
            spec = {"nodeName": self._node, "address": address, "backend": backend}
            await self._api.apply_device(device_object_name(self._node, address), spec, status)
            self._published[address] = status
            log.info("device published", device=address, **{k: status[k] for k in ("driver", "holder")})

    def _look(self) -> dict[str, tuple[str, Status]]:
        """Every device of this node that can be looked at: address -> (backend, status). Blocking."""
        found = {}
        self._busy = False
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
            status |= {"holder": held.holder, "incarnation": held.incarnation, **self._ask(held)}
        elif info.opener:
            status["holder"] = info.opener
        elif info.address not in self._flags:
            self._flags[info.address] = self._holdings.probe(backend, info.address)
        flags = self._flags.get(info.address)
        names = [flag.name for flag in MigrationFlags if flags and flag in flags]
        return status | {
            "migrationFlags": names,
            "migratable": bool(flags) and "STOP_COPY" in names,
            "message": _message(flags, held is not None or not info.opener),
        }

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
