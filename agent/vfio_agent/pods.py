"""Which pod a process of this node is in, and which processes a pod has: by the kernel and the kubelet's folders.

The agent asks no API server for this: it has no right on pods, and the cgroup cannot be claimed by what runs in it.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from errno import ENOTDIR
from pathlib import Path

# The kubelet's cgroup of a pod, by its cgroupfs driver or by its systemd driver, which turns "-" into "_". Static pods
# have a hash for a UID.
_UID = r"[0-9a-f]{32}|[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}"
_POD = re.compile(rf"(?:(?:[a-z0-9._]+-)*kubepods[a-z-]*-)?pod({_UID})(?:\.slice)?")
MAX_KNOWN = 1024
MAX_DEPTH = 6  # of a pod's cgroup below the root of its hierarchy


@dataclass(frozen=True, slots=True)
class PodRef:
    """A pod of this node. namespace and name are "" if the kubelet's folders do not tell them."""

    uid: str
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.name else self.uid


@dataclass(frozen=True, slots=True)
class NodeFolders:
    """Where the host's file systems are mounted, so that an agent in a container may see them elsewhere.

    cgroups: /sys/fs/cgroup of the host. pod_logs: the kubelet's podLogsDir, with a folder NAMESPACE_NAME_UID per pod.
    """

    proc: Path = Path("/proc")
    cgroups: Path = Path("/sys/fs/cgroup")
    pod_logs: Path = Path("/var/log/pods")


def pod_of(name: str) -> str:
    """UID of the pod whose cgroup has this name (one part of a path); "" if it is no pod's."""
    found = _POD.fullmatch(name)
    return found[1].replace("_", "-") if found else ""


def pod_in(cgroups: str) -> str:
    """UID of the pod that a process is in, of the text of its /proc/PID/cgroup; "" if it is in none.

    The outermost one counts: what is below is made by whoever runs there, and may be called anything.
    """
    paths = (line.split(":", 2)[2] for line in cgroups.split("\n") if line.count(":") >= 2)
    return next((uid for path in paths for part in path.split("/") if (uid := pod_of(part))), "")


class Pods:
    """The pods of this node; every call looks whether it is still so."""

    def __init__(self, folders: NodeFolders | None = None):
        self.folders = folders or NodeFolders()
        self._cgroups: dict[str, Path] = {}  # where they were found last

    def uid_of(self, pid: int) -> str:
        """UID of the pod that a process is in; "" if it is in none, or has ended."""
        try:
            return self.peer(pid)
        except OSError:
            return ""

    def peer(self, pid: int) -> str:
        """As `uid_of`, of a process that is there. Raises OSError if it has ended: whose it was nobody knows then."""
        return pod_in((self.folders.proc / str(pid) / "cgroup").read_text(errors="replace"))

    def processes(self, uid: str) -> list[int]:
        """Every process of a pod, in the order of their numbers."""
        return self.by_pod().get(uid, [])

    def members(self, uid: str) -> set[int]:
        """As `processes`, by the pod's cgroup if there is one: without a look at every other process of the node."""
        try:
            folder = self.cgroup(uid)
        except OSError:
            folder = None
        if folder is None:
            return set(self.processes(uid))
        found: set[int] = set()
        for path, _, _ in os.walk(folder):
            # it went meanwhile; or it is threaded, and its processes are listed above
            with contextlib.suppress(OSError):
                found |= {int(line) for line in Path(path, "cgroup.procs").read_text().split()}
        return found

    def by_pod(self) -> dict[str, list[int]]:
        """UID of every pod, and "", -> its processes, in the order of their numbers."""
        found: dict[str, list[int]] = {}
        for pid in sorted(int(entry.name) for entry in self.folders.proc.iterdir() if entry.name.isdecimal()):
            found.setdefault(self.uid_of(pid), []).append(pid)
        return found

    def ref(self, uid: str) -> PodRef:
        """The pod with the name that the kubelet's folders tell."""
        try:
            for entry in self.folders.pod_logs.iterdir():
                namespace, _, rest = entry.name.partition("_")
                name, _, found = rest.partition("_")
                if found == uid:
                    return PodRef(uid, namespace, name)
        except OSError:
            pass
        return PodRef(uid)

    def cgroup(self, uid: str) -> Path | None:
        """The folder of a pod's cgroup in the hierarchy that can freeze it; None if there is none (any more).

        Raises OSError if that cannot be told.
        """
        known = self._cgroups.get(uid)
        if known is not None and known.is_dir():
            return known
        self._cgroups.pop(uid, None)
        old = self.folders.cgroups / "freezer"
        root = old if old.is_dir() else self.folders.cgroups
        if not root.is_dir():
            raise NotADirectoryError(ENOTDIR, f"no cgroups are mounted at {root}")
        found = next((folder for folder in _below(root, MAX_DEPTH) if pod_of(folder.name) == uid), None)
        if found is not None:
            if len(self._cgroups) >= MAX_KNOWN:
                self._cgroups.clear()
            self._cgroups[uid] = found
        return found


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Every folder below, those above before those below them; nothing is below a pod."""
    level = [folder]
    for _ in range(depth):
        found: list[Path] = []
        for each in level:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it went meanwhile
                found += [entry for entry in each.iterdir() if entry.is_dir() and not entry.is_symlink()]
        yield from found
        level = [each for each in found if not pod_of(each.name)]
