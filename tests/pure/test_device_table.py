"""The table of arcs against the kernel's rules, stated here a second time and in another way.

The rules of include/uapi/linux/vfio.h: drivers implement some direct arcs; the core combines them by the
shortest path; states of the saving group are never passed through on the way between other states.
"""

import itertools

import pytest

from vfio_api.device import (
    DATA_FD_ARCS,
    P2P_QUIESCENT,
    RUNS,
    SAVING,
    DeviceState,
    IllegalArcError,
    MigrationFlags,
    next_state,
    path,
    supports,
)

S = DeviceState
F = MigrationFlags
FLAGS = [F(value) for value in range(8)]
EVERY_ARC = list(itertools.product(S, S, FLAGS))

STOPPED_ARCS = {(S.STOP, S.STOP_COPY), (S.STOP_COPY, S.STOP), (S.STOP, S.RESUMING), (S.RESUMING, S.STOP)}
P2P_ARCS = {
    (S.STOP, S.RUNNING_P2P),
    (S.RUNNING_P2P, S.STOP),
    (S.RUNNING, S.RUNNING_P2P),
    (S.RUNNING_P2P, S.RUNNING),
}
NO_P2P_ARCS = {(S.STOP, S.RUNNING), (S.RUNNING, S.STOP)}
PRE_COPY_ARCS = {(S.RUNNING, S.PRE_COPY), (S.PRE_COPY, S.RUNNING)}
PRE_COPY_P2P_ARCS = {
    (S.RUNNING_P2P, S.PRE_COPY_P2P),
    (S.PRE_COPY_P2P, S.RUNNING_P2P),
    (S.PRE_COPY, S.PRE_COPY_P2P),
    (S.PRE_COPY_P2P, S.PRE_COPY),
    (S.PRE_COPY_P2P, S.STOP_COPY),
}
PRE_COPY_NO_P2P_ARCS = {(S.PRE_COPY, S.STOP_COPY)}


def direct_arcs(flags: F) -> set[tuple[S, S]]:
    if F.STOP_COPY not in flags:
        return set()
    arcs = STOPPED_ARCS | (P2P_ARCS if F.P2P in flags else NO_P2P_ARCS)
    if F.PRE_COPY in flags:
        arcs |= PRE_COPY_ARCS | (PRE_COPY_P2P_ARCS if F.P2P in flags else PRE_COPY_NO_P2P_ARCS)
    return arcs


def routes(start: S, end: S, arcs: set[tuple[S, S]], inner: set[S]) -> list[tuple[S, ...]]:
    """Every route without a loop, whose interior states are all in `inner`."""
    found = []
    unfinished: list[tuple[S, ...]] = [(start,)]
    while unfinished:
        route = unfinished.pop()
        for source, target in arcs:
            if source != route[-1] or target in route:
                continue
            if target == end:
                found.append((*route[1:], target))
            elif target in inner:
                unfinished.append((*route, target))
    return found


def expected_path(start: S, end: S, flags: F) -> tuple[S, ...] | None:
    """By the rules; None: refused. Moves within the saving group stay in it, as they keep the data fd."""
    if start == end:
        return ()
    inner = {S.PRE_COPY, S.PRE_COPY_P2P} if {start, end} <= SAVING else set(S) - SAVING
    found = routes(start, end, direct_arcs(flags), inner)
    if not found:
        return None
    shortest = min(map(len, found))
    best = [route for route in found if len(route) == shortest]
    assert len(best) == 1, f"the rules leave a choice: {best}"
    return best[0]


def actual_path(start: S, end: S, flags: F) -> tuple[S, ...] | None:
    try:
        return path(start, end, flags)
    except IllegalArcError:
        return None


def reachable(flags: F) -> set[S]:
    """States that a device with `flags` can be in at all."""
    return {state for state in S if supports(flags, state)} | {S.ERROR}


@pytest.mark.parametrize(("start", "end", "flags"), [arc for arc in EVERY_ARC if arc[0] in reachable(arc[2])], ids=repr)
def test_paths_are_the_kernels(start: S, end: S, flags: F) -> None:
    assert actual_path(start, end, flags) == expected_path(start, end, flags)


@pytest.mark.parametrize(("start", "end", "flags"), EVERY_ARC, ids=repr)
def test_a_path_has_no_loop_and_only_states_the_device_has(start: S, end: S, flags: F) -> None:
    states = actual_path(start, end, flags)
    if states is None or start == end:
        return
    assert states[-1] == end
    assert len({start, *states}) == 1 + len(states)
    assert all(supports(flags, state) for state in states)
    assert SAVING.isdisjoint(states[:-1]) or {start, end} <= SAVING


@pytest.mark.parametrize("flags", FLAGS, ids=repr)
def test_error_is_a_dead_end(flags: F) -> None:
    for state in set(S) - {S.ERROR}:
        assert actual_path(S.ERROR, state, flags) is None
        assert actual_path(state, S.ERROR, flags) is None


@pytest.mark.parametrize("flags", FLAGS, ids=repr)
@pytest.mark.parametrize("pre_copy", [S.PRE_COPY, S.PRE_COPY_P2P])
def test_stop_copy_never_goes_back_to_pre_copy(pre_copy: S, flags: F) -> None:
    with pytest.raises(IllegalArcError) as refused:
        next_state(S.STOP_COPY, pre_copy, flags)
    assert (refused.value.current, refused.value.new) == (S.STOP_COPY, pre_copy)


@pytest.mark.parametrize(("start", "end", "flags"), EVERY_ARC, ids=repr)
def test_states_the_device_lacks_are_refused_and_skipped(start: S, end: S, flags: F) -> None:
    if start != end and not (supports(flags, start) and supports(flags, end)):
        assert actual_path(start, end, flags) is None
    if F.P2P not in flags and start != end:
        assert not {S.RUNNING_P2P, S.PRE_COPY_P2P} & {*(actual_path(start, end, flags) or ())}


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        # Leaving pre-copy goes through RUNNING, not through PRE_COPY_P2P: the device initiates again for a
        # moment.
        (S.PRE_COPY, S.STOP, (S.RUNNING, S.RUNNING_P2P, S.STOP)),
        (S.PRE_COPY, S.STOP_COPY, (S.PRE_COPY_P2P, S.STOP_COPY)),
        (S.PRE_COPY_P2P, S.RUNNING, (S.RUNNING_P2P, S.RUNNING)),
        (S.RUNNING, S.PRE_COPY_P2P, (S.RUNNING_P2P, S.PRE_COPY_P2P)),
        (S.RUNNING, S.STOP_COPY, (S.RUNNING_P2P, S.STOP, S.STOP_COPY)),
        (S.RESUMING, S.RUNNING, (S.STOP, S.RUNNING_P2P, S.RUNNING)),
    ],
)
def test_rows_worth_knowing_by_heart(start: S, end: S, expected: tuple[S, ...]) -> None:
    assert path(start, end, F.STOP_COPY | F.P2P | F.PRE_COPY) == expected


def test_data_fds_come_where_saving_or_resuming_begins() -> None:
    arcs = set().union(*(direct_arcs(flags) for flags in FLAGS))
    begins_saving = {(a, b) for a, b in arcs if b in SAVING and a not in SAVING}
    assert begins_saving | {(S.STOP, S.RESUMING)} == DATA_FD_ARCS


def test_a_device_runs_or_is_quiescent_or_has_no_state() -> None:
    assert RUNS | P2P_QUIESCENT | {S.ERROR} == set(S)
    assert {S.RUNNING_P2P, S.PRE_COPY_P2P} == (RUNS & P2P_QUIESCENT)
