"""Peer-to-peer writes among the simulated devices of one host.

Pure: time is passed in (seconds, monotonic), and everything that happens follows from it. Callers bring the
fabric up to date with `advance` before anything changes, so how often they do so decides nothing.

A write is posted: it is under way for a latency, then it arrives once. Nobody there to answer means it is
lost (master abort), never tried again. The sequence numbers on both sides are part of the devices' states, so
a loss stays visible wherever the states go.
"""

import heapq
from dataclasses import dataclass
from itertools import count

from vfio_agent.devices.simstate import Identity


@dataclass(slots=True, eq=False)
class Endpoint:
    """A device as the fabric sees it.

    aborted: writes it initiated that nobody answered. doubled: how often it began to answer as a port that
    another device answered as, plus the writes to it that two would have answered. drained_at: when the last
    of its own writes arrives.
    """

    address: str
    identity: Identity | None = None
    initiates: bool = False
    answers: bool = False
    aborted: int = 0
    doubled: int = 0
    drained_at: float = 0.0
    turn: int = 0
    schedule: int = 0  # entries of the queue with another number are void

    def gaps(self) -> int:
        """Writes this identity knows it missed, as later ones of the same peer arrived. Moves with it."""
        if self.identity is None:
            return 0
        return sum(c.last - c.received for c in self.identity.traffic.values())


@dataclass(frozen=True, slots=True)
class _Write:
    sender: Endpoint
    source: int
    target: int
    sequence: int


@dataclass(frozen=True, slots=True)
class _Turn:
    sender: Endpoint
    schedule: int


@dataclass(frozen=True, slots=True)
class Totals:
    """The fabric's account.

    sent, received: writes on this host since it began. lost: those nobody answered. doubled: see Endpoint.
    in_flight: under way now. missing: sent less received less in flight over all pairs of ports that are both
    on this host, by the counters in their states: what was lost anywhere on the way of these identities, also
    on the host they came from.
    """

    sent: int
    received: int
    lost: int
    doubled: int
    in_flight: int
    missing: int


class Fabric:
    """The bus of one host: who answers as which port, and the writes under way.

    rate_per_second: writes each device initiates, to its peers in turn (0: none). latency_seconds: how long
    one is under way.
    """

    def __init__(self, rate_per_second: float = 0.0, latency_seconds: float = 0.0):
        self._check(rate_per_second, latency_seconds)
        self.rate_per_second, self.latency_seconds = rate_per_second, latency_seconds
        self.sent = self.received = self.lost = self.doubled = 0
        self._ports: dict[int, list[Endpoint]] = {}
        self._endpoints: list[Endpoint] = []
        self._queue: list[tuple[float, int, _Write | _Turn]] = []
        self._order = count()

    @staticmethod
    def _check(rate_per_second: float, latency_seconds: float) -> None:
        if rate_per_second < 0 or latency_seconds < 0:
            raise ValueError(f"rate {rate_per_second} and latency {latency_seconds} must not be negative")

    def configure(self, rate_per_second: float, latency_seconds: float, now: float) -> None:
        """Change rate and latency from `now` on. Raises ValueError for negative ones."""
        self._check(rate_per_second, latency_seconds)
        self.advance(now)
        self.rate_per_second, self.latency_seconds = rate_per_second, latency_seconds
        for endpoint in self._endpoints:
            self._reschedule(endpoint, now)

    def attach(self, endpoint: Endpoint) -> None:
        """Put a device on the bus."""
        self._endpoints.append(endpoint)

    def assign(self, endpoint: Endpoint, identity: Identity | None, now: float) -> None:
        """Give the device an identity or take it away; it is silent until `switch` says otherwise."""
        self.switch(endpoint, initiates=False, answers=False, now=now)
        if endpoint.identity is not None:
            self._ports[endpoint.identity.port].remove(endpoint)
        endpoint.identity = identity
        endpoint.turn = 0
        if identity is not None:
            self._ports.setdefault(identity.port, []).append(endpoint)

    def switch(self, endpoint: Endpoint, *, initiates: bool, answers: bool, now: float) -> None:
        """From `now` on the device initiates and answers as told; one without identity does neither."""
        self.advance(now)
        identity = endpoint.identity
        began = identity is not None and answers and not endpoint.answers
        endpoint.answers = identity is not None and answers
        if began and identity is not None and len(self._answering(identity.port)) > 1:
            endpoint.doubled += 1
            self.doubled += 1
        if endpoint.initiates != (identity is not None and initiates):
            endpoint.initiates = not endpoint.initiates
            self._reschedule(endpoint, now)

    def advance(self, now: float) -> None:
        """Let everything happen that is due by `now`, in its order."""
        while self._queue and self._queue[0][0] <= now:
            at, _, event = heapq.heappop(self._queue)
            if isinstance(event, _Write):
                self._deliver(event)
            elif event.schedule == event.sender.schedule:
                self._initiate(event.sender, at)
                self._push(at + 1 / self.rate_per_second, event)

    def totals(self) -> Totals:
        """The account as of the last `advance`."""
        under_way = [event for _, _, event in self._queue if isinstance(event, _Write)]
        pairs: dict[tuple[int, int], int] = {}
        for write in under_way:
            pairs[write.source, write.target] = pairs.get((write.source, write.target), 0) + 1
        missing = 0
        for source in self._ports:
            sender = self._carrier(source)
            for target, counters in sender.traffic.items() if sender else ():
                receiver = self._carrier(target)
                if receiver is not None:
                    back = receiver.traffic.get(source)
                    arrived = back.received if back else 0
                    missing += counters.sent - arrived - pairs.get((source, target), 0)
        return Totals(self.sent, self.received, self.lost, self.doubled, len(under_way), missing)

    def _push(self, at: float, event: _Write | _Turn) -> None:
        heapq.heappush(self._queue, (at, next(self._order), event))

    def _reschedule(self, endpoint: Endpoint, now: float) -> None:
        endpoint.schedule += 1
        if endpoint.initiates and self.rate_per_second and endpoint.identity and endpoint.identity.peers:
            self._push(now + 1 / self.rate_per_second, _Turn(endpoint, endpoint.schedule))

    def _initiate(self, sender: Endpoint, at: float) -> None:
        identity = sender.identity
        if identity is None:
            raise ValueError(f"{sender.address} initiates without an identity")
        target = identity.peers[sender.turn % len(identity.peers)]
        sender.turn += 1
        counters = identity.with_peer(target)
        counters.sent += 1
        self.sent += 1
        arrival = at + self.latency_seconds
        sender.drained_at = max(sender.drained_at, arrival)
        self._push(arrival, _Write(sender, identity.port, target, counters.sent))

    def _deliver(self, write: _Write) -> None:
        answering = self._answering(write.target)
        if not answering:
            write.sender.aborted += 1
            self.lost += 1
            return
        receiver = answering[-1]
        if len(answering) > 1:
            receiver.doubled += 1
            self.doubled += 1
        if receiver.identity is not None:
            counters = receiver.identity.with_peer(write.source)
            counters.received += 1
            counters.last = max(counters.last, write.sequence)
            self.received += 1

    def _answering(self, port: int) -> list[Endpoint]:
        return [endpoint for endpoint in self._ports.get(port, ()) if endpoint.answers]

    def _carrier(self, port: int) -> Identity | None:
        # A state may be on two devices of one host while it is moved; the one that answers counts, or the
        # newer.
        endpoints = self._answering(port) or self._ports.get(port, [])
        return endpoints[-1].identity if endpoints else None
