"""What is left of a migration is put together again, so that the ladders can end it behind their barriers."""

from vfio_api.device import DeviceState
from vfio_api.types import DeviceReport, Goal, Role, SessionReport
from vfio_operator.observed import Pair
from vfio_operator.orphans import pairs_of


def session(role: Role, *devices: str) -> SessionReport:
    reports = tuple(DeviceReport(name, f"{name}-{role.value.lower()}", DeviceState.STOP_COPY) for name in devices)
    return SessionReport("uid-1", role, 1, 1, Goal.STOP_COPY, devices=reports)


def test_both_ends_of_a_device_make_a_pair() -> None:
    sessions = [
        ("a", session(Role.SOURCE, "x", "y")),
        ("b", session(Role.TARGET, "x")),
        ("c", session(Role.TARGET, "y")),
    ]
    assert pairs_of(sessions, ["a"], ["b", "c"]) == (
        Pair("x", "a", "x-source", "b", "x-target"),
        Pair("y", "a", "y-source", "c", "y-target"),
    )


def test_an_end_of_which_nothing_is_left_is_empty() -> None:
    assert pairs_of([("a", session(Role.SOURCE, "x"))], [], []) == (Pair("x", "a", "x-source", "", ""),)


def test_a_node_of_the_switchover_takes_part_also_if_it_is_away_or_has_no_device() -> None:
    """A rollback waits for every source before any runs."""
    sessions = [("a", session(Role.SOURCE, "x")), ("d", session(Role.TARGET))]
    assert pairs_of(sessions, ["a", "b"], ["c"]) == (
        Pair("x", "a", "x-source", "", ""),
        Pair("source-on-b", "b", "", "", ""),
        Pair("target-on-c", "", "", "c", ""),
        Pair("target-on-d", "", "", "d", ""),
    )
