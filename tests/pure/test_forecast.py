"""The forecast of the downtime: what it is made of, and what it is worth before anything was measured."""

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_api.device import DeviceState, MigrationFlags
from vfio_api.types import DeviceReport, Goal, MigrationKey, Role, SessionReport, Timing
from vfio_operator.forecast import (
    MOST_ASSUMED_ARC,
    UNKNOWN_ARC,
    UNKNOWN_BYTES_PER_SECOND,
    UNKNOWN_DECISION,
    UNKNOWN_ROUND_TRIP,
    converged,
    forecast,
    not_acknowledged,
    planned,
    within_limit,
)
from vfio_operator.observed import DeviceRecord, Known, Observed, Pair, Participant, Shape, Strategy, Wish

MB = 1_000_000
ALL = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
TWO = (Pair("x", "a", "x", "c", "x"), Pair("y", "b", "y", "d", "y"))
SHARED = (Pair("x", "a", "x", "c", "x"), Pair("y", "a", "y", "c", "y"))
KNOWN = Known(
    round_trips=MappingProxyType({"a": 500, "b": 500, "c": 500, "d": 900}),
    decision=4_000,
    steps=MappingProxyType(
        {
            (node, "m", step): microseconds
            for node in "abcd"
            for step, microseconds in (
                ("barrier_a", 100),
                ("barrier_b", 200),
                ("load", 3_000),
                ("barrier_c", 10),
                ("barrier_d", 20),
            )
        }
    ),
)


def observed(
    pairs: tuple[Pair, ...] = TWO,
    rates: dict[str, int] | None = None,
    size: int = 10 * MB,
    known: Known = KNOWN,
    strategy: Strategy | None = None,
    **device: Any,
) -> Observed:
    device = {"initial_acknowledged": True} | device

    def session(node: str, role: Role) -> SessionReport:
        ours = [p for p in pairs if node in (p.source_node, p.target_node)]
        reports = tuple(DeviceReport(p.name, p.name, DeviceState.PRE_COPY, ALL, size, **device) for p in ours)
        timings = (Timing("pre_copy", 5_000),) if role is Role.SOURCE else (Timing("resuming", 7_000),)
        rate = (rates or {}).get(node, 100 * MB) if role is Role.SOURCE else 0
        return SessionReport(
            "u", role, 1, 1, Goal.PRE_COPY, devices=reports, timings=timings, link_bytes_per_second=rate
        )

    sides = {(p.source_node, Role.SOURCE) for p in pairs} | {(p.target_node, Role.TARGET) for p in pairs}
    ends = [(p.source_node, p.source_device) for p in pairs] + [(p.target_node, p.target_device) for p in pairs]
    return Observed(
        key=MigrationKey("u", "n", "m"),
        wish=Wish(pairs, strategy or Strategy()),
        pairs=pairs,
        participants=tuple(Participant(n, r, True, True, "", session(n, r)) for n, r in sorted(sides)),
        inventory=MappingProxyType({end: DeviceRecord("o", *end, model="m", stop_copy_bytes=size) for end in ends}),
        known=known,
    )


def test_every_part_is_what_was_measured() -> None:
    found = forecast(observed())
    assert found is not None
    assert (found.transfer, found.arcs, found.load, found.decision) == (100_000, 330, 3_000, 4_000)
    # two source nodes and two target nodes: stop, barrier A, barrier C, start; the slowest agent counts
    assert found.messages == 4 * 900
    assert found.total == 100_000 + 330 + 3_000 + 4_000 + 3_600


def test_what_the_last_ones_of_this_shape_took_between_the_parts_counts_if_it_is_more_than_the_messages() -> None:
    two, one = Shape(2, 2, 2, pods=False), Shape(1, 1, 2, pods=False)
    known = replace(KNOWN, between=MappingProxyType({two: 9_000, one: 900}))
    found, shared = forecast(observed(known=known)), forecast(observed(SHARED, known=known))
    assert found is not None
    assert shared is not None
    assert (found.messages, shared.messages) == (9_000, 2 * 500)


def test_devices_of_one_node_share_its_link() -> None:
    found = forecast(observed(SHARED))
    assert found is not None
    assert (found.transfer, found.size_bytes, found.messages) == (200_000, 20 * MB, 2 * 500)


def test_the_slowest_source_node_counts() -> None:
    found = forecast(observed(rates={"a": 100 * MB, "b": 10 * MB}))
    assert found is not None
    assert (found.transfer, found.bytes_per_second) == (1_000_000, 10 * MB)


def test_the_bandwidth_limit_bounds_the_rate() -> None:
    limited = forecast(observed(strategy=Strategy(bandwidth_limit_bytes_per_second=20 * MB)))
    assert limited is not None
    assert limited.transfer == 480_000  # 500 ms, but for the burst of 20 ms that goes at once


