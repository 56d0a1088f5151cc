"""A command in namespaces of its own: mounts, network, processes and cgroups. What it leaves ends with it.

    python sandbox.py COMMAND...

Needs root. Inside, /run is empty, the network has a loopback only, and the cgroup tree below /sys/fs/cgroup is the
command's own. Standard library only: it runs before and outside everything else.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")
REMOVE_SECONDS = 10.0


def old_cgroups() -> bool:
    """Whether this machine mounts cgroups of version 1."""
    return not (CGROUPS / "cgroup.controllers").exists()


def _hierarchies() -> list[Path]:
    return [CGROUPS / name for name in (*CONTROLLERS, "systemd") if (CGROUPS / name).is_dir()] or [CGROUPS]


def make_cgroup(name: str) -> None:
    """Make a cgroup of this name at the root of every hierarchy, for one node's pods."""
    for hierarchy in _hierarchies():
        group = hierarchy / name
        group.mkdir()
        if hierarchy.name == "cpuset":
            _inherit_cpuset(group)
        controllers = hierarchy / "cgroup.subtree_control"
        if controllers.exists():
            (group / "cgroup.subtree_control").write_text(
                " ".join(f"+{each}" for each in controllers.read_text().split())
            )


def _inherit_cpuset(group: Path) -> None:
    for file in ("cpuset.cpus", "cpuset.mems"):
        (group / file).write_text((group.parent / file).read_text())


def _own(hierarchy: Path) -> Path:
    """The cgroup of this process in a hierarchy."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if (hierarchy == CGROUPS and not names) or hierarchy.name in names.replace("name=", "").split(","):
            return hierarchy / path.lstrip("/")
    return hierarchy


def _enter_cgroups(name: str) -> list[Path]:
    """Move this process to a new cgroup in each hierarchy, which becomes the root of the cgroup namespace."""
    made = []
    for hierarchy in _hierarchies():
        group = _own(hierarchy) / name
        group.mkdir()
        made.append(group)
        if hierarchy.name == "cpuset":
            _inherit_cpuset(group)
        (group / "cgroup.procs").write_text(str(os.getpid()))
    return made


def _leave_cgroups(made: list[Path]) -> None:
    for group in made:
        with contextlib.suppress(OSError):
            (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        deadline = time.monotonic() + REMOVE_SECONDS
        while group.exists() and time.monotonic() < deadline:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            time.sleep(0.05)  # what ended leaves its cgroup a moment later


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _thaw() -> None:
    """What is frozen cannot be ended, and would keep the sandbox from ending."""
    for states, thawed in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        for state in CGROUPS.rglob(states):
            with contextlib.suppress(OSError):
                state.write_text(thawed)


def _inside(command: list[str]) -> int:
    """As process 1: mount, start the command, reap whatever is left to us until it ends."""
    _mount("--make-rprivate", "/")
    _mount("-t", "proc", "proc", "/proc")
    if old_cgroups():
        names = [name for name in CONTROLLERS if (CGROUPS / name).is_dir()]
        _mount("-t", "tmpfs", "none", str(CGROUPS))
        for name in names:
            (CGROUPS / name).mkdir()
            _mount("-t", "cgroup", "-o", name, "cgroup", str(CGROUPS / name))
        (CGROUPS / "systemd").mkdir()
        _mount("-t", "cgroup", "-o", "none,name=systemd", "cgroup", str(CGROUPS / "systemd"))
    else:
        _mount("-t", "cgroup2", "cgroup2", str(CGROUPS))
        (CGROUPS / "command").mkdir()  # who has controllers below it may hold no process itself
        (CGROUPS / "command/cgroup.procs").write_text("0")
        controllers = (CGROUPS / "cgroup.controllers").read_text().split()
        (CGROUPS / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
    _mount("-t", "tmpfs", "-o", "mode=755", "none", "/run")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    child = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal tells the command itself
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            _thaw()
            return os.waitstatus_to_exitcode(status)


def main() -> int:
    """Entry point."""
    if sys.argv[1:2] == ["--inside"]:
        return _inside(sys.argv[2:]) & 0xFF
    if os.geteuid() != 0:
        sys.exit("sandbox: nodes on this machine need root: run it as root, or the stage in guests, which needs none")
    if missing := [tool for tool in ("unshare", "nsenter", "mount", "ip") if shutil.which(tool) is None]:
        sys.exit(f"sandbox: missing programs: {', '.join(missing)}; on Debian: apt-get install util-linux iproute2")
    made = _enter_cgroups(f"vfio-e2e-{os.getpid()}")
    try:
        unshare = ["unshare", "--mount", "--net", "--cgroup", "--ipc", "--pid", "--fork", "--kill-child"]
        signal.signal(signal.SIGINT, lambda *_: None)
        return subprocess.run([*unshare, sys.executable, __file__, "--inside", *sys.argv[1:]], check=False).returncode
    finally:
        _leave_cgroups(made)


if __name__ == "__main__":
    sys.exit(main())
