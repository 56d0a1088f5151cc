"""What a transfer of the data plane's benchmark took."""

import resource
from dataclasses import dataclass, replace
from pathlib import Path

GIB = 1 << 30
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Run:
    """One transfer: from the connecting of the first stream until the last byte is acknowledged, or was taken.

    growth_mib: of the peak resident set of the source and of the target, over what they had before; none for peers.
    """

    seconds: float
    cpu_seconds: float
    size: int
    growth_mib: tuple[float, ...] = ()

    def without(self, other: "Run") -> "Run":
        """The same, less the time of `other`."""
        return replace(self, seconds=self.seconds - other.seconds, cpu_seconds=self.cpu_seconds - other.cpu_seconds)

    @property
    def gib_per_second(self) -> float:
        """The throughput."""
        return self.size / GIB / self.seconds

    @property
    def cpu_per_gib(self) -> float:
        """CPU seconds of both ends per GiB."""
        return self.cpu_seconds / (self.size / GIB)


@dataclass(frozen=True)
class Peak:
    """What a process used before a measurement: CPU seconds, and its resident set in KiB."""

    cpu: float
    resident: int

    @classmethod
    def start(cls) -> "Peak":
        """From now on."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
        return cls(cpu_seconds(resource.RUSAGE_SELF), _status("VmRSS"))

    def end(self) -> tuple[float, float]:
        """CPU seconds used, and MiB by which the resident set has grown at most."""
        return cpu_seconds(resource.RUSAGE_SELF) - self.cpu, (_status("VmHWM") - self.resident) / 1024


def cpu_seconds(who: int) -> float:
    """CPU time used so far. who: as resource.getrusage has it."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
