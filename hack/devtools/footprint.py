"""What a process has: memory, file descriptors, threads, and the tasks of its event loop."""

import urllib.request
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from devtools.processes import Child
from devtools.stack import Stack

KIB_PER_MIB = 1024


@dataclass(frozen=True)
class Footprint:
    """Of one process at a moment. tasks: None for one without an event loop."""

    rss_mib: float
    fds: int
    threads: int
    tasks: int | None


@dataclass(frozen=True)
class Watched:
    """A process to look at. port: of its /metrics; None for one that has none."""

    name: str
    pid: int
    port: int | None = None

    def footprint(self) -> Footprint:
        """As it is now; being asked for its tasks adds nothing to the rest. Raises OSError if it has ended."""
        rss, fds, threads = resident_mib(self.pid), len(descriptors(self.pid)), int(_status(self.pid, "Threads:"))
        return Footprint(rss, fds, threads, None if self.port is None else _tasks(self.port))


def resident_mib(pid: int, *, peak: bool = False) -> float:
    """MiB that a process has resident: now, or at most since `forget_peak`."""
    return int(_status(pid, "VmHWM:" if peak else "VmRSS:")) / KIB_PER_MIB


def forget_peak(pid: int) -> None:
    """Let the peak of a process' resident set begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def descriptors(pid: int) -> list[str]:
    """What the open file descriptors of a process are, in order."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(fd.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    return sorted(found)


def of_stack(stack: Stack, operator: Child) -> list[Watched]:
    """The operator, and every node's agent and keeper."""
    found = [Watched(operator.name, operator.pid, stack.operator_metrics_port(operator))]
    for name, node in stack.nodes.items():
        assert node.agent is not None
        found.append(Watched(f"agent of {name}", node.agent.pid, node.metrics_port()))
        found.append(Watched(f"keeper of {name}", node.keeper.pid))
    return found


def _status(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(field))


def _tasks(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return int(next(f.samples[0].value for f in families if f.name.endswith("_asyncio_tasks")))
