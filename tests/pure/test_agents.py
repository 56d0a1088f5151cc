"""What the operator knows of its agents."""

from vfio_api.types import AgentHello, Role, SessionReport
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
