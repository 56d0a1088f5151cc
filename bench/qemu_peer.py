"""QEMU migrates mediated devices from one process to another. Runs inside a guest, on the standard library alone.

    python qemu_peer.py SOURCE,SOURCE TARGET,TARGET

A machine of 64 MiB with SeaBIOS and nothing else, by TCP of loopback, without TLS. Prints one line of JSON: what
query-migrate says, and the events of both processes with QEMU's own times.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

IDLE_SECONDS = 8.0  # until SeaBIOS has come to rest: no page gets dirty any more
SECONDS = 90.0
POLL_SECONDS = 0.05
WANTED = ("STOP", "RESUME", "VFIO_MIGRATION", "MIGRATION")
Json = dict[str, Any]


class Monitor:
    """QEMU's machine protocol at a unix socket. Raises OSError if nobody answers, RuntimeError if QEMU refuses."""

    def __init__(self, path: Path):
        deadline = time.monotonic() + SECONDS
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                self._socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
        self._file = self._socket.makefile("rw")
        self.events: list[Json] = []
        self._file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """One command and its answer."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            said: Json = json.loads(self._file.readline())
            if "event" in said:
                self.events.append(said)
            elif "error" in said:
                raise RuntimeError(f"{command}: {said['error']['desc']}")
            else:
                return said["return"]


def command(program: str, monitor: Path, devices: list[str]) -> list[str]:
    """A machine that has these devices."""
    plain = "-machine pc,accel=tcg,hpet=off -cpu qemu64 -m 64 -nodefaults -display none -vga none -no-user-config"
    found = [program, *plain.split(), "-qmp", f"unix:{monitor},server=on,wait=off"]
    for number, uuid in enumerate(devices):
        path = f"/sys/bus/mdev/devices/{uuid}"
        # mtty marks no pages: the stock kernel refuses to track what it does by DMA
        options = "enable-migration=on,migration-events=on,x-device-dirty-page-tracking=off"
        found += ["-device", f"vfio-pci,id=v{number},sysfsdev={path},{options}"]
    return found


def migrate(source: Monitor, target: Monitor, port: int) -> Json:
    """Migrate the machine; what query-migrate says at the end."""
    for monitor in (source, target):
        monitor.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    source.execute("migrate", uri=f"tcp:127.0.0.1:{port}")
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found: Json = source.execute("query-migrate")
        if found["status"] in ("completed", "failed", "cancelled"):
            return found
        time.sleep(POLL_SECONDS)
    raise RuntimeError(f"QEMU's migration has not ended within {SECONDS:g} s")


def await_running(target: Monitor) -> str:
    """The source is done before the target runs. Returns the target's last status, if it is another one."""
    deadline = time.monotonic() + SECONDS
    while True:
        status = str(target.execute("query-status")["status"])
        if status == "running" or time.monotonic() > deadline:
            return status
        time.sleep(POLL_SECONDS)


def run(program: str, sources: list[str], targets: list[str], folder: Path) -> Json:
    """One migration between two new processes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = []
    try:
        for name, devices, incoming in (("a", sources, []), ("b", targets, ["-incoming", f"tcp:127.0.0.1:{port}"])):
            argv = [*command(program, folder / name, devices), *incoming]
            started.append(subprocess.Popen(argv, stdout=sys.stderr))
        source, target = Monitor(folder / "a"), Monitor(folder / "b")
        time.sleep(IDLE_SECONDS)
        found = migrate(source, target, port)
        status = await_running(target)
        events = [
            {"time": e["timestamp"]["seconds"] + e["timestamp"]["microseconds"] / 1e6, "side": side, **e}
            for side, monitor in (("source", source), ("target", target))
            for e in monitor.events
            if e["event"] in WANTED
        ]
        return {"migration": found, "target": status, "events": sorted(events, key=lambda e: e["time"])}
    finally:
        for process in started:
            process.kill()
            process.wait()


def main() -> None:
    """See the module."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        sys.exit("qemu-system-x86_64 is missing: install qemu-system-x86 (10.0 or later)")
    sources, targets = (argument.split(",") for argument in sys.argv[1:3])
    os.chdir("/run")
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        print(json.dumps(run(program, sources, targets, Path(folder))))


if __name__ == "__main__":
    main()
