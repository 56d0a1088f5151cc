"""The devices this node's agent holds open: opened or adopted here, kept alive by the keeper.

A held device has an incarnation: node boot ID plus a number for this opening. A claim, a session and a vote belong to
one incarnation and mean nothing for another.
"""

import contextlib
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import structlog

from vfio_agent.devices.protocol import Backend, Device
from vfio_agent.keeper import KeeperClient, KeeperError, KeeperGoneError
from vfio_api.device import NO_FLAGS, DeviceState, MigrationFlags
from vfio_api.errors import DeviceError, Reason

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Held:
    """One open device. holder: who has live state in it ("" while a migration loads it)."""

    address: str
    backend: str
    incarnation: str
    holder: str
    device: Device = field(compare=False, repr=False)
    flags: MigrationFlags = NO_FLAGS
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)


class Holdings:
    """Every open device, by address. Thread-safe; calls block on the device or the keeper."""

    def __init__(self, backends: Mapping[str, Backend], keeper: KeeperClient, boot_id: str):
        self._backends, self._keeper, self._boot_id = backends, keeper, boot_id
        self._held: dict[str, Held] = {}
        self._stale: set[str] = set()  # what the keeper has noted of these is not what is true
        self._lock = threading.Lock()
        self._opening = threading.Lock()  # a device is open exclusively: probing and opening take turns
        self._keeping = threading.Lock()  # what is given up must not be stored again meanwhile

    def restore(self) -> None:
        """Take back from the keeper what an earlier agent of this boot held, but for what is dead.

        Raises KeeperError.
        """
        for address in self._keeper.held():
            meta, fds = self._keeper.take(address)
            backend = self._backends.get(str(meta.get("backend")))
            noted = [meta.get(name) for name in ("incarnation", "holder")]
            if backend is None or not all(isinstance(each, str) for each in noted):
                # it goes on being held: whose it is is not known
                log.error(
                    "held device has no backend here, or nothing that says whose it is", device=address, meta=meta
                )
                for fd in fds:
                    os.close(fd)
                continue
            try:
                device, flags = _adopt(backend, address, fds)
            except OSError as error:
                # the keeper goes on holding it: whoever had state in it decides, not a device that does not answer
                log.error("held device is lost: it answers nothing", device=address, error=str(error), **meta)
                continue
            with self._lock:
                self._held[address] = Held(address, backend.name, meta["incarnation"], meta["holder"], device, flags)
            log.info("device taken back from the keeper", device=address, holder=meta["holder"])

    def all(self) -> dict[str, Held]:
        """A snapshot: address -> held device."""
        with self._lock:
            return dict(self._held)

    def get(self, address: str) -> Held | None:
        """The held device, or None."""
        with self._lock:
            return self._held.get(address)

    def open(self, address: str, holder: str) -> Held:
        """Open a device and give the keeper duplicates of its fds. On real hardware opening resets it.

        Raises DeviceError with the kernel's errno, or if it is held already.
        """
        with self._opening:
            if self.get(address) is not None:
                raise DeviceError(f"device {address} is held here already", device=address)
            return self._open(self._backend_of(address), address, holder)

    def _open(self, backend: Backend, address: str, holder: str) -> Held:
        try:
            device = backend.open(address)
        except OSError as error:
            raise DeviceError(
                f"cannot open device {address}: {error}; close it elsewhere or look at its driver",
                reason=Reason.DEVICE_LOST,
                device=address,
                errno=error.errno or 0,
            ) from error
        try:
            device.reset()
            flags = device.flags()
            held = Held(address, backend.name, f"{self._boot_id}/{secrets.token_hex(6)}", holder, device, flags)
            self._keeper.store(address, _meta(held), list(device.fds()))
        except (OSError, KeeperError) as error:
            device.close()
            raise DeviceError(
                f"device {address} cannot be held: {error}",
                reason=Reason.DEVICE_NOT_MIGRATABLE,
                device=address,
            ) from error
        with self._lock:
            self._held[address] = held
        return held

    def set_holder(self, address: str, holder: str) -> None:
        """Note who has live state in the device now. A keeper that does not take it is told again by `mend`."""
        with self._keeping:
            with self._lock:
                held = self._held[address] = replace(self._held[address], holder=holder)
            try:
                self._keeper.note(address, _meta(held))
            except KeeperError as error:
                self._stale.add(address)
                log.warning("keeper not told who holds a device", device=address, error=str(error))

    def mend(self) -> list[str]:
        """Store what a new keeper does not know in it; returns the addresses. To be called from time to time.

        A keeper that ends takes nothing with it as long as the agent lives. Raises KeeperError if none answers.
        """
        with self._keeping:
            known = set(self._keeper.held())
            mended = []
            for address, held in self.all().items():
                if address not in known:
                    self._keeper.store(address, _meta(held), list(held.device.fds()))
                elif address in self._stale:
                    self._keeper.note(address, _meta(held))
                else:
                    continue
                self._stale.discard(address)
                mended.append(address)
            return mended

    def probe(self, backend: Backend, address: str) -> MigrationFlags | None:
        """Flags of a free device, which is opened and closed for it; None if it cannot be opened."""
        with self._opening:
            if self.get(address) is not None:
                return self.get_flags(address)
            try:
                device = backend.open(address)
            except OSError as error:
                log.info("free device cannot be opened", device=address, error=str(error))
                return None
            try:
                return device.flags()
            except OSError:
                return MigrationFlags(0)
            finally:
                device.close()

    def get_flags(self, address: str) -> MigrationFlags | None:
        """Flags of a held device."""
        held = self.get(address)
        return held.flags if held is not None else None

    def release(self, address: str) -> None:
        """Close the device at the keeper and here. Nothing happens if neither holds it.

        Raises KeeperError if the keeper goes on holding it: the next agent would take it for live.
        """
        with self._keeping:
            with contextlib.suppress(KeeperGoneError):  # it holds nothing then
                if address in self._keeper.held():
                    self._keeper.drop(address)
            with self._lock:
                held = self._held.pop(address, None)
        if held is not None:
            with held.lock:  # an fd must not be closed, and its number be another's, while it is being asked
                held.device.close()

    def _backend_of(self, address: str) -> Backend:
        for backend in self._backends.values():
            if any(info.address == address for info in backend.list()):
                return backend
        raise DeviceError(
            f"no VFIO device {address} on this node; `kubectl get vfd` lists what there is",
            reason=Reason.UNKNOWN_DEVICE,
            device=address,
        )


def _adopt(backend: Backend, address: str, fds: list[int]) -> tuple[Device, MigrationFlags]:
    """The device and its flags. Raises OSError if it does not answer; its fds are closed then."""
    try:
        device = backend.adopt(address, fds)
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    try:
        return device, device.flags()
    except OSError:
        device.close()
        raise


def _meta(held: Held) -> dict[str, str]:
    return {"backend": held.backend, "incarnation": held.incarnation, "holder": held.holder}


def read_state(held: Held) -> DeviceState:
    """The device's state as read back now; ERROR if it cannot even be asked."""
    try:
        return held.device.state()
    except OSError:
        return DeviceState.ERROR
