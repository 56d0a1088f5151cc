"""Whether agents have published what their nodes have, since a migration needs to know it.

An agent looks around every few seconds and whenever it does something itself; what a process of a pod opened by itself
it finds no sooner. So it is told to look, and says when what it found is published.
"""

import asyncio
from collections.abc import Collection

from vfio_operator.channel import Agents

WATCH_SECONDS = 2.0  # for what was published to come by the watch
LOOK_SECONDS = 15.0  # for an answer; an agent of an earlier version gives none


class Looking:
    """Asks each agent once, and again after `anew`. On the event loop."""

    def __init__(self, agents: Agents):
        self._agents = agents
        self._asked: dict[str, float] = {}  # node -> loop time
        self.anew()

    def anew(self) -> None:
        """What was published until now may be old."""
        self._asked.clear()
        self._began = asyncio.get_running_loop().time()

    def ask(self, nodes: Collection[str]) -> None:
        """Tell these nodes' agents to look, those of them that were not told yet."""
        now = asyncio.get_running_loop().time()
        for node in nodes:
            if node not in self._asked and self._agents.look(node):
                self._asked[node] = now

    @property
    def settled(self) -> bool:
        """Whether agents were asked, all have answered and what they published must have come; or it takes too long."""
        now = asyncio.get_running_loop().time()
        answers = [self._agents.looked(node, at) for node, at in self._asked.items()]
        answered = [at for at in answers if at is not None]
        if answers and len(answered) == len(answers):
            return now - max(answered) >= WATCH_SECONDS
        return now - min(self._asked.values(), default=self._began) >= LOOK_SECONDS
