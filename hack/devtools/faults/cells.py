"""The matrix: which fault is tried at which point, in which shape; and which combinations mean nothing, and why."""

from collections.abc import Iterator
from dataclasses import dataclass
from errno import EIO

from devtools.faults.kinds import KINDS, Kind
from devtools.faults.points import POINTS, Arc, Point
from vfio_api.device import DeviceState as S

SLOW_US = 6_000_000  # more than any deadline within the switchover of a cell

DATA = ("data link cut", "data link stalled", "data link corrupted")
# (kind, point) -> why it is left out
LEFT_OUT: dict[tuple[str, str], str] = {
    (kind, point.name): "every byte has been acknowledged: no stream is left" for kind in DATA for point in POINTS[7:]
} | {
    ("data link corrupted", "after prepare"): "the stream rests: whatever it carries next is corrupted, in pre-copy",
    ("source disk full", "before the vote"): "a source records nothing before it hears of the decision",
    ("source disk full", "after the vote"): "a source records nothing before it hears of the decision",
    ("source disk full", "before finish"): "the last record of a source is its release, which is under way",
    ("source disk full", "in barrier B"): "the command was recorded before its first arc",
    ("source disk full", "mid stop-copy"): "the command was recorded before its first arc",
    ("target disk full", "before finish"): "a target that has started records nothing more before its release",
}


@dataclass(frozen=True)
class Cell:
    """A fault at a point; or a device that fails by itself at an arc, without a point to be held at."""

    shape: str
    kind: Kind | None = None
    point: Point | None = None
    side: str = ""
    arc: Arc | None = None
    how: str = ""  # of an arc: "fails", "fails into ERROR", "is slow"

    @property
    def name(self) -> str:
        """As people read it."""
        if self.arc is not None:
            return f"{self.side} {self.arc[0].name} -> {self.arc[1].name} {self.how}"
        assert self.kind is not None
        assert self.point is not None
        return f"{self.kind.name}, {self.point.name}"

    @property
    def alone(self) -> bool:
        """Whether nothing else may run beside it."""
        return bool((self.kind and self.kind.alone) or (self.point and self.point.alone))


ARCS: tuple[tuple[str, Arc], ...] = (
    ("source", (S.RUNNING, S.PRE_COPY)),
    ("source", (S.PRE_COPY, S.PRE_COPY_P2P)),
    ("source", (S.PRE_COPY_P2P, S.STOP_COPY)),
    ("source", (S.STOP_COPY, S.STOP)),
    ("target", (S.RUNNING, S.RUNNING_P2P)),
    ("target", (S.RUNNING_P2P, S.STOP)),
    ("target", (S.STOP, S.RESUMING)),
    ("target", (S.RESUMING, S.STOP)),
    ("target", (S.STOP, S.RUNNING_P2P)),
    ("target", (S.RUNNING_P2P, S.RUNNING)),
)
HOW: dict[str, dict[str, int | bool]] = {
    "fails": {"error": EIO},
    "fails into ERROR": {"error": EIO, "to_error": True},
    "is slow": {"delay_us": SLOW_US},
}


def all_cells() -> list[Cell]:
    """Every cell; both shapes take turns over kinds and points, arcs are tried in both."""
    return [*_of_points(), *_of_arcs()]


def _of_points() -> Iterator[Cell]:
    for row, kind in enumerate(KINDS):
        for column, point in enumerate(POINTS):
            if (kind.name, point.name) not in LEFT_OUT:
                yield Cell("2-2" if (row + column) % 3 == 0 else "1-1", kind, point)


def _of_arcs() -> Iterator[Cell]:
    for side, arc in ARCS:
        for how in HOW:
            for shape in ("1-1", "2-2"):
                yield Cell(shape, side=side, arc=arc, how=how)
