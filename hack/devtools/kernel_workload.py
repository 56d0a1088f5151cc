"""A workload in a guest: opens its devices through the agent's broker and puts marks into them, as the host asks.

`serve` runs inside the guest and answers one request per connection, a line of JSON; `Workload` is its caller on the
host. The workload holds no device between requests: the agent's keeper does, as it would for a workload that pauses.
It also reads the kernel's log on from where it stopped, which is what the drivers did between two requests.
"""

import argparse
import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from devtools.mtty_trace import Arc, parse_driver_trace
from devtools.mtty_workload import (
    Armed,
    Fault,
    Mark,
    arm_fault,
    armed_faults,
    disarm_faults,
    interrupt_line,
    read_mark,
    release_held,
    set_interrupt_line,
    write_mark,
)

PORTS = 2
"""Ports of the device type mtty-2; each takes a mark."""
MAX_REQUEST = 64 * 1024
REQUEST_SECONDS = 60.0
RECORD_BYTES = 8192
Marks = tuple[Mark, ...]


class WorkloadError(RuntimeError):
    """The workload could not do what was asked for; `reason` is the agent's, if it was the agent that refused."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


class KernelLog:
    """The kernel's log as records of /dev/kmsg, each of them once."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)

    def news(self) -> str:
        """What was logged since the last call; at the first, since the boot."""
        records: list[bytes] = []
        while True:
            try:
                records.append(os.read(self._fd, RECORD_BYTES))
            except BlockingIOError:
                return b"".join(records).decode(errors="replace")
            # BrokenPipeError, records overwritten before they were read, is for the caller: the trace has a hole


@dataclass(frozen=True)
class Workload:
    """The host's end of the workload in one guest, at a forwarded port of 127.0.0.1."""

    name: str
    port: int

    def mark(self, address: str, marks: Marks) -> None:
        """Have the device opened, if it is not, and its ports marked. Raises WorkloadError."""
        self._ask({"op": "mark", "device": address, "marks": [[m.scratch, m.queue.hex()] for m in marks]})

    def read(self, address: str) -> Marks:
        """Take the marks out of a device that is held for workloads. Raises WorkloadError."""
        found = self._ask({"op": "read", "device": address})["marks"]
        return tuple(Mark(scratch, bytes.fromhex(queue)) for scratch, queue in found)

    def close(self, address: str) -> None:
        """Give a device up: the node closes it. Raises WorkloadError."""
        self._ask({"op": "close", "device": address})

    def set_interrupt_line(self, address: str, line: int) -> None:
        """Write the register of the PCI config space that the device's own state leaves out. Raises WorkloadError."""
        self._ask({"op": "set line", "device": address, "line": line})

    def interrupt_line(self, address: str) -> int:
        """Read it. Raises WorkloadError."""
        return int(self._ask({"op": "line", "device": address})["line"])

    def arm_fault(
        self, old: int, new: int, fault: Fault, *, device: str = "", delay_ms: int = 0, count: int = 1
    ) -> None:
        """See `devtools.mtty_workload.arm_fault`."""
        options = {"device": device, "delay_ms": delay_ms, "count": count}
        self._ask({"op": "fault", "old": old, "new": new, "kind": fault.name, **options})

    def armed(self) -> list[Armed]:
        """See `devtools.mtty_workload.armed_faults`."""
        faults = self._ask({"op": "armed"})["faults"]
        return [Armed(device, old, new, Fault(mode), left, hits) for device, old, new, mode, left, hits in faults]

    def release(self) -> None:
        """Let every arc that is held go on."""
        self._ask({"op": "release"})

    def disarm(self) -> None:
        """Let all arcs pass again, and those that are held go on."""
        self._ask({"op": "disarm"})

    def log(self) -> str:
        """What the guest's kernel has logged since the last call."""
        return str(self._ask({"op": "kernel log"})["text"])

    def arcs(self) -> list[Arc]:
        """The arcs of every device of the guest since the last call, as the driver logged them."""
        return parse_driver_trace(self.log())

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with socket.create_connection(("127.0.0.1", self.port), REQUEST_SECONDS) as sock:
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as answer:
                raw = answer.read()
        if not raw:
            raise WorkloadError(f"the workload in {self.name} does not answer")
        reply: dict[str, Any] = json.loads(raw)
        if "error" in reply:
            raise WorkloadError(f"workload in {self.name}: {reply['error']}", reply.get("reason", ""))
        return reply


@contextmanager
def _opened(broker: Path, address: str) -> Iterator[int]:
    """The device's fd, by way of the agent."""
    from vfio_agent.broker import request_device

    _backend, fds = request_device(broker, address, "marker")
    try:
        yield fds[0]
    finally:
        for fd in fds:
            os.close(fd)


class _Server:
    """What the guest's end does for each request."""

    def __init__(self, broker: Path):
        self._broker = broker
        self._log = KernelLog()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        match request["op"]:
            case "mark":
                with _opened(self._broker, request["device"]) as device:
                    for port, (scratch, queue) in enumerate(request["marks"]):
                        write_mark(device, Mark(scratch, bytes.fromhex(queue)), port)
            case "read":
                with _opened(self._broker, request["device"]) as device:
                    marks = [read_mark(device, port) for port in range(PORTS)]
                return {"marks": [[mark.scratch, mark.queue.hex()] for mark in marks]}
            case "close":
                from vfio_agent.broker import close_device

                close_device(self._broker, request["device"])
            case "set line":
                with _opened(self._broker, request["device"]) as device:
                    set_interrupt_line(device, request["line"])
            case "line":
                with _opened(self._broker, request["device"]) as device:
                    return {"line": interrupt_line(device)}
            case "fault":
                options = {key: request[key] for key in ("device", "delay_ms", "count")}
                arm_fault(request["old"], request["new"], Fault[request["kind"]], **options)
            case "armed":
                return {"faults": [astuple(fault) for fault in armed_faults()]}
            case "release":
                release_held()
            case "disarm":
                disarm_faults()
            case "kernel log":
                return {"text": self._log.news()}
            case unknown:
                return {"error": f"unknown request {unknown!r}"}
        return {}


def serve(broker: Path, port: int) -> None:
    """Answer requests on all addresses, until killed."""
    from vfio_api.errors import VFIOMigrationError

    server = _Server(broker)
    with socket.create_server(("", port)) as listener:
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                try:
                    reply = server.answer(json.loads(lines.readline(MAX_REQUEST)))
                except VFIOMigrationError as error:
                    reply = {"error": error.message, "reason": error.reason.value}
                except (OSError, ValueError, LookupError) as error:
                    reply = {"error": f"{type(error).__name__}: {error}"}
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps(reply).encode())


def main(argv: list[str] | None = None) -> int:
    """Entry point in the guest."""
    parser = argparse.ArgumentParser(description="A workload that marks devices.")
    parser.add_argument("--broker", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args(argv)
    serve(given.broker, given.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
