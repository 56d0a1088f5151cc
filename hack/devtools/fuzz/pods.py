"""Pods as a node's folders show them: what is asked for, and what is frozen, is that of files."""

import os
import random
from pathlib import Path

from devtools.fuzz.samples import FROZEN
from vfio_agent.incoming import Incoming
from vfio_agent.pods import NodeFolders
from vfio_api.v1 import agent_pb2 as pb

RUNS, ENDED = "a3949ec7-2bdc-4081-b0de-abc3065637b2", "0d4f1f3c-9a0e-4a53-8c1f-5f6f0e1c2a3b"


class FewPods:
    """Two pods in a folder like /proc, of which one has a process all the time; who asks is in one of them, or in none.

    incoming: what a pod is to take over, as it comes further and further until its migration ends.
    """

    def __init__(self, proc: Path):
        self.peer, self._left = "", list[Incoming | None]()
        self._own = proc / str(os.getpid()) / "cgroup"
        for folder in (self._own.parent, proc / "99999999"):
            folder.mkdir()
        (proc / "99999999" / "cgroup").write_text(f"0::/kubepods/pod{RUNS}/c\n")

    def shuffle(self, rng: random.Random) -> None:
        """Another one asks."""
        self.peer = rng.choice(("", RUNS, ENDED))
        self._own.write_text(f"0::/kubepods/pod{self.peer}/a:/pod{RUNS}/c\n" if self.peer else "0::/init.scope\n")
        names = rng.choice((("mem0",), ("mem0", "mem2"), ("none",)))
        devices = tuple((f"gpu{n}", name) for n, name in enumerate(names))
        ready, running = sorted(rng.randrange(4) for _ in range(2))
        self._left = [Incoming(devices, n >= ready, n >= running) for n in range(rng.randrange(1, 5))]

    def incoming(self, pod: str) -> Incoming | None:
        """See Broker."""
        return self._left.pop(0) if pod == self.peer and self._left else None


def forget_frozen(told: pb.Command) -> None:
    """The command is of another migration: that pod is not one of it."""
    others = [workload for workload in told.spec.workloads if workload.pod_uid != FROZEN.pod_uid]
    if len(others) < len(told.spec.workloads):
        del told.spec.workloads[:]
        told.spec.workloads.extend(others)


class FrozenPod:
    """The cgroup of a pod, as a kernel shows it in which everything freezes at once."""

    def __init__(self, root: Path, uid: str):
        self.folders = NodeFolders(proc=root / "proc", cgroups=root / "cgroups", pod_logs=root / "logs")
        folder = self.folders.cgroups / "kubepods" / f"pod{uid}"
        for each in (self.folders.proc, folder):
            each.mkdir(parents=True, exist_ok=True)
        self._asked = folder / "cgroup.freeze"
        (folder / "cgroup.events").write_text("populated 1\nfrozen 1\n")
        self.thaw()

    def thaw(self) -> None:
        """As a kubelet has made it."""
        self._asked.write_text("0")

    @property
    def frozen(self) -> bool:
        """What was asked of it last."""
        return self._asked.read_text() == "1"
