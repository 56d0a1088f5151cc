"""Hands open devices to workloads: a unix socket, one request {"open": ADDRESS, "workload": NAME} per connection.

The agent opens the device, the keeper holds it, and the workload gets duplicates of its fds by SCM_RIGHTS. The device
then has that workload as its holder and is a legal source of a migration.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from vfio_api.errors import DeviceError, Reason, VFIOMigrationError

from vfio_agent.holdings import Holdings

log = structlog.get_logger()
MAX_REQUEST = 4096
REQUEST_SECONDS = 5.0


class Broker:
    """Serves `path` until cancelled. `changed` is called after a device was opened."""

    def __init__(self, path: Path, holdings: Holdings, changed: Callable[[], None]):
        self._path, self._holdings, self._changed = path, holdings, changed

    async def run(self) -> None:
        """Accept and answer, one request at a time."""
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(self._path))
            self._path.chmod(0o600)
            listener.listen(16)
            listener.setblocking(False)
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
            address, workload = str(request["open"]), str(request.get("workload", "unnamed"))
            reply, fds = self._open(address, workload)
        except VFIOMigrationError as error:
            reply = {"error": error.message, "reason": error.reason}
        except (ValueError, KeyError, TypeError) as error:
            reply = {"error": f"not a request: {error!r}", "reason": Reason.COMMAND_REFUSED}
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


def request_device(path: Path, address: str, workload: str, timeout: float = 10.0) -> tuple[str, list[int]]:
    """For workloads: ask the agent's broker for a device; returns its backend's name and its fds (device first).

    Raises DeviceError with the agent's words if it refuses, OSError if there is no agent.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(timeout)
        sock.connect(str(path))
        sock.send(json.dumps({"open": address, "workload": workload}).encode())
        raw, fds, _, _ = socket.recv_fds(sock, MAX_REQUEST, 8)
    reply = json.loads(raw)
    if "error" in reply:
        raise DeviceError(reply["error"], reason=Reason(reply["reason"]), device=address)
    return reply["backend"], fds
