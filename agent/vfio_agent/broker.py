"""Hands open devices to workloads: a unix socket, one request per connection.

{"open": ADDRESS, "workload": NAME}: the agent opens the device, the keeper holds it, and the workload gets duplicates
of its fds by SCM_RIGHTS. The device then has that workload as its holder and is a legal source of a migration.
{"close": ADDRESS}: the workload is done, the keeper lets go of the device, and on real hardware that resets it.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from vfio_agent.holdings import Holdings
from vfio_agent.keeper import KeeperError
from vfio_api.errors import DeviceError, Reason, VFIOMigrationError

log = structlog.get_logger()
MAX_REQUEST = 4096
MAX_NAME = 253
REQUEST_SECONDS = 5.0


class Broker:
    """Listens on `path` from the start. `changed` is called after a device was opened or closed; `busy(address)` names
    the migration whose session uses a device ("" if none does).
    """

    def __init__(self, path: Path, holdings: Holdings, changed: Callable[[], None], busy: Callable[[str], str]):
        self._holdings, self._changed, self._busy = holdings, changed, busy

        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(16)
        self._listener.setblocking(False)

    async def run(self) -> None:
        """Accept and answer, one request at a time, until cancelled."""
        loop = asyncio.get_running_loop()
        with self._listener as listener:
            while True:
                connection, _ = await loop.sock_accept(listener)
                with connection, contextlib.suppress(OSError):
                    await asyncio.to_thread(self._serve, connection)
                self._changed()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(REQUEST_SECONDS)
        fds: list[int] = []
        try:
            request: Any = json.loads(connection.recv(MAX_REQUEST))
            if "close" in request:
                reply = self._close(_name(request["close"]))
            else:
                reply, fds = self._open(_name(request["open"]), _name(request.get("workload", "unnamed")))
        except VFIOMigrationError as error:
            reply = {"error": error.message, "reason": error.reason}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reply = {"error": f"not a request: {error!r:.200}", "reason": Reason.COMMAND_REFUSED}
        except (KeeperError, OSError) as error:
            reply = {"error": f"this node's keeper or device does not answer: {error}", "reason": Reason.DEVICE_LOST}
            log.error("workload's request failed", error=str(error))
        socket.send_fds(connection, [json.dumps(reply).encode()], fds)

    def _open(self, address: str, workload: str) -> tuple[dict[str, str], list[int]]:
        held = self._holdings.get(address)
        if held is None:
            held = self._holdings.open(address, f"workload {workload}")
            log.info("device opened for a workload", device=address, workload=workload)
        elif held.holder.startswith("migration "):
            raise DeviceError(
                f"device {address} is being loaded by {held.holder}: ask again when it has ended",
                device=address,
            )
        return {"backend": held.backend, "incarnation": held.incarnation}, list(held.device.fds())

    def _close(self, address: str) -> dict[str, str]:
        migration = self._busy(address)
        if migration:
            raise DeviceError(f"device {address} is part of migration {migration}: cancel that first", device=address)
        self._holdings.release(address)
        log.info("device closed for its workload", device=address)
        return {}


def _name(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise ValueError(f"a name has at most {MAX_NAME} characters")
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


def _ask(path: Path, request: dict[str, str], timeout: float) -> tuple[dict[str, str], list[int]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(timeout)
        sock.connect(str(path))
        sock.send(json.dumps(request).encode())
        raw, fds, _, _ = socket.recv_fds(sock, MAX_REQUEST, 8)
    reply: dict[str, str] = json.loads(raw)
    if "error" in reply:
        raise DeviceError(reply["error"], reason=Reason(reply["reason"]))
    return reply, fds
