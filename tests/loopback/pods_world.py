"""Pods of this machine: real cgroups with real processes, as a kubelet makes them; and one that never freezes."""

import contextlib
import os
import select
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from vfio_agent.freezer import thaw
from vfio_agent.pods import NodeFolders, PodRef, Pods
from vfio_api.types import Hook, PauseMethod, Workload

# version 1, version 2 beside it, version 2 alone: one of the first and the last is on every machine
MOUNTED = [
    root
    for root, sign in (
        ("/sys/fs/cgroup", "freezer"),
        ("/sys/fs/cgroup/unified", "cgroup.procs"),
        ("/sys/fs/cgroup", "cgroup.procs"),
    )
    if Path(root, sign).exists()
]
SECONDS = 30.0  # a test that waits longer has failed


class Pod:
    """A pod with a process that answers every line that it is told."""

    def __init__(self, root: Path = Path(MOUNTED[0])):
        self.uid = str(uuid.uuid4())
        self.folders = NodeFolders(cgroups=root)
        self.pods, self.ref = Pods(self.folders), PodRef(self.uid, "team", "web")
        self._closing = contextlib.ExitStack()
        below = root / "freezer" if (root / "freezer").is_dir() else root
        group = below / f"vfio-test-{os.getpid()}-{self.uid[:8]}"
        self.folder = group / f"pod{self.uid}"
        for each in (group, self.folder, self.folder / "container"):
            each.mkdir()
            self._closing.callback(each.rmdir)
        self.process = self.run(["cat"])

    def run(self, command: list[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """A process in the pod; it begins when it is in there, and ends with the pod."""
        line = ["sh", "-c", 'read _; exec "$@"', "sh", *command]
        started = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=env)
        process = self._closing.enter_context(started)
        self._closing.callback(process.kill)
        (self.folder / "container" / "cgroup.procs").write_text(str(process.pid))
        assert process.stdin is not None
        process.stdin.write(b"\n")
        return process

    def ask(self) -> None:
        """Tell its process a line; the answer is read by `answers` or `silent`."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"tick\n")

    def answers(self) -> bool:
        """Whether what was asked is answered before the test gives up."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        return bool(ready) and self.process.stdout.readline() == b"tick\n"

    def silent(self) -> bool:
        """Whether nothing was answered so far."""
        assert self.process.stdout is not None
        return not select.select([self.process.stdout], [], [], 0.2)[0]

    @property
    def runs(self) -> bool:
        """Whether its process does what it is told."""
        self.ask()
        return self.answers()

    @property
    def frozen(self) -> bool:
        """What the kernel says of its cgroup."""
        old = self.folder / "freezer.state"
        if old.exists():
            return old.read_text().strip() == "FROZEN"
        return "frozen 1" in (self.folder / "cgroup.events").read_text()

    def ended_silently(self) -> bool:
        """Whether it is killed, and has said nothing before."""
        try:
            killed = self.process.wait(10) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            return False
        assert self.process.stdout is not None
        return killed and not self.process.stdout.read()

    def workload(self, *, moved: bool = True, milliseconds: int = 20_000) -> Workload:
        """This pod as a session is told of it, to be frozen."""
        return Workload(self.uid, "team", "web", PauseMethod.FREEZE, milliseconds, moved=moved)

    def close(self) -> None:
        """Nothing of it is left."""
        thaw(self.pods, self.ref)
        self._closing.close()


class Stubborn:
    """A pod that never says that it is frozen, whatever is written: folders as a kernel shows them.

    version: of cgroups.
    """

    def __init__(self, root: Path, version: int):
        self.uid, self.version = str(uuid.uuid4()), version
        self.folders = NodeFolders(cgroups=root)
        folder = root / ("freezer/kubepods" if version == 1 else "kubepods") / f"pod{self.uid}"
        folder.mkdir(parents=True)
        self.ref = PodRef(self.uid, "team", "stubborn")
        self._asked = folder / ("freezer.state" if version == 1 else "cgroup.freeze")
        if version == 1:
            self._asked.symlink_to("/dev/null")  # what is read is not what was written
        else:
            self._asked.write_text("0")
            (folder / "cgroup.events").write_text("populated 1\nfrozen 0\n")

    @property
    def asked(self) -> str:
        """What was written last; of version 2 only."""
        return self._asked.read_text()

    def workload(self, *, milliseconds: int) -> Workload:
        """This pod as a session is told of it."""
        return Workload(self.uid, "team", "stubborn", PauseMethod.FREEZE, milliseconds, moved=True)


def hooked(hook: Hook, name: str = "web") -> Workload:
    """A pod that is paused by its hook."""
    return Workload(str(uuid.uuid4()), "team", name, PauseMethod.HOOK, 20_000, hook, moved=True)


@contextlib.contextmanager
def pod() -> Iterator[Pod]:
    """One, for as long as it is needed."""
    made = Pod()
    try:
        yield made
    finally:
        made.close()
