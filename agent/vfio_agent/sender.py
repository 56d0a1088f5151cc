"""The source's end of one device's data stream: device -> TLS, in a thread of its own.

The session moves the device's state; this thread only reads what the device gives and sends it. While the device is
in pre-copy it sends until the device has nothing for now, and then polls; once told that the device is in STOP_COPY
it sends to the end. One buffer, no allocation per chunk, and the socket's back-pressure reaches the device's read.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from vfio_agent.datatls import check_pin, cut
from vfio_agent.devices.protocol import DataStream, NoDataError
from vfio_agent.frames import (
    COUNT,
    HEADER,
    MAX_DATA,
    FrameType,
    StreamHello,
    pack_count,
    pack_hello,
    pack_preamble,
    parse_ack,
)
from vfio_agent.ratelimit import TokenBucket
from vfio_api.errors import DeviceError, StreamError, VFIOMigrationError

POLL_SECONDS = 0.02
REPORT_SECONDS = 0.2
IO_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What the sender knows of its stream. finished: END is acknowledged as loaded up to the last byte sent."""

    sent_bytes: int = 0
    initial_bytes: int = 0
    dirty_bytes: int = 0
    bytes_per_second: int = 0
    initial_acknowledged: bool = False
    drained: bool = False
    finished: bool = False


