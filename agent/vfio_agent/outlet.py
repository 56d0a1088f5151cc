"""The source's connection of one device's data stream: TLS, the rate limit, acknowledgements, and what it measures."""

import os
import select
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass

from vfio_agent.datatls import check_pin, cut
from vfio_agent.frames import (
    COUNT,
    HEADER,
    MAX_PROBES,
    FrameType,
    StreamHello,
    pack_count,
    pack_hello,
    pack_preamble,
    parse_ack,
)
from vfio_agent.linkrate import LinkMeter
from vfio_agent.ratelimit import TokenBucket
from vfio_api.errors import FrameError, StreamError

PROBE_SECONDS = 0.05
PROBE_ANSWER_SECONDS = 5.0
PROBES_BYTES = 16 << 20  # of all streams of a session together, but no less than _PROBE_CHUNK of each
PROBE_LIMIT_SECONDS = 0.1
MIN_PROBE = 512  # bytes
# What the system may hold unsent: the rest of a state waits in the device, and a short burst does not look fast. What
# goes out in a millisecond, where that is more: or a fast link waits for the sender to be woken each time.
UNSENT_BYTES = 512 * 1024
UNSENT_SECONDS = 0.001
MOST_UNSENT_BYTES = 4 << 20
FIT_SECONDS = 0.01
# The first bytes of a burst only fill buffers, which tells nothing of the link: as many, and what was held unsent.
FILLING_BYTES = 1 << 20
FILLING_SECONDS = 0.1
_PROBE_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Route:
    """Where a stream goes, and who must answer there: `address` is "host:port", `pinned` certificates are DER."""

    address: str
    context: ssl.SSLContext
    pinned: tuple[bytes, ...]


def unsent_bytes(bytes_per_second: int) -> int:
    """What the system may hold unsent of a stream with this rate; a power of two, so that it seldom changes."""
    return min(MOST_UNSENT_BYTES, max(UNSENT_BYTES, 1 << int(bytes_per_second * UNSENT_SECONDS).bit_length()))


