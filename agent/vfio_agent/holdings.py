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

from vfio_agent.devices.openers import Node
from vfio_agent.devices.protocol import Backend, Device
from vfio_agent.keeper import KeeperClient, KeeperError, KeeperGoneError
from vfio_api.device import NO_FLAGS, DeviceState, MigrationFlags
from vfio_api.errors import DeviceError, Reason

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Held:
    """One open device. holder: who has live state in it ("" while a migration loads it).

    pod: UID of the pod that uses it, "" if none does. borrowed: by a duplicate of the fd of a process that goes on
    having it; given back when the migration that needed it has ended. inherited: it came with the pod, and is given up
    when that is gone.
    """

    address: str
    backend: str
    incarnation: str
    holder: str
    device: Device = field(compare=False, repr=False)
    flags: MigrationFlags = NO_FLAGS
    pod: str = ""
    borrowed: bool = False
    inherited: bool = False
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
            noted = [meta.get("incarnation"), meta.get("holder"), meta.get("pod", "")]
            if backend is None or not all(isinstance(each, str) for each in noted):
                # it goes on being held: whose it is is not known
                log.error(
                    "held device has no backend here, or nothing that says whose it is", device=address, meta=meta
                )
                for fd in fds:
                    os.close(fd)
                continue
            try:
                device, flags = adopted(backend, address, fds)
            except OSError as error:
                # the keeper goes on holding it: whoever had state in it decides, not a device that does not answer
                log.error("held device is lost: it answers nothing", device=address, error=str(error), **meta)
                continue
            with self._lock:
                self._held[address] = Held(
                    address,
                    backend.name,
                    meta["incarnation"],
                    meta["holder"],
                    device,
                    flags,
                    meta.get("pod", ""),
                    meta.get("borrowed") == "yes",
                    meta.get("inherited") == "yes",
                )
            log.info("device taken back from the keeper", device=address, holder=meta["holder"])

    def all(self) -> dict[str, Held]:
        """A snapshot: address -> held device."""
        with self._lock:
            return dict(self._held)

    def get(self, address: str) -> Held | None:
        """The held device, or None."""
        with self._lock:
            return self._held.get(address)

    def open(self, address: str, holder: str, pod: str = "") -> Held:
        """Open a device and give the keeper duplicates of its fds. On real hardware opening resets it.

        Raises DeviceError with the kernel's errno, or if it is held already.
        """
        with self._opening:
            if self.get(address) is not None:
                raise DeviceError(f"device {address} is held here already", device=address)
            return self._open(self._backend_of(address), address, holder, pod)

    def adopt(self, address: str, fd: int, holder: str, pod: str, *, borrowed: bool) -> Held:
        """Hold a device by a duplicate of its opener's fd, which is this method's from now on. Nothing is reset.

        Raises DeviceError if it is held already or the fd is not that device.
        """
        with self._opening:
            if self.get(address) is not None:
                os.close(fd)
                raise DeviceError(f"device {address} is held here already", device=address)
            try:
                backend = self._backend_of(address)
            except DeviceError:
                os.close(fd)
                raise
            try:
                device, flags = adopted(backend, address, [fd])
            except OSError as error:
                raise DeviceError(
                    f"device {address}: the open file of {holder} is not it, or cannot migrate: {error}",
                    reason=Reason.SOURCE_NOT_HELD,
                    device=address,
                    errno=error.errno or 0,
                ) from error
            return self._hold(Held(address, backend.name, self._incarnation(), holder, device, flags, pod, borrowed))

    def nodes(self) -> list[Node]:
        """Every device of this node as the open files of processes name it."""
        return [node for backend in self._backends.values() for node in backend.nodes()]

    def _open(self, backend: Backend, address: str, holder: str, pod: str) -> Held:
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
        except OSError as error:
            device.close()
            raise _unholdable(address, error) from error
        return self._hold(Held(address, backend.name, self._incarnation(), holder, device, flags, pod))

    def _hold(self, held: Held) -> Held:
        try:
            self._keeper.store(held.address, _meta(held), list(held.device.fds()))
        except (OSError, KeeperError) as error:
            held.device.close()
            raise _unholdable(held.address, error) from error
        with self._lock:
            self._held[held.address] = held
        return held

    def _incarnation(self) -> str:
        return f"{self._boot_id}/{secrets.token_hex(6)}"

    def set_holder(self, address: str, holder: str, pod: str = "", *, inherited: bool = False) -> None:
        """Note who has live state in the device now. A keeper that does not take it is told again by `mend`."""
        with self._keeping:
            with self._lock:
                held = self._held[address] = replace(self._held[address], holder=holder, pod=pod, inherited=inherited)
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

    def share(self, address: str) -> tuple[str, list[int]]:
        """A held device's backend, and duplicates of its fds (device first), which are the caller's to close.

        Raises DeviceError.
        """
        held = self.get(address)
        if held is not None:
            with held.lock:  # it is not closed meanwhile
                if self.get(address) is not None:
                    return held.backend, [os.dup(fd) for fd in held.device.fds()]
        raise DeviceError(f"device {address} is not held here any more", reason=Reason.DEVICE_LOST, device=address)

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


def adopted(backend: Backend, address: str, fds: list[int]) -> tuple[Device, MigrationFlags]:
    """The device by its fds, and its flags. Raises OSError if it does not answer; its fds are closed then."""
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
    meta = {"backend": held.backend, "incarnation": held.incarnation, "holder": held.holder}
    flags = {name: "yes" for name in ("borrowed", "inherited") if getattr(held, name)}
    return meta | ({"pod": held.pod} if held.pod else {}) | flags


def _unholdable(address: str, error: Exception) -> DeviceError:
    return DeviceError(f"device {address} cannot be held: {error}", reason=Reason.DEVICE_NOT_MIGRATABLE, device=address)


def read_state(held: Held) -> DeviceState:
    """The device's state as read back now; ERROR if it cannot even be asked."""
    try:
        return held.device.state()
    except OSError:
        return DeviceState.ERROR
