"""The table of the fault matrix: nothing is forgotten, nothing is left out without a reason."""

from collections import Counter
from itertools import product

from devtools.faults.cells import ARCS, HOW, LEFT_OUT, all_cells
from devtools.faults.kinds import KINDS
from devtools.faults.points import POINTS

CELLS = all_cells()
COMBINATIONS = {(kind.name, point.name) for kind, point in product(KINDS, POINTS)}


def test_every_fault_at_every_point_is_a_cell_or_is_left_out_with_a_reason() -> None:
    run = {(c.kind.name, c.point.name) for c in CELLS if c.kind is not None and c.point is not None}
    assert run | set(LEFT_OUT) == COMBINATIONS
    assert not run & set(LEFT_OUT)
    assert all(LEFT_OUT.values())


def test_every_arc_fails_in_every_way_in_both_shapes() -> None:
    run = Counter((c.side, c.arc, c.how) for c in CELLS if c.arc is not None)
    assert run == {(side, arc, how): 2 for side, arc in ARCS for how in HOW}


def test_there_are_enough_cells_of_both_shapes_and_none_twice() -> None:
    assert len(CELLS) >= 200
    assert min(Counter(c.shape for c in CELLS).values()) >= len(CELLS) // 3
    assert len({(c.name, c.shape) for c in CELLS}) == len(CELLS)
