"""Who takes part in a migration is looked at with every report; only what has changed is made anew."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from vfio_api.types import AgentHello, Command, Goal, MigrationKey, Role, SessionReport
from vfio_operator.actions import Send
from vfio_operator.channel import Agents
from vfio_operator.execute import Executor, Memory, Sent
from vfio_operator.history import History
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.observe import Reading
from vfio_operator.observed import Observed, Pair, Participant
from vfio_operator.participants import Participants
from vfio_operator.policies import policy_of
from vfio_operator.trail import Trail

KEY = MigrationKey("u", "default", "m")
PAIRS = (Pair("p", "a", "1", "b", "2"), Pair("q", "b", "1", "c", "2"), Pair("r", "a", "3", "", ""))


def hello(node: str) -> AgentHello:
    return AgentHello(2, "test", "boot", f"instance-{node}", f"{node}:1", 0)


def agents(*nodes: str) -> Agents:
    made = Agents(lambda _uid: None, OperatorMetrics("test"), History())
    for node in nodes:
        made.add(node, f"pod-{node}", hello(node))
    return made


def said(role: Role, goal: Goal | None = None) -> SessionReport:
    return SessionReport("u", role, 1, 1, reached=goal, certificate=b"certificate")


def test_every_side_on_every_node_takes_part_sources_first() -> None:
    found = Participants(agents("a", "b"), "u").of(PAIRS, {})
    assert [(p.role, p.node, p.connected) for p in found] == [
        (Role.SOURCE, "a", True),
        (Role.SOURCE, "b", True),
        (Role.TARGET, "b", True),
        (Role.TARGET, "c", False),
    ]


def test_only_who_has_changed_is_made_anew() -> None:
    known = agents("a", "b", "c")
    taking_part, sent = Participants(known, "u"), dict[tuple[str, Role], Sent]()
    before = taking_part.of(PAIRS, sent)

    def changed() -> list[Participant]:
        nonlocal before
        found, last = taking_part.of(PAIRS, sent), before
        before = found
        return [p for p, old in zip(found, last, strict=True) if p is not old]

    assert changed() == []
    known.reported("b", said(Role.TARGET, Goal.PREPARED))
    assert [(p.node, p.role, p.report) for p in changed()] == [("b", Role.TARGET, said(Role.TARGET, Goal.PREPARED))]
    stream = known.stream("a")
    assert stream is not None
    sent["a", Role.SOURCE] = Sent(Goal.QUIESCED, None, stream.number, (1, 1))
    assert [(p.node, p.commanded) for p in changed()] == [("a", True)]
    known.remove(stream)
    assert [(p.node, p.connected) for p in changed()] == [("a", False)]
    known.add("a", "pod-a", hello("a"))  # what was said on the earlier stream has not arrived on this one
    assert [(p.node, p.connected, p.commanded) for p in changed()] == [("a", True, False)]
    assert [p.node for p in taking_part.of(PAIRS[:1], sent)] == ["a", "b"]


def body(name: str, **spec: object) -> dict[str, Any]:
    end = {"nodeName": "a", "device": name}, {"nodeName": "b", "device": name}
    pair = {"name": name, "source": end[0], "target": end[1]}
    return {"metadata": {"uid": "u", "namespace": "default", "name": "m"}, "spec": {"devices": [pair], **spec}}


def test_what_is_asked_for_is_read_again_when_the_object_or_the_policy_is_another() -> None:
    reading, first, second = Reading(), body("x"), body("x", cancel=True)
    wish = reading.wish(first)
    assert reading.wish(first) is wish
    assert reading.wish(second).cancel
    assert not reading.wish(first).cancel
    strict = policy_of({"metadata": {"name": "strict"}, "spec": {"priority": 7}})
    assert reading.wish(first, strict).priority == 7
    assert reading.wish(first).priority == 0


class _Leadership:
    """One that lasts."""

    epoch = 1

    def insist(self) -> None:
        """It leads."""


def told(known: Agents, observed: Observed, action: Send) -> Command:
    """The command that comes of an action."""
    nothing: Any = None
    trail = Trail(None, KEY, 1, {})
    leads: Any = _Leadership()
    api: Any = SimpleNamespace(client=nothing)  # nothing is asked of it
    executor = Executor(api, known, leads, {}, nothing, History(), Memory({}), trail)

    async def send() -> None:
        executor.send(observed, action)

    asyncio.run(send())
    stream = known.stream(action.node)
    assert stream is not None
    command = stream.commands.get_nowait()
    assert isinstance(command, Command)
    return command


def test_an_agent_is_told_of_its_own_pairs_ends_only() -> None:
    """Who has no pair with it is not to be let in; and among many agents what each is told stays small."""
    known = agents("a", "b", "c", "d")
    pairs = (*PAIRS, Pair("s", "a", "4", "d", "4"))
    for node in "abcd":
        for role in Role:
            known.reported(node, said(role))
    seen = Observed(KEY, Reading().wish(body("x")), pairs=pairs)
    seen = replace(seen, participants=Participants(known, "u").of(pairs, {}))
    peers = {
        (node, role): [peer.node for peer in told(known, seen, Send(node, role, Goal.PREPARED)).peers]
        for node, role in (("a", Role.SOURCE), ("b", Role.SOURCE), ("b", Role.TARGET), ("c", Role.TARGET))
    }
    assert peers == {
        ("a", Role.SOURCE): ["b", "d"],
        ("b", Role.SOURCE): ["c"],
        ("b", Role.TARGET): ["a"],
        ("c", Role.TARGET): ["b"],
    }
