"""Hands open devices to workloads: a unix socket, one request per connection.

{"open": ADDRESS, "workload": NAME}: the agent opens the device, the keeper holds it, and the workload gets duplicates
of its fds by SCM_RIGHTS. The device then has that workload, or its pod, as its holder and is a legal source.
{"adopt": ADDRESS, "fd": N}: the process has the device open as its own fd N, and goes on so; from now on the node holds
it as well, and it is a legal source.
{"close": ADDRESS}: the workload is done, the keeper lets go of the device, and on real hardware that resets it once
nobody else has it open.
{"take": true}: for the counterpart of a pod that is being moved. One answer per device, with its fds, once it is ready
to load, so that its memory can be mapped; then one, with nothing but "running", when the devices run here and are its.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from vfio_agent.adoption import Opening, duplicate, is_device
from vfio_agent.holdings import Held, Holdings
from vfio_agent.incoming import Incoming
from vfio_agent.keeper import KeeperError
from vfio_agent.pods import Pods
from vfio_api.errors import DeviceError, Reason, VFIOMigrationError, WorkloadError

log = structlog.get_logger()
MAX_REQUEST = 4096
MAX_NAME = 253
MAX_FD = 2**20
REQUEST_SECONDS = 5.0
TAKE_SECONDS = 600.0  # in which what was asked for must have come; who asks may ask again
LOOK_SECONDS = 1.0  # at whether who asked is still there
CONNECTIONS = 64
TAKERS = 4  # of one pod, at once: they wait, and others must still be served
_UCRED = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class _Peer:
    pid: int
    pod: str  # its UID, "" if it is in none

    def named(self, pods: Pods, workload: str) -> str:
        return f"pod {pods.ref(self.pod)}" if self.pod else f"workload {workload}"


class Broker:
    """Listens on `path` from the start. `changed` is called after a device was opened or closed; `busy(address)` names
    the migration whose session uses a device ("" if none does); `incoming(pod)` is what a pod is to take over.
    """

    def __init__(
        self,
        path: Path,
        holdings: Holdings,
        pods: Pods,
        changed: Callable[[], None],
        busy: Callable[[str], str],
        incoming: Callable[[str], Incoming | None],
    ):
        self._holdings, self._pods, self._changed = holdings, pods, changed
        self._busy, self._incoming = busy, incoming
        self._moved = threading.Condition()
        self._takers: Counter[str] = Counter()
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(16)
        self._listener.setblocking(False)

    async def run(self) -> None:
        """Accept and answer until cancelled."""
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(CONNECTIONS)
        pool = ThreadPoolExecutor(CONNECTIONS, "broker")
        try:
            with self._listener as listener:
                while True:
                    await room.acquire()
                    connection, _ = await loop.sock_accept(listener)
                    served = loop.run_in_executor(pool, self._answer, connection)
                    served.add_done_callback(lambda _served: self._answered(room))
        finally:
            self.close()
            pool.shutdown(wait=False)

    def stir(self) -> None:
        """A session has come further: who waits for it is told. Any thread."""
        with self._moved:
            self._moved.notify_all()

    def close(self) -> None:
        """Nobody waits any longer."""
        self._closed = True
        self.stir()

    def _answered(self, room: asyncio.Semaphore) -> None:
        room.release()
        self._changed()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(REQUEST_SECONDS)
        fds: list[int] = []
        reply: Mapping[str, object]
        try:
            request = _request(connection)  # first: with it unread, a refusal would not arrive
            peer = self._peer(connection)
            if "take" in request:
                reply = self._take(connection, peer, request["take"])
            elif "close" in request:
                reply = self._close(_name(request["close"]), peer)
            elif "adopt" in request:
                reply = self._adopt(_name(request["adopt"]), _fd(request["fd"]), peer)
            else:
                reply, fds = self._open(_name(request["open"]), _name(request.get("workload", "unnamed")), peer)
        except VFIOMigrationError as error:
            reply = {"error": error.message, "reason": error.reason}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reply = {"error": f"not a request: {error!r:.200}", "reason": Reason.COMMAND_REFUSED}
        except (KeeperError, OSError) as error:
            reply = {"error": f"this node's keeper or device does not answer: {error}", "reason": Reason.DEVICE_LOST}
            log.error("workload's request failed", error=str(error))
        _reply(connection, reply, fds)

    def _peer(self, connection: socket.socket) -> _Peer:
        pid, _, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        try:
            return _Peer(pid, self._pods.peer(pid))
        except OSError as error:  # what it left to others to ask for is not taken for the host's own
            raise WorkloadError(
                f"process {pid}, which connected, has ended or cannot be looked at: {error}",
                reason=Reason.COMMAND_REFUSED,
            ) from error

    def _open(self, address: str, workload: str, peer: _Peer) -> tuple[dict[str, str], list[int]]:
        held = self._holdings.get(address)
        if held is None:
            held = self._holdings.open(address, peer.named(self._pods, workload), peer.pod)
            log.info("device opened for a workload", device=address, holder=held.holder)
        elif held.holder.startswith("migration "):
            raise DeviceError(
                f"device {address} is being loaded by {held.holder}: ask again when it has ended",
                device=address,
            )
        elif peer.pod and held.pod != peer.pod:
            self._refuse_if_used(held)
            # the keeper has it for whoever takes it over, and whoever had it has ended
            self._holdings.set_holder(address, peer.named(self._pods, workload), peer.pod)
        backend, fds = self._holdings.share(address)
        return {"backend": backend, "incarnation": held.incarnation}, fds

    def _adopt(self, address: str, fd: int, peer: _Peer) -> dict[str, str]:
        try:
            taken = duplicate(self._pods, Opening(peer.pid, "who asks", fd), peer.pod)
        except OSError as error:
            raise DeviceError(
                f"device {address}: fd {fd} of process {peer.pid}, which asks, could not be duplicated: {error}",
                reason=Reason.SOURCE_NOT_HELD,
                device=address,
                errno=error.errno or 0,
            ) from error
        holder = peer.named(self._pods, f"process {peer.pid}")
        if not is_device(self._pods, peer.pid, taken, address, self._holdings.nodes()):
            os.close(taken)
            raise DeviceError(
                f"device {address}: fd {fd} of process {peer.pid} is another device, or none",
                reason=Reason.SOURCE_NOT_HELD,
                device=address,
            )
        held = self._holdings.adopt(address, taken, holder, peer.pod, borrowed=False)
        log.info("device adopted", device=address, holder=holder, pid=peer.pid, fd=fd)
        return {"backend": held.backend, "incarnation": held.incarnation}

    def _close(self, address: str, peer: _Peer) -> dict[str, str]:
        migration = self._busy(address)
        if migration:
            raise DeviceError(f"device {address} is part of migration {migration}: cancel that first", device=address)
        held = self._holdings.get(address)
        if held is not None and peer.pod and held.pod != peer.pod:
            self._refuse_if_used(held)
        self._holdings.release(address)
        log.info("device closed for its workload", device=address)
        return {}

    def _refuse_if_used(self, held: Held) -> None:
        """One pod does not decide about a device of another that runs. Raises DeviceError."""
        if held.pod and self._pods.processes(held.pod):
            raise DeviceError(
                f"device {held.address} is used by {held.holder}, which runs: have that close it first",
                reason=Reason.TARGET_HAS_HOLDER,
                device=held.address,
            )

    def _take(self, connection: socket.socket, peer: _Peer, wanted: object) -> dict[str, object]:
        if wanted is not True:
            raise ValueError("what is taken is said by the migration: take is true")
        if not peer.pod:
            raise WorkloadError(
                f"process {peer.pid} is in no pod of this node: only a pod takes devices over",
                reason=Reason.COMMAND_REFUSED,
            )
        with self._moved:
            if self._takers[peer.pod] >= TAKERS:
                raise WorkloadError(
                    f"pod {self._pods.ref(peer.pod)}: {TAKERS} of its processes wait for its devices already; have one "
                    "of them ask",
                    reason=Reason.COMMAND_REFUSED,
                )
            self._takers[peer.pod] += 1
        try:
            deadline = time.monotonic() + TAKE_SECONDS
            found = self._await(connection, peer.pod, lambda incoming: incoming.ready, deadline)
            for left, (name, address) in zip(range(len(found.devices) - 1, -1, -1), found.devices, strict=True):
                backend, fds = self._holdings.share(address)
                _reply(connection, {"device": name, "address": address, "backend": backend, "left": left}, fds)
            self._await(connection, peer.pod, lambda incoming: incoming.running, deadline, began=True)
            return {"running": True}
        finally:
            with self._moved:
                self._takers -= Counter([peer.pod])  # what comes to nothing is forgotten

    def _await(
        self,
        connection: socket.socket,
        pod: str,
        there: Callable[[Incoming], bool],
        deadline: float,
        *,
        began: bool = False,
    ) -> Incoming:
        """What a pod takes over, as soon as that is `there`. began: there was something before.

        Raises WorkloadError if nothing is to come any more.
        """
        with self._moved:
            while time.monotonic() < deadline and not self._closed and not _gone(connection):
                incoming = self._incoming(pod) or self._own(pod)
                if incoming is not None and there(incoming):
                    return incoming
                if incoming is None and began:
                    break
                began = incoming is not None
                self._moved.wait(LOOK_SECONDS)
        raise WorkloadError(
            f"pod {self._pods.ref(pod)} takes nothing over: its migration was rolled back, or none has come to this "
            f"node within {TAKE_SECONDS:g} s; look at kubectl get vfm",
            reason=Reason.CANCELLED,
        )

    def _own(self, pod: str) -> Incoming | None:
        """What the pod has taken over already: one of its containers has begun anew."""
        own = tuple((held.address, held.address) for held in self._holdings.all().values() if held.pod == pod)
        return Incoming(own, ready=True, running=True) if own else None


def _request(connection: socket.socket) -> dict[str, Any]:
    """One whole request. Raises ValueError."""
    raw, _, flags, _ = connection.recvmsg(MAX_REQUEST)
    if flags & socket.MSG_TRUNC:
        raise ValueError(f"a request has at most {MAX_REQUEST} bytes")
    request = json.loads(raw)
    if not isinstance(request, dict):
        raise ValueError("a request is an object")
    return request


def _reply(connection: socket.socket, said: Mapping[str, object], fds: list[int]) -> None:
    """Send an answer with duplicates of fds, which are closed here whatever comes of it."""
    try:
        socket.send_fds(connection, [json.dumps(said).encode()], fds)
    finally:
        for fd in fds:
            os.close(fd)


def _gone(connection: socket.socket) -> bool:
    """Whether who asked has hung up."""
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(REQUEST_SECONDS)


def _name(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise ValueError(f"a name has at most {MAX_NAME} characters")
    return value


def _fd(value: object) -> int:
    if type(value) is not int or not 0 <= value < MAX_FD:
        raise ValueError(f"an fd is a number below {MAX_FD}")
    return value


def request_device(path: Path, address: str, workload: str, timeout: float = 10.0) -> tuple[str, list[int]]:
    """For workloads: ask the agent's broker for a device; returns its backend's name and its fds (device first).

    Raises DeviceError with the agent's words if it refuses, OSError if there is no agent.
    """
    reply, fds = _ask(path, {"open": address, "workload": workload}, timeout)
    return reply["backend"], fds


def close_device(path: Path, address: str, timeout: float = 10.0) -> None:
    """For workloads: have the node give a device up. Raises DeviceError, OSError as request_device does."""
    _ask(path, {"close": address}, timeout)


def _ask(path: Path, request: dict[str, object], timeout: float) -> tuple[dict[str, str], list[int]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(timeout)
        sock.connect(str(path))
        sock.send(json.dumps(request).encode())
        raw, fds, _, _ = socket.recv_fds(sock, MAX_REQUEST, 8)
    reply: dict[str, str] = json.loads(raw)
    if "error" in reply:
        for fd in fds:
            os.close(fd)
        raise DeviceError(reply["error"], reason=Reason(reply["reason"]))
    return reply, fds
