"""Whose turn it is: how many migrations run at once, in the cluster and on each node, and in which order others wait.

Higher priority first; among equals the namespace with the fewest running ones, then who asked first: a namespace
that asks for a hundred does not keep others waiting for all of them. One whose node is full lets others pass.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """At most so many migrations at once: in the cluster, and into or out of one node. 0: no limit."""

    cluster: int = 5
    per_node: int = 2


@dataclass(frozen=True, slots=True)
class Ticket:
    """A migration that runs or waits. since: orders those who ask: when it was created, and its UID."""

    uid: str
    namespace: str
    priority: int
    since: tuple[str, str]
    sources: frozenset[str]
    targets: frozenset[str]


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a migration stands. position: 0: it may run; 1: the next. waiting: how many wait. why: what is full."""

    position: int = 0
    waiting: int = 0
    why: str = ""


MAY_RUN = Turn()


def turns(running: Iterable[Ticket], waiting: Iterable[Ticket], quota: Quota) -> dict[str, Turn]:
    """The turn of each waiting migration, by UID: those that may run now have position 0."""
    busy = _Busy(quota)
    shares: Counter[str] = Counter()
    for ticket in running:
        busy.add(ticket)
        shares[ticket.namespace] += 1
    made: dict[str, Turn] = {}
    order: list[tuple[Ticket, str]] = []
    for ticket in _in_order(waiting, shares):
        why = busy.full(ticket)
        if why:
            order.append((ticket, why))
        else:
            busy.add(ticket)
            made[ticket.uid] = Turn()
    for position, (ticket, why) in enumerate(order, 1):
        made[ticket.uid] = Turn(position, len(order), why)
    return made


def _in_order(waiting: Iterable[Ticket], shares: Counter[str]) -> Iterator[Ticket]:
    """Who would be next if there were room comes next in the queue, too: it counts as running for those behind it."""
    queues: dict[int, dict[str, list[Ticket]]] = {}
    for ticket in sorted(waiting, key=lambda t: t.since, reverse=True):
        queues.setdefault(ticket.priority, {}).setdefault(ticket.namespace, []).append(ticket)
    for priority in sorted(queues, reverse=True):
        heads = [(shares[space], queue[-1].since, space) for space, queue in queues[priority].items()]
        heapq.heapify(heads)
        while heads:
            space = heads[0][2]
            queue = queues[priority][space]
            yield queue.pop()
            shares[space] += 1
            if queue:
                heapq.heapreplace(heads, (shares[space], queue[-1].since, space))
            else:
                heapq.heappop(heads)


class _Busy:
    """How many run, in all and per node and way."""

    def __init__(self, quota: Quota):
        self._quota = quota
        self._running = 0
        self._ways = (("out of", "sources", Counter[str]()), ("into", "targets", Counter[str]()))

    def add(self, ticket: Ticket) -> None:
        """It runs."""
        self._running += 1
        for _, ends, counts in self._ways:
            counts.update(getattr(ticket, ends))

    def remove(self, ticket: Ticket) -> None:
        """It runs no more."""
        self._running -= 1
        for _, ends, counts in self._ways:
            counts.subtract(getattr(ticket, ends))

    def full(self, ticket: Ticket) -> str:
        """What keeps a migration from running beside these; "" if nothing does."""
        if self._quota.cluster and self._running >= self._quota.cluster:
            return f"{self._running} migrations run, at most {self._quota.cluster} may at once"
        for way, ends, counts in self._ways:
            for node in sorted(getattr(ticket, ends)):
                most = self._quota.per_node
                if most and counts[node] >= most:
                    return f"{counts[node]} migrations run {way} node {node}, at most {most} may at once"
        return ""


class Turnstile:
    """Who runs and who waits, of one leader. left: called when one has left and others wait."""

    def __init__(self, quota: Quota, left: Callable[[], None]):
        self._quota, self._left = quota, left
        self._running: dict[str, Ticket] = {}
        self._busy = _Busy(quota)  # with those that run
        self._waiting: dict[str, Ticket] = {}
        self._turns: dict[str, Turn] | None = None  # of those that wait, until something changes

    def runs(self, ticket: Ticket) -> None:
        """It runs already, under an earlier leader: it is counted, whatever the limits are."""
        self._leave_running(ticket.uid)
        self._run(ticket)

    def ask(self, ticket: Ticket) -> Turn:
        """Whether it may run now; if so it is counted from now on, else it waits and is to ask again."""
        if ticket.uid in self._running:
            return Turn()
        if not self._waiting and not self._busy.full(ticket):  # nobody else to look at
            self._run(ticket)
            return Turn()
        if self._waiting.get(ticket.uid) != ticket:
            self._waiting[ticket.uid] = ticket
            self._turns = None
        turn = self._of_waiting()[ticket.uid]
        if turn.position == 0:
            self._run(self._waiting.pop(ticket.uid))
        return turn

    def leave(self, uid: str) -> None:
        """It has ended, or does not want to run, or does not any more."""
        waited = self._waiting.pop(uid, None) is not None
        if waited:
            self._turns = None
        if (self._leave_running(uid) or waited) and self._waiting:
            self._left()

    def count(self) -> int:
        """How many run."""
        return len(self._running)

    def next(self) -> list[str]:
        """The UIDs of those that wait and may run now."""
        return [uid for uid, turn in self._of_waiting().items() if turn.position == 0]

    def _of_waiting(self) -> dict[str, Turn]:
        if self._turns is None:
            self._turns = turns(self._running.values(), self._waiting.values(), self._quota)
        return self._turns

    def _run(self, ticket: Ticket) -> None:
        self._running[ticket.uid] = ticket
        self._busy.add(ticket)
        self._turns = None

    def _leave_running(self, uid: str) -> bool:
        ticket = self._running.pop(uid, None)
        if ticket is None:
            return False
        self._busy.remove(ticket)
        self._turns = None
        return True
