"""A part of the fault matrix: every fault once, every point at least once. `make faults` runs the whole."""

import pytest

from devtools.faults.cells import Cell, all_cells
from devtools.faults.kinds import KINDS
from devtools.faults.points import POINTS
from devtools.faults.report import Result
from devtools.faults.run import Matrix

CHOSEN = (
    "operator killed, in barrier C",
    "operator stopped, after A",
    "API server killed, decision in flight",
    "source agent killed, mid stop-copy",
    "target agent killed, after the decision",
    "source keeper killed, in barrier B",
    "target keeper killed, in barrier D",
    "source agent and keeper killed, in barrier A",
    "target agent and keeper killed, before the vote",
    "source control link cut, in barrier A",
    "target control link cut, after the vote",
    "source control link half-open, before pause",
    "target control link half-open, in barrier C",
    "control links slow, in pre-copy",
    "data link cut, mid stop-copy",
    "data link stalled, in pre-copy",
    "data link corrupted, mid stop-copy",
    "source disk full, after A",
    "target disk full, after prepare",
    "cancelled, before finish",
    "deleted, after the decision",
)
ARCS = (
    ("source PRE_COPY -> PRE_COPY_P2P fails", "2-2"),
    ("source PRE_COPY_P2P -> STOP_COPY fails into ERROR", "1-1"),
    ("target RESUMING -> STOP is slow", "2-2"),
    ("target RUNNING_P2P -> RUNNING fails", "1-1"),
)
CELLS = [c for c in all_cells() if (c.name, c.shape) in ARCS or c.name in CHOSEN]


def name_of(cell: Cell) -> str:
    return f"{cell.name} ({cell.shape})"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """All are run before the first is looked at: several at once."""
    folder = tmp_path_factory.mktemp("faults")
    matrix = Matrix(folder / "m", lambda _result, _seconds: None)
    found = matrix.run(CELLS, lanes=3, lone_arenas=1)
    assert matrix.broken == []
    return {f"{result.cell} ({result.shape})": result for result in found}


@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_a_fault_breaks_no_promise(results: dict[str, Result], cell: Cell) -> None:
    result = results[name_of(cell)]
    assert not result.error
    assert not result.missed, "the fault was not fired at its point"
    assert [str(violation) for violation in result.violations] == []
    assert not result.stuck, "no terminal phase within a minute of the fault's end"


def test_some_faults_lead_forward_and_some_back(results: dict[str, Result]) -> None:
    assert {"Commit", "Abort"} <= {result.decision for result in results.values()}


def test_every_fault_and_every_point_is_tried() -> None:
    assert len(CELLS) == len(CHOSEN) + len(ARCS)
    assert {c.kind for c in CELLS if c.kind is not None} == set(KINDS)
    assert {c.point for c in CELLS if c.point is not None} == set(POINTS)
