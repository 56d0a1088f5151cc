"""What breaks, and how often it may: processes, nodes, connections, messages, streams, devices, patience, and the user.

Each fault is one step and takes one from its kind and one from the total of a `Budget`. What a process is after it was
killed is what `Agent.restore` makes of journal and keeper; how long it is away needs no step of its own, as everything
that it does can come later. Faults of arcs are variants of the arc (`agents.Agent.move`).
"""

from collections.abc import Mapping
from typing import NamedTuple

from pure.model.agents import Agent
from pure.model.rules import taken
from pure.model.state import Content, Device, Part, S, Sess, Stream
from vfio_agent import machine
from vfio_api.errors import Reason
from vfio_api.types import Goal, Role

KINDS: Mapping[str, str] = {
    "restart": "an agent is killed; keeper and journal stay",
    "both": "agent and keeper are killed: every device closes, and is reset by that",
    "reboot": "a node reboots: devices blank, only the durable journal is left",
    "elect": "another leader is elected; the one before goes on acting for a while, or is dead",
    "silence": "a session hears nothing for switchoverTimeoutSeconds",
    "disk": "the disk of an agent's journal is full from now on",
    "cut": "a control connection breaks and loses what is under way",
    "late": "a command is held up: others overtake it, also on later connections",
    "dup": "a command comes twice, the second time at any later moment",
    "drop": "a message is lost, and the connection seems well",
    "stream": "a data stream breaks",
    "stays": "an arc fails and the device stays where it was, or on the way",
    "error": "an arc fails and the device falls into ERROR",
    "cancel": "the user cancels",
    "expire": "the operator's limit for the present step passes",
    "deadline": "an agent's limit for a command passes; arcs under way go on",
    "doubt": "the API server takes a write, and its answer is lost",
}
INDEX = {kind: number for number, kind in enumerate(KINDS)}

Streams = tuple[Stream, ...]


class Budget(NamedTuple):
    """How many faults there may still be: of each kind, and in all."""

    total: int
    left: tuple[int, ...]

    def without(self, kind: str) -> "Budget | None":
        number = INDEX[kind]
        if not self.total or not self.left[number]:
            return None
        total = self.total - 1
        left = tuple(min(total, n - (k == number)) for k, n in enumerate(self.left))
        return Budget(total, left)


def budget(total: int, **kinds: int) -> Budget:
    """At most `total` faults, and of each kind at most what is given."""
    return Budget(total, tuple(min(total, kinds.get(kind, 0)) for kind in KINDS))


NO_FAULTS = budget(0)


def cut(part: Part) -> Part:
    return part._replace(link=0, down=(), up=(), dirty=False, lossy=False)


def restart(agent: Agent, part: Part, streams: Streams) -> tuple[Part, Streams]:
    """`Agent.restore`."""
    part = cut(part)._replace(last=None, ended=(0, 0), devices=tuple(d._replace(late=None) for d in part.devices))
    sess = part.sess
    streams = agent.cut_off(streams)
    if sess is None or sess.disk is None:
        return part._replace(sess=None), streams
    facts = sess.disk
    reached, failure = None, None
    if sess.known and not all(d.open for d in part.devices):
        failure = Reason.DEVICE_LOST
    elif facts.role is Role.TARGET and facts.loaded:
        reached = Goal.RUNNING if facts.started else Goal.LOADED
    else:
        failure = Reason.AGENT_RESTARTED
    known = sess.known
    failure = agent.reminded(facts, failure)
    taken_up = Sess(facts, facts, sess.durable, reached, failure, held=known, known=known, left=facts.leaving)
    return part._replace(sess=taken_up), streams


def close_all(part: Part) -> Part:
    """Nobody holds the devices any more: vfio-pci resets a function when its last fd is closed."""
    sess = part.sess
    came_back = sess is None or sess.facts.backward
    return part._replace(devices=tuple(_closed(d, came_back=came_back) for d in part.devices))


def _closed(device: Device, *, came_back: bool) -> Device:
    if not device.open:
        return device
    runs_again = came_back and device.content is Content.LIVE and device.state is S.RUNNING
    content = Content.DIED if runs_again else taken(device)
    return Device(S.RUNNING, content, False)


def both(agent: Agent, part: Part, streams: Streams) -> tuple[Part, Streams]:
    return restart(agent, close_all(part), streams)


def reboot(agent: Agent, part: Part, streams: Streams) -> tuple[Part, Streams]:
    """What was journalled within the switchover is gone; the record of Prepared is there."""
    sess = part.sess
    if sess is not None:
        durable = machine.rebooted(sess.durable) if sess.durable is not None else None
        part = part._replace(sess=sess._replace(disk=durable))
    return restart(agent, close_all(part), streams)


def deadline(agent: Agent, part: Part) -> Part | None:
    """The command has lasted too long; None if there is none. Its arcs go on in their threads."""
    sess = part.sess
    if sess is None or sess.job is None or (sess.job.failed is not None and sess.job.rounds is None):
        return None
    moves = sess.job.rounds[0][1] if sess.job.rounds else ()
    late = {n: to for n, to in moves if part.devices[n].late is None}
    devices = tuple(d._replace(late=late.get(n, d.late)) for n, d in enumerate(part.devices))
    return agent.fail(part._replace(devices=devices), Reason.STEP_TIMEOUT)


def messages(part: Part, rules_limit: int = 2) -> list[tuple[str, str, Part]]:
    """What the network can do to what is under way: (kind, label, then)."""
    found = []
    if part.down and len(part.limbo) < rules_limit:
        first, rest = part.down[0], part.down[1:]
        found.append(
            ("late", f"{first.goal} is held up", part._replace(down=rest, limbo=(*part.limbo, first), lossy=True))
        )
        found.append(("dup", f"{first.goal} is doubled", part._replace(limbo=(*part.limbo, first))))
    if part.down:
        found.append(("drop", f"{part.down[0].goal} is lost", part._replace(down=part.down[1:], lossy=True)))
    if part.up:
        found.append(("drop", "a report is lost", part._replace(up=part.up[1:], lossy=True)))
    return found
