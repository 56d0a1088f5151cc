"""What the operator knows of its agents."""

import time
from dataclasses import replace

import pytest

from vfio_api.types import AgentHello, Goal, Role, SessionReport
from vfio_api.wire import MAX_SESSIONS
from vfio_operator.channel import Agents
from vfio_operator.history import History
from vfio_operator.metrics import OperatorMetrics


def agents(**sequences: int) -> Agents:
    """Agents of these nodes, each of which has seen such a command of migration u."""
    made = Agents(lambda uid: None, OperatorMetrics("test"), History())
    for node, sequence in sequences.items():
        made.add(node, f"pod-{node}", AgentHello(2, "test", "boot", f"instance-{node}", "127.0.0.1:1", 0))
        made.reported(node, SessionReport("u", Role.SOURCE, 1, sequence))
    return made


def test_only_participants_tell_how_far_the_commands_have_come() -> None:
    """An agent elsewhere could otherwise use up the sequence numbers of a migration that is none of its business."""
    known = agents(a=7, b=9, c=2**64 - 1)
    assert known.highest_sequence("u", {"a", "b"}) == 9
    assert known.highest_sequence("u", {"a"}) == 7
    assert known.highest_sequence("u", ()) == 0
    assert known.highest_sequence("another", {"a", "b", "c"}) == 0


def test_a_number_that_no_migration_reaches_is_made_up() -> None:
    """One participant must not make the commands to the others too high for the wire."""
    assert agents(a=7, b=2**63 - 1).highest_sequence("u", {"a", "b"}) == 7


def session(number: int, reached: Goal | None = None) -> SessionReport:
    return SessionReport(f"u{number}", Role.SOURCE, 1, 1, reached=reached)


def test_no_agent_reports_more_sessions_than_it_can_have() -> None:
    known = agents(a=1, b=1)  # one session each
    for number in range(MAX_SESSIONS - 1):
        known.reported("a", session(number))
    with pytest.raises(ValueError, match="agent on node a reports more than 256 sessions"):
        known.reported("a", session(MAX_SESSIONS))
    known.reported("b", session(MAX_SESSIONS))  # others are not concerned
    known.reported("a", session(3, Goal.RELEASED))
    known.reported("a", session(MAX_SESSIONS))  # what has ended makes room
    assert known.report("a", "u3", Role.SOURCE) is None
    assert known.report("a", f"u{MAX_SESSIONS}", Role.SOURCE) == session(MAX_SESSIONS)


def test_sessions_that_ended_do_not_pile_up_over_connections() -> None:
    known = agents(a=1)
    for connection in range(4):
        numbers = range(connection * MAX_SESSIONS, (connection + 1) * MAX_SESSIONS)
        sessions = tuple(session(number, Goal.RELEASED) for number in numbers)
        known.add("a", "pod-a", AgentHello(2, "test", "boot", "instance-a", "127.0.0.1:1", 0, sessions))
    assert sum(known.report("a", f"u{n}", Role.SOURCE) is not None for n in range(4 * MAX_SESSIONS)) == MAX_SESSIONS
    known.add("a", "pod-a", AgentHello(2, "test", "boot", "instance-a", "127.0.0.1:1", 0, ()))
    assert known.report("a", f"u{4 * MAX_SESSIONS - 1}", Role.SOURCE) is not None, "the end of a session is remembered"


def test_when_a_session_turned_is_told_on_this_processs_clock() -> None:
    known = agents()
    before = time.monotonic()
    sessions = (replace(session(1, Goal.RUNNING), turned_microseconds=5_000_000), session(2, Goal.RUNNING))
    stream = known.add("a", "pod-a", AgentHello(2, "test", "boot", "instance-a", "127.0.0.1:1", 0, sessions))
    turned = stream.turned("u1", Role.SOURCE)
    assert turned is not None
    assert before - 5 <= turned <= time.monotonic() - 5
    assert stream.turned("u2", Role.SOURCE) is None
    assert stream.turned("u1", Role.TARGET) is None