class Sender:
    """Sends one device's state to `address` ("host:port").

    `changed` is called from the sending thread when initial_acknowledged, drained, finished or `error` change, and on
    progress at most every 200 ms.
    """

    def __init__(
        self,
        hello: StreamHello,
        address: str,
        context: ssl.SSLContext,
        pinned: tuple[bytes, ...],
        limit: TokenBucket,
        changed: Callable[[], None],
    ):
        self._hello, self._address, self._context, self._pinned = hello, address, context, pinned
        self._limit, self._changed = limit, changed
        self._wake = threading.Condition()
        self._source: DataStream | None = None
        self._final = self._stopped = False
        self._socket: ssl.SSLSocket | None = None
        self._thread = threading.Thread(target=self._run, name=f"send-{hello.device}", daemon=True)
        self._last_report = 0.0
        self._rate_bytes, self._rate_seconds = 0, 0.0
        self.progress = Progress()
        self.error: VFIOMigrationError | None = None

    def connect(self, timeout: float) -> None:
        """Connect, authenticate and say HELLO; blocking. Raises StreamError."""
        host, _, port = self._address.rpartition(":")
        try:
            plain = socket.create_connection((host.strip("[]"), int(port)), timeout)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.sendall(pack_preamble(self._hello.migration_uid))
            self._socket = self._context.wrap_socket(plain)
            check_pin(self._socket, self._pinned)
            self._socket.settimeout(IO_SECONDS)
            self._socket.sendall(pack_hello(self._hello))
            # the target answers when it has the device ready: only then is the stream set up
            self._expect_ack(0)
        except (OSError, ValueError) as error:
            raise StreamError(
                f"device {self._hello.device}: no data stream to {self._address}: {error}; "
                "is the target agent's advertised data address reachable from this node?",
                device=self._hello.device,
            ) from error
        self._thread.start()

    def begin(self, source: DataStream) -> None:
        """The device has handed out its data stream (PRE_COPY or STOP_COPY)."""
        with self._wake:
            self._source = source
            self._wake.notify()

    def finish(self) -> None:
        """The device is in STOP_COPY: send to the end."""
        with self._wake:
            self._final = True
            self._wake.notify()

    def interrupt(self) -> None:
        """Give up, without waiting: the thread ends soon and reports no error."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._socket is not None:
            cut(self._socket)

    def stop(self) -> None:
        """Give up: close the connection and the data stream, and wait for the thread."""
        self.interrupt()
        if self._thread.ident is not None:
            self._thread.join(IO_SECONDS)
        if self._socket is not None:
            self._socket.close()
        if self._source is not None:
            self._source.close()
            self._source = None

    def _run(self) -> None:
        try:
            self._send_all()
        except VFIOMigrationError as error:
            self._fail(error)
        except OSError as error:
            self._fail(
                StreamError(
                    f"device {self._hello.device}: data stream to {self._address} broke after "
                    f"{self.progress.sent_bytes} bytes: {error}",
                    device=self._hello.device,
                )
            )

    def _fail(self, error: VFIOMigrationError) -> None:
        if not self._stopped:
            self.error = error
            self._changed()

    def _send_all(self) -> None:
        frame = memoryview(bytearray(HEADER.size + MAX_DATA))
        while not self._stopped:
            source, final = self._wait()
            if source is None:
                continue
            if final:
                self._drain(source, frame)
                break
            self._drain(source, frame)
            self._look(source, drained=True)
        if not self._stopped:
            self._send(memoryview(pack_count(FrameType.END, self.progress.sent_bytes)))
            self._expect_ack(self.progress.sent_bytes)
            self.progress = replace(self.progress, finished=True)
            self._changed()

    def _wait(self) -> tuple[DataStream | None, bool]:
        with self._wake:
            if not self._final and not self._stopped and (self.progress.drained or self._source is None):
                self._wake.wait(POLL_SECONDS if self._source is not None else None)
            return self._source, self._final

    def _drain(self, source: DataStream, frame: memoryview) -> None:
        """Send until the device has nothing more for now, or nothing more at all."""
        payload = frame[HEADER.size :]
        while not self._stopped:
            began = time.monotonic()
            try:
                count = source.readinto(payload)
            except NoDataError:
                if not self._final:
                    return
                time.sleep(0)  # the arc to STOP_COPY has been made: what follows ends with 0, not ENOMSG
                continue
            except OSError as error:
                raise DeviceError(
                    f"device {self._hello.device}: reading its state failed: {error}",
                    device=self._hello.device,
                    errno=error.errno or 0,
                ) from error
            if count == 0:
                return
            HEADER.pack_into(frame, 0, FrameType.DATA, count)
            self._send(frame[: HEADER.size + count])
            if self._account(count, time.monotonic() - began) and not self._final:
                self._look(source, drained=False)

    def _send(self, data: memoryview) -> None:
        delay = self._limit.take(len(data))
        if delay:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped, delay)
        assert self._socket is not None
        self._socket.sendall(data)

    def _account(self, count: int, seconds: float) -> bool:
        """Count what was sent; True if it is time to look and to report."""
        self._rate_bytes += count
        self._rate_seconds += seconds
        self.progress = replace(
            self.progress,
            sent_bytes=self.progress.sent_bytes + count,
            bytes_per_second=int(self._rate_bytes / self._rate_seconds) if self._rate_seconds else 0,
        )
        now = time.monotonic()
        due = now - self._last_report >= REPORT_SECONDS
        if due:
            self._last_report = now
            self._changed()
        return due

    def _look(self, source: DataStream, *, drained: bool) -> None:
        """In pre-copy: ask how much is left, and have the initial data acknowledged once it is all sent."""
        try:
            info = source.precopy_info()
        except OSError:
            return  # the device has left the pre-copy states meanwhile: finish() follows
        before = self.progress
        self.progress = replace(
            before,
            initial_bytes=info.initial_bytes,
            dirty_bytes=info.dirty_bytes,
            drained=before.drained or drained,
        )
        if info.initial_bytes == 0 and not before.initial_acknowledged:
            self._send(memoryview(pack_count(FrameType.INITIAL, self.progress.sent_bytes)))
            self._expect_ack(self.progress.sent_bytes)
            self.progress = replace(self.progress, initial_acknowledged=True)
        if (self.progress.drained, self.progress.initial_acknowledged) != (
            before.drained,
            before.initial_acknowledged,
        ):
            self._changed()

    def _expect_ack(self, count: int) -> None:
        assert self._socket is not None
        raw = bytearray(HEADER.size + COUNT.size)
        filled = 0
        while filled < len(raw):
            received = self._socket.recv_into(memoryview(raw)[filled:])
            if received == 0:
                raise StreamError(
                    f"device {self._hello.device}: the target closed the data stream before it acknowledged "
                    f"{count} bytes; its agent's log says why",
                    device=self._hello.device,
                )
            filled += received
        parse_ack(raw, count)