def test_what_was_not_measured_yet_is_assumed_and_said() -> None:
    found = forecast(observed(rates={"a": 0, "b": 0}, known=Known()))
    assert found is not None
    assert not found.measured
    assert found.transfer == int(10 * MB / UNKNOWN_BYTES_PER_SECOND * 1e6)
    assert found.decision == UNKNOWN_DECISION
    assert found.messages == 4 * UNKNOWN_ROUND_TRIP
    # the arc into pre-copy and the one into RESUMING are all that is known of these devices
    assert (found.arcs, found.load) == (5_000 + 3 * UNKNOWN_ARC, 7_000)
    assert "100 MB/s assumed" in str(found)


def test_a_guess_at_an_arc_never_keeps_anything_from_converging() -> None:
    slow = observed(known=replace(KNOWN, steps=MappingProxyType({})), size=0)
    slowly = tuple(
        replace(p, report=replace(p.report, timings=(Timing("pre_copy", 900_000), Timing("resuming", 900_000))))
        for p in slow.participants
        if p.report is not None
    )
    found = forecast(replace(slow, participants=slowly))
    assert found is not None
    assert (found.arcs, found.load) == (MOST_ASSUMED_ARC + 3 * UNKNOWN_ARC, MOST_ASSUMED_ARC)
    assert converged(replace(slow, participants=slowly))


def test_a_tiny_state_takes_as_long_as_its_messages_did_before() -> None:
    known = replace(KNOWN, steps=MappingProxyType({**KNOWN.steps, ("a", "m", "transfer"): 1_500}))
    small, large = forecast(observed(size=96, known=known)), forecast(observed(known=known))
    assert small is not None
    assert large is not None
    assert (small.transfer, large.transfer) == (1_500, 100_000)


def test_before_anything_is_touched_sizes_come_from_the_inventory() -> None:
    before = replace(observed(), pairs=(), participants=())
    found = planned(replace(before, known=replace(KNOWN, rates=MappingProxyType({"a": 50 * MB, "b": 50 * MB}))), TWO)
    assert (found.transfer, found.measured) == (200_000, True)
    unknown = planned(replace(before, known=Known()), TWO)
    assert (unknown.measured, unknown.arcs) == (False, 4 * UNKNOWN_ARC)


def test_there_is_no_forecast_before_every_source_has_reported() -> None:
    whole = observed()
    one = tuple(replace(p, report=None) if p.node == "b" else p for p in whole.participants)
    assert forecast(replace(whole, participants=one)) is None
    assert not converged(replace(whole, participants=one))


@pytest.mark.parametrize(
    ("strategy", "acknowledged", "expected"),
    [
        (Strategy(), True, True),
        (Strategy(), False, False),
        (Strategy(switchover_ack=False), False, True),
        (Strategy(pre_copy="Disabled"), False, True),
        (Strategy(downtime_limit_milliseconds=50), True, False),
    ],
)
def test_the_limit_is_kept_with_the_initial_bytes_loaded_and_the_forecast_within_the_limit(
    strategy: Strategy, acknowledged: bool, expected: bool
) -> None:
    found = observed(strategy=strategy, initial_acknowledged=acknowledged)
    assert within_limit(found) is expected
    assert converged(replace(found, lingered=True)) is expected
    assert bool(not_acknowledged(found)) is (
        not acknowledged and strategy.switchover_ack and strategy.pre_copy == "Auto"
    )


def test_a_size_that_a_device_does_not_tell_is_not_taken_for_nothing() -> None:
    whole = observed(size=0, size_unknown=True)
    assert not within_limit(whole)
    assert not converged(replace(whole, lingered=True))
    assert str(forecast(whole)).startswith("unknown, as a device does not tell the size of its state, but at least ")
    unpublished = planned(replace(observed(size=0), pairs=(), participants=()), TWO)
    assert not unpublished.sized


def test_it_copies_on_within_the_limit_for_as_long_as_that_makes_the_downtime_shorter() -> None:
    """100 ms of transfer keep a limit of 300 ms; a little later it will be next to nothing."""
    large, small = observed(), observed(size=MB // 2)
    assert within_limit(large)
    assert not converged(large)
    assert converged(replace(large, lingered=True))
    assert converged(small)
    assert converged(observed(strategy=Strategy(pre_copy="Disabled")))  # nothing is copied: nothing to wait for
    assert not converged(replace(large, lingered=True, wish=Wish(TWO, Strategy(downtime_limit_milliseconds=50))))


@given(st.integers(0, 10**12), st.integers(1, 10**11), st.integers(0, 10**11))
def test_more_bytes_or_a_slower_link_never_make_it_shorter(size: int, rate: int, more: int) -> None:
    first = forecast(observed(SHARED, {"a": rate}, size))
    larger = forecast(observed(SHARED, {"a": rate}, size + more))
    faster = forecast(observed(SHARED, {"a": rate + more}, size))
    assert first is not None
    assert larger is not None
    assert faster is not None
    assert larger.total >= first.total >= faster.total
