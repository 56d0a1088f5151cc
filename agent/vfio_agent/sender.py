"""The source's end of one device's data stream: device -> TLS, in a thread of its own.

The session moves the device's state; this thread only reads what the device gives and sends it. While the device is
in pre-copy it sends until the device has nothing for now, and then polls; once told that the device is in STOP_COPY
it sends to the end. One buffer, no allocation per chunk, and the socket's back-pressure reaches the device's read.
"""

import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from errno import EINVAL, ENODEV, ENOMSG, ENOTTY

from vfio_agent.advice import advice
from vfio_agent.devices.protocol import DataStream, NoDataError
from vfio_agent.frames import HEADER, MAX_CONFIG, FrameType, StreamHello, buffer_bytes, pack_config, pack_count
from vfio_agent.linkrate import LinkMeter
from vfio_agent.outlet import Outlet, Route
from vfio_agent.ratelimit import TokenBucket
from vfio_api.errors import DeviceError, Reason, VFIOMigrationError

POLL_SECONDS = 0.02
POLLS_PER_SECOND = 500  # of all streams of a session together: many devices must not be kept busy by being asked
REPORT_SECONDS = 0.2
IO_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What the sender knows of its stream.

    bytes_per_second: lately, while there was something to send. initial_acknowledged: the target has loaded the
    initial data; False again from when the device has new initial data until that is loaded, too. finished: END is
    acknowledged as loaded up to the last byte sent. passes: how often the device was emptied in pre-copy.
    """

    sent_bytes: int = 0
    initial_bytes: int = 0
    dirty_bytes: int = 0
    bytes_per_second: int = 0
    initial_acknowledged: bool = False
    drained: bool = False
    finished: bool = False
    passes: int = 0


class Sender:
    """Sends one device's state to `address` ("host:port").

    `changed` is called from the sending thread when initial_acknowledged, drained, finished, `confirmed` or `error`
    change, on progress at most every 200 ms, and when the device has come to have nothing more for now. config: what
    the state does not carry (Device.config), read once all of the state is sent; raises DeviceError. carried: called
    with how many bytes of the state were sent just now. streams: how many the session
    has. patience: seconds that the peer may stall.
    """

    def __init__(
        self,
        hello: StreamHello,
        address: str,
        context: ssl.SSLContext,
        pinned: tuple[bytes, ...],
        limit: TokenBucket,
        changed: Callable[[], None],
        *,
        link: LinkMeter | None = None,
        config: Callable[[], bytes] = bytes,
        carried: Callable[[int], object] = lambda _count: None,
        streams: int = 1,
        patience: float = IO_SECONDS,
    ):
        self._device, self._changed, self._config, self._carried = hello.device, changed, config, carried
        self._outlet = Outlet(hello, Route(address, context, pinned), limit, link or LinkMeter(), patience)
        self._streams = streams
        self._poll = max(POLL_SECONDS, streams / POLLS_PER_SECOND)
        self._room = limit.chunk(buffer_bytes(streams))
        self._wake = threading.Condition()
        self._source: DataStream | None = None
        self._final = self._stopped = False
        self._asked = self._looked = self._confirmed = 0  # of `confirm`: calls; seen by a look; true since then
        self._thread = threading.Thread(target=self._run, name=f"send-{hello.device}", daemon=True)
        self._last_report = 0.0
        self._reading = ""
        self.progress = Progress()
        self.error: VFIOMigrationError | None = None

    @property
    def awaiting(self) -> str:
        """What the stream waits for at this moment, for people; "" if for nothing."""
        return self._reading or self._outlet.awaiting

    def connect(self, timeout: float) -> None:
        """Connect, authenticate and say HELLO; blocking. Raises StreamError."""
        self._outlet.connect(timeout)
        self._thread.start()

    def probe(self) -> None:
        """Measure the link, at once with the other streams; after connect, before begin. Raises StreamError."""
        self._outlet.probe(self._streams)

    def begin(self, source: DataStream) -> None:
        """The device has handed out its data stream (PRE_COPY or STOP_COPY); closed if that came too late."""
        with self._wake:
            if not self._stopped:
                self._source = source
                self._wake.notify()
                return
        source.close()

    def confirm(self) -> None:
        """Look anew whether the device has initial data, and have it acknowledged if so; then `confirmed` is True."""
        with self._wake:
            self._asked += 1
            self._wake.notify()

    @property
    def confirmed(self) -> bool:
        """Whether all initial data that the device had at the last `confirm` is acknowledged as loaded."""
        return self._confirmed == self._asked

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
        self._outlet.interrupt()

    def stop(self, seconds: float = IO_SECONDS) -> None:
        """Give up: close the connection and the data stream, and wait for the thread, so long at most."""
        self.interrupt()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        self._outlet.close()
        with self._wake:
            source, self._source = self._source, None
        if source is not None:
            source.close()

    def _run(self) -> None:
        try:
            self._send_all()
        except VFIOMigrationError as error:
            if not self._stopped:
                error.device = error.device or self._device
                self.error = error
                self._changed()

    def _send_all(self) -> None:
        frame = memoryview(bytearray(HEADER.size + self._room))
        idle = False
        while not self._stopped:
            source, final = self._wait(idle=idle)
            if source is None:
                continue
            if final:
                self._drain(source, frame)
                break
            before = self.progress.sent_bytes
            self._look(source, drained=False)
            self._drain(source, frame)
            self._look(source, drained=True)
            rested, idle = idle, self.progress.sent_bytes == before
            if not idle:
                self.progress = replace(self.progress, passes=self.progress.passes + 1)
            if idle and not rested:
                self._changed()  # what was told in the midst of the last burst is no longer so
        if not self._stopped:
            self._finish()

    def _finish(self) -> None:
        config = self._config()
        if len(config) > MAX_CONFIG:
            raise DeviceError(
                f"device {self._device}: its config has {len(config)} bytes, at most {MAX_CONFIG} can be carried",
                device=self._device,
            )
        if config:
            self._outlet.send(pack_config(config))
        self._outlet.send(pack_count(FrameType.END, self.progress.sent_bytes))
        self._outlet.acknowledged(self.progress.sent_bytes, "END")
        self.progress = replace(self.progress, finished=True)
        self._changed()

    def _wait(self, *, idle: bool) -> tuple[DataStream | None, bool]:
        with self._wake:
            pause = idle or self.progress.drained or self._source is None
            new = self._asked != self._looked and self._source is not None
            if pause and not new and not self._final and not self._stopped:
                self._wake.wait(self._poll if self._source is not None else None)
            return self._source, self._final

    def _drain(self, source: DataStream, frame: memoryview) -> None:
        """Send until the device has nothing more for now, or nothing more at all."""
        payload = frame[HEADER.size :]
        self._outlet.burst()
        while not self._stopped:
            began = self._outlet.now()
            count = self._read(source, payload)
            if count is None:
                continue
            if count == 0:
                return
            HEADER.pack_into(frame, 0, FrameType.DATA, count)
            self._outlet.data(frame[: HEADER.size + count], began)
            due = self._account(count)
            if (due or not self.confirmed) and not self._final:
                self._look(source, drained=False)

    def _read(self, source: DataStream, payload: memoryview) -> int | None:
        """Bytes read; 0: nothing more for now, or at all; None: the device has gone to STOP_COPY meanwhile."""
        final = self._final
        self._reading = f"the device to give state in {'STOP_COPY' if final else 'pre-copy'}"
        try:
            return source.readinto(payload)
        except NoDataError:
            if final:  # the arc had been made before: there, the end is a read of 0 bytes
                raise DeviceError(
                    f"device {self._device}: reading its state failed after {self.progress.sent_bytes} bytes: "
                    f"ENOMSG, no data for now, in STOP_COPY; {advice(ENOMSG)}",
                    device=self._device,
                    arc="STOP_COPY",
                    errno=ENOMSG,
                ) from None
            return None if self._final else 0
        except OSError as error:
            raise self._unreadable(error) from error
        finally:
            self._reading = ""

    def _unreadable(self, error: OSError) -> DeviceError:
        return DeviceError(
            f"device {self._device}: reading its state failed after {self.progress.sent_bytes} bytes: {error}; "
            f"{advice(error.errno)}",
            reason=Reason.DEVICE_LOST if error.errno == ENODEV else None,
            device=self._device,
            arc="STOP_COPY" if self._final else "",
            errno=error.errno or 0,
        )

    def _account(self, count: int) -> bool:
        """Count what was sent; True if it is time to look and to report."""
        self.progress = replace(
            self.progress,
            sent_bytes=self.progress.sent_bytes + count,
            bytes_per_second=self._outlet.bytes_per_second,
        )
        self._carried(count)
        now = time.monotonic()
        due = now - self._last_report >= REPORT_SECONDS
        if due:
            self._last_report = now
            self._changed()
        return due

    def _look(self, source: DataStream, *, drained: bool) -> None:
        """In pre-copy: ask how much is left, and have the initial data acknowledged once it is all sent."""
        asked = self._asked  # of before the device is asked
        try:
            info = source.precopy_info()
        except OSError as error:
            if error.errno in (EINVAL, ENOTTY):
                self._looked = asked
                return  # the device has left the pre-copy states, or has none: finish() follows
            raise self._unreadable(error) from error
        before = self.progress
        # a driver that raises initial_bytes again without the flag is taken at its word, too
        anew = before.initial_acknowledged and (info.reinit or info.initial_bytes > 0)
        self.progress = replace(
            before,
            initial_bytes=info.initial_bytes,
            dirty_bytes=info.dirty_bytes,
            drained=before.drained or drained,
            initial_acknowledged=before.initial_acknowledged and not anew,
        )
        if anew or self.progress.drained != before.drained:
            self._changed()
        if info.initial_bytes == 0 and not self.progress.initial_acknowledged:
            self._outlet.send(pack_count(FrameType.INITIAL, self.progress.sent_bytes))
            self._outlet.acknowledged(self.progress.sent_bytes, "INITIAL")
            self.progress = replace(self.progress, initial_acknowledged=True)
            self._changed()
        self._looked = asked
        if self.progress.initial_acknowledged and self._confirmed != asked:
            self._confirmed = asked
            self._changed()
