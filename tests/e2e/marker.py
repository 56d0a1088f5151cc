"""What the marker pods run: puts marks into devices, or takes them out, by way of the agent's socket on the node.

    marker.py FOLDER mark|read|close NAME ADDRESS[=MARK]...

FOLDER is where the node has the agent's sockets, NAME who is said to hold the devices; a mark is hexadecimal, 16 bytes.
Prints one line of JSON: address -> mark found.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mtty_workload import Mark, read_mark, write_mark  # beside this file in the pod

from vfio_agent.broker import close_device, request_device
from vfio_agent.devices.simulated import SimulatedBackend

SCRATCH = 1  # bytes of a mark that are a port's scratch register; the rest is in its queue

AGENT_SECONDS = 120.0


def _opened(folder: Path, address: str, name: str) -> tuple[str, list[int]]:
    """The device from the agent's socket; while one agent makes room for the next, nobody listens there."""
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return request_device(folder / "broker.sock", address, name)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _kernel(device: int, mark: bytes) -> bytes:
    if mark:
        write_mark(device, Mark(mark[0], mark[SCRATCH:]))
        return mark
    found = read_mark(device)
    return bytes([found.scratch]) + found.queue


def _simulated(folder: Path, address: str, fds: Sequence[int], mark: bytes) -> bytes:
    with SimulatedBackend(folder / "simulator.sock").adopt(address, fds) as device:
        if mark:
            device.write_region(0, mark)
        return device.read_region(0, 16)


def main(argv: Sequence[str]) -> int:
    """Entry point in the pod."""
    folder, action, name = Path(argv[0]), argv[1], argv[2]
    found = {}
    if action == "close":
        for address in argv[3:]:
            close_device(folder / "broker.sock", address)
        print("{}", flush=True)
        return 0
    for address, _, text in (pair.partition("=") for pair in argv[3:]):
        mark = bytes.fromhex(text) if action == "mark" else b""
        backend, fds = _opened(folder, address, name)
        if backend == SimulatedBackend.name:
            found[address] = _simulated(folder, address, fds, mark)
        else:
            found[address] = _kernel(fds[0], mark)
            for fd in fds:
                os.close(fd)
    print(json.dumps({address: mark.hex() for address, mark in found.items()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
