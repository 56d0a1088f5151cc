"""One stream of one agent, as the leader has it, and what is queued for it."""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vfio_api.types import AgentHello, Command, Role

QUEUED_COMMANDS = 1024
IDLE_SECONDS = 60.0  # an agent that has been told nothing for so long is idle


@dataclass(frozen=True, slots=True)
class Ping:
    """To be answered at once; number: loop time in microseconds when it was queued."""

    number: int


@dataclass(frozen=True, slots=True)
class Look:
    """The agent is to look at its devices, and to say when what it found is published. number: as a Ping's."""

    number: int


@dataclass(slots=True)
class AgentStream:
    """One live stream of one agent."""

    node: str
    pod: str
    hello: AgentHello
    number: int
    commands: asyncio.Queue[Command | Ping | Look] = field(default_factory=lambda: asyncio.Queue(QUEUED_COMMANDS))
    pinged_at: float = 0.0  # loop time of the last ping; answered or not, one a second at most
    answered: bool = True
    looked: tuple[int, float] = (0, 0.0)  # number of the last look that was answered, and loop time of its answer
    leaving: bool = False  # it has said that it is to end
    token: str = field(default="", repr=False)  # the last that it has shown
    cancel: Callable[[], object] = lambda: None
    told_at: float = -math.inf  # time.monotonic of the last command
    stirred: asyncio.Event = field(default_factory=asyncio.Event)  # a command came after a long time
    began: float = field(default_factory=time.monotonic)  # when its Hello came

    @property
    def idle(self) -> bool:
        """Whether the agent has been told nothing for long."""
        return time.monotonic() - self.told_at >= IDLE_SECONDS

    def stir(self) -> None:
        """A command is for the agent: whoever waits because it is idle waits no longer."""
        if self.idle:
            self.stirred.set()
        self.told_at = time.monotonic()

    def turned(self, uid: str, role: Role) -> float | None:
        """time.monotonic at which a source began to stop, or a target ran again, if it had before this stream."""
        ago = next((s.turned_microseconds for s in self.hello.sessions if (s.migration_uid, s.role) == (uid, role)), 0)
        return self.began - ago / 1e6 if ago else None