class Outlet:
    """One thread at a time connects, sends and awaits; `interrupt` may come from any other.

    limit and link are shared by the streams of a session. patience: seconds that one send or one answer may take.
    awaiting: what it is waiting for now, for people; "" if for nothing. answer_seconds: how long the answer to a probe
    is waited for. hold: waits as the limit's own does. Every call raises StreamError.
    """

    def __init__(
        self,
        hello: StreamHello,
        route: Route,
        limit: TokenBucket,
        link: LinkMeter,
        patience: float,
        *,
        answer_seconds: float = PROBE_ANSWER_SECONDS,
        hold: Callable[..., object] | None = None,
    ):
        self._hello, self._route, self._limit, self._patience = hello, route, limit, patience
        self._own = LinkMeter(ceiling=limit.rate)
        self._meters = (link, self._own)
        self._clock = link.now
        self._socket: ssl.SSLSocket | None = None
        self._stopped = threading.Event()
        self._hold = hold or limit.hold
        self._answer_seconds = answer_seconds
        self._owed: int | None = None  # what a probe's late answer will say
        self._state_bytes = self._burst = 0
        self._filling = limit.worth(FILLING_SECONDS, FILLING_BYTES)
        self._unsent, self._fitted = UNSENT_BYTES, 0.0
        self._piece = limit.piece() + HEADER.size
        self._answer = bytearray(HEADER.size + COUNT.size)
        self._filled = 0  # bytes of an answer that have come
        self._sending = f"{route.address} to take more of the stream"
        self.awaiting = ""

    @property
    def bytes_per_second(self) -> int:
        """What this stream carried lately while it had something to send."""
        return self._own.bytes_per_second()

    def now(self) -> float:
        """The clock of `send`."""
        return self._clock()

    def connect(self, timeout: float) -> None:
        """Connect, authenticate, say HELLO and have it acknowledged; each step within `timeout` seconds."""
        try:
            self._connect(timeout)
        except (OSError, ValueError) as error:
            raise StreamError(
                f"device {self._hello.device}: no data stream to {self._route.address}: {error} while awaiting "
                f"{self.awaiting}; is the target agent's advertised data address reachable from this node?",
                device=self._hello.device,
            ) from error

    def _connect(self, timeout: float) -> None:
        host, _, port = self._route.address.rpartition(":")
        self.awaiting = f"its TCP connection to {self._route.address}"
        plain = socket.create_connection((host.strip("[]"), int(port)), timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self.awaiting = f"its TLS handshake with {self._route.address}"
        plain.sendall(pack_preamble(self._hello.migration_uid))
        self._socket = self._route.context.wrap_socket(plain, do_handshake_on_connect=False)
        if self._stopped.is_set():
            raise ValueError("it was called off")
        self._socket.do_handshake()
        check_pin(self._socket, self._route.pinned)
        self._socket.settimeout(self._patience)
        self._socket.sendall(pack_hello(self._hello))
        # the target answers when it has the device ready: only then is the stream set up
        self._acknowledged(0, "HELLO")

    def probe(self, streams: int) -> None:
        """Measure the link, beside `streams` - 1 others, before the first state goes over it.

        Sends for 50 ms and at most 4 MiB; all streams together at most 16 MiB, or 64 KiB each, and under a limit at
        most 100 ms worth of it. Then it waits until the target has it all. Under a limit that leaves too little for
        that there is nothing to find out. A target that does not answer in time is no failure: nothing is measured.
        """
        share = min(MAX_PROBES, max(_PROBE_CHUNK, PROBES_BYTES // streams))
        budget = min(share, self._limit.worth(PROBE_LIMIT_SECONDS, share * streams) // streams)
        if budget < MIN_PROBE:
            return
        chunk = min(_PROBE_CHUNK, self._limit.chunk(_PROBE_CHUNK), budget)
        frame = memoryview(bytearray(HEADER.size) + os.urandom(chunk))
        began, sent = self.now(), 0
        while sent < budget and (not sent or self.now() - began < PROBE_SECONDS) and not self._stopped.is_set():
            count = min(chunk, budget - sent)
            HEADER.pack_into(frame, 0, FrameType.PROBE, count)
            self._send(frame[: HEADER.size + count])
            sent += count
        self._send(memoryview(pack_count(FrameType.PROBED, sent)))
        if self._probed(sent):
            for meter in self._meters:
                meter.carried(began, sent)

    def _probed(self, sent: int) -> bool:
        """Whether the target answered in time that it has `sent` bytes."""
        assert self._socket is not None
        try:
            self._socket.settimeout(min(self._answer_seconds, self._patience))
            try:
                self._acknowledged(sent, "PROBED")
            except TimeoutError:
                self._owed = sent  # it comes before any other answer
            self._socket.settimeout(self._patience)
        except OSError as error:
            raise self._broke(error) from error
        return self._owed is None

    def burst(self) -> None:
        """Whatever is sent from now on follows a pause."""
        self._burst = 0

    def takes(self, count: int) -> bool:
        """Whether so many bytes can be sent just now without waiting, neither for the limit nor for the target."""
        assert self._socket is not None
        if not self._limit.has(count):
            return False
        ready = select.poll()
        try:
            ready.register(self._socket, select.POLLOUT)
        except ValueError:  # it was closed meanwhile
            return False
        return bool(ready.poll(0))

    def data(self, frame: memoryview, began: float, count: int) -> None:
        """Send a DATA frame with `count` bytes, and what follows it, on which the stream is busy since `began`."""
        self._send(frame, began)
        self._state_bytes += count

    def send(self, frame: bytes) -> None:
        """Send any other frame."""
        self._send(memoryview(frame))

    def _send(self, frame: memoryview, began: float | None = None) -> None:
        self.awaiting = self._sending
        assert self._socket is not None
        at = 0
        try:
            while at < len(frame) and not self._stopped.is_set():
                piece = frame[at : at + self._piece]
                switched_over = self._limit.switched_over
                delay = self._limit.take(len(piece))
                if delay:
                    self._hold(delay, self._stopped.is_set, switched_over=switched_over)
                self._socket.sendall(piece)
                at += len(piece)
                if began is not None:
                    began = self._count(len(piece), began)
        except OSError as error:
            raise self._broke(error) from error
        self.awaiting = ""

    def _count(self, count: int, began: float) -> float:
        self._burst += count
        if self._burst > self._filling:
            for meter in self._meters:
                meter.carried(began, count)
        now = self.now()
        if now - self._fitted >= FIT_SECONDS:
            self._fitted = now
            self._fit()
        return now

    def _fit(self) -> None:
        """Let the system hold as much unsent as suits what this stream carried lately."""
        assert self._socket is not None
        unsent = unsent_bytes(self.bytes_per_second)
        if unsent != self._unsent:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent)
            self._filling += unsent - self._unsent
            self._unsent = unsent

    def acknowledged(self, count: int, what: str) -> None:
        """Wait until the target acknowledges `count` bytes as the answer to frame `what`."""
        try:
            self._acknowledged(count, what)
        except OSError as error:
            raise self._broke(error) from error

    def _acknowledged(self, count: int, what: str) -> None:
        self.awaiting = f"the acknowledgement of {what} ({count} bytes) by {self._route.address}"
        if self._owed is not None:
            self._take_answer(self._owed)
            self._owed = None
        self._take_answer(count)
        self.awaiting = ""

    def _take_answer(self, count: int) -> None:
        assert self._socket is not None
        while self._filled < len(self._answer):
            received = self._socket.recv_into(memoryview(self._answer)[self._filled :])
            if received == 0:
                raise StreamError(
                    f"device {self._hello.device}: the target closed the data stream before it acknowledged "
                    f"{count} bytes; the log of the agent at {self._route.address} says why",
                    device=self._hello.device,
                )
            self._filled += received
        self._filled = 0
        try:
            parse_ack(self._answer, count)
        except FrameError as error:
            error.device = self._hello.device
            raise

    def _broke(self, error: OSError) -> StreamError:
        if isinstance(error, TimeoutError):
            return StreamError(
                f"device {self._hello.device}: data stream to {self._route.address} stalled after "
                f"{self._state_bytes} bytes of state: {self.awaiting} was awaited for {self._patience:g} s; look at "
                "that agent's node and at the network between",
                device=self._hello.device,
            )
        return StreamError(
            f"device {self._hello.device}: data stream to {self._route.address} broke after {self._state_bytes} bytes "
            f"of state: {error}; that agent's log says why",
            device=self._hello.device,
        )

    def interrupt(self) -> None:
        """Cut the connection: whoever uses it fails soon."""
        self._stopped.set()
        self._limit.wake()
        if self._socket is not None:
            cut(self._socket)

    def close(self) -> None:
        """Close the connection; nobody uses it any more."""
        if self._socket is not None:
            self._socket.close()
