"""What agents have published is believed once they have looked since, or when it takes too long."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from vfio_api.types import AgentHello
from vfio_operator.channel import Agents, AgentStream, Look
from vfio_operator.history import History
from vfio_operator.looking import LOOK_SECONDS, WATCH_SECONDS, Looking
from vfio_operator.metrics import OperatorMetrics


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands."""

    now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def on(loop: Loop, act: Callable[[], None]) -> None:
    """Do something as a task of the loop does."""

    async def task() -> None:
        act()

    loop.run_until_complete(task())


def connected(agents: Agents, node: str) -> AgentStream:
    return agents.add(node, f"pod-{node}", AgentHello(2, "test", "boot", f"instance-{node}", "127.0.0.1:1", 0))


def answers(agents: Agents, stream: AgentStream) -> None:
    asked = stream.commands.get_nowait()
    assert isinstance(asked, Look)
    agents.has_looked(stream, asked.number)


def test_it_is_settled_when_all_have_answered_and_the_watch_has_had_its_time(loop: Loop) -> None:
    def act() -> None:
        agents = Agents(lambda uid: None, OperatorMetrics("test"), History())
        streams = [connected(agents, node) for node in ("a", "b")]
        looking = Looking(agents)
        loop.now += WATCH_SECONDS
        assert not looking.settled  # nobody was asked, however long ago the migration came
        looking.ask({"a", "b"})
        loop.now += 1
        looking.ask({"a", "b"})  # each is asked once
        answers(agents, streams[0])
        loop.now += WATCH_SECONDS
        assert not looking.settled
        answers(agents, streams[1])
        assert not looking.settled
        loop.now += WATCH_SECONDS
        assert looking.settled
        assert all(stream.commands.empty() for stream in streams)
        looking.anew()
        assert not looking.settled

    on(loop, act)


def test_an_answer_to_an_earlier_question_does_not_count(loop: Loop) -> None:
    def act() -> None:
        agents = Agents(lambda uid: None, OperatorMetrics("test"), History())
        stream = connected(agents, "a")
        first, later = Looking(agents), Looking(agents)
        first.ask({"a"})
        answers(agents, stream)
        loop.now += 1
        later.ask({"a"})
        loop.now += WATCH_SECONDS
        assert first.settled
        assert not later.settled

    on(loop, act)


@pytest.mark.parametrize("asked", [True, False], ids=["an agent that does not answer", "nobody to ask"])
def test_it_is_not_waited_for_longer_than_that(loop: Loop, asked: bool) -> None:
    def act() -> None:
        agents = Agents(lambda uid: None, OperatorMetrics("test"), History())
        connected(agents, "a")
        looking = Looking(agents)
        looking.ask({"a"} if asked else set())
        loop.now += LOOK_SECONDS - 1
        assert not looking.settled
        loop.now += 1
        assert looking.settled

    on(loop, act)


def test_an_agent_that_went_will_publish_when_it_comes(loop: Loop) -> None:
    def act() -> None:
        agents = Agents(lambda uid: None, OperatorMetrics("test"), History())
        stream = connected(agents, "a")
        looking = Looking(agents)
        looking.ask({"a"})
        agents.remove(stream)
        loop.now += WATCH_SECONDS
        assert looking.settled

    on(loop, act)
