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
from vfio_agent.frames import COUNT, HEADER, MAX_CONFIG, FrameType, StreamHello, buffer_bytes, pack_config, pack_count
from vfio_agent.linkrate import LinkMeter
from vfio_agent.outlet import Outlet, Route
from vfio_agent.ratelimit import TokenBucket
from vfio_api.errors import DeviceError, Reason, VFIOMigrationError

SMALL_BYTES = 64 * 1024  # what is left of a state and is smaller goes out together with the stream's END
POLL_SECONDS = 0.02
POLLS_PER_SECOND = 500  # of all streams of a session together: many devices must not be kept busy by being asked
REPORT_SECONDS = 0.2
IO_SECONDS = 30.0
_TAIL = HEADER.size + MAX_CONFIG + HEADER.size + COUNT.size


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

    `changed` is called when initial_acknowledged, drained, finished, `confirmed` or `error` change, on progress at most
    every 200 ms, and when the device has come to have nothing more for now. config: what the state does not carry
    (Device.config), read once all of the state is sent; raises DeviceError. carried: called with how many bytes of the
    state were sent just now. All three are called in the sending thread or in that of `stopped`. streams: how many the
    session has. patience: seconds that the peer may stall.
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
        self._turn = threading.Lock()  # whoever has it uses device and outlet
        self._renewed = False  # the device said to `rested` that it has initial data
        self._frame = memoryview(bytearray(HEADER.size + self._room + _TAIL))
        self._payload = self._frame[HEADER.size : HEADER.size + self._room]
        self._small = min(SMALL_BYTES, self._room // 2)
        self._left, self._said = 0, False  # bytes of state that are in the frame, not sent; END was sent
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

    def begin(self, source: DataStream, *, final: bool = False) -> None:
        """The device has handed out its data stream (PRE_COPY or STOP_COPY); closed if that came too late.

        final: in STOP_COPY; `stopped` follows, and nothing is sent before.
        """
        with self._wake:
            if not self._stopped:
                self._source = source
                if not final:
                    self._wake.notify()
                return
        source.close()

    def confirm(self) -> None:
        """Look anew whether the device has initial data, and have it acknowledged if so; then `confirmed` is True."""
        with self._wake:
            self._asked += 1
            self._wake.notify()

    def rested(self) -> bool:
        """Whether the device, asked now, has no initial data but what is acknowledged. False: `confirm` finds out.

        Any thread; the sending one is not waited for. A stream that has failed or was called off has no rest.
        """
        source = self._source
        if source is None or not self._turn.acquire(blocking=False):
            return False
        try:
            if self.error is not None or self._stopped or not self.progress.initial_acknowledged:
                return False
            info = source.precopy_info()
            self._renewed = self._renewed or info.reinit or info.initial_bytes > 0
        except OSError:
            return False
        finally:
            self._turn.release()
        return not self._renewed

    @property
    def confirmed(self) -> bool:
        """Whether all initial data that the device had at the last `confirm` is acknowledged as loaded."""
        return self._confirmed == self._asked

    def stopped(self) -> None:
        """The device is in STOP_COPY; `finish` follows when all are. Any thread.

        What is little, and there already, is sent by this thread, if the sending one has nothing to do at the moment
        and nothing holds the stream back: to wake the other takes longer, while the devices are down.
        """
        with self._wake:
            self._final = True
            here = self._source is not None and self.error is None and not self._stopped
        if here and self._turn.acquire(blocking=False):
            try:
                if not self._said and self._outlet.takes(self._small + _TAIL) and self._fill(wait=False):
                    self._say_end()
            except VFIOMigrationError as error:
                self._fail(error)
            finally:
                self._turn.release()
        if not self._said:
            self.finish()

    def finish(self) -> None:
        """The device is in STOP_COPY: send to the end, and have it acknowledged."""
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
            self._fail(error)

    def _fail(self, error: VFIOMigrationError) -> None:
        if not self._stopped and self.error is None:
            error.device = error.device or self._device
            self.error = error
            self._changed()

    def _send_all(self) -> None:
        idle = False
        while not self._stopped and self.error is None:
            source = self._wait(idle=idle)
            if source is None:
                continue
            with self._turn:
                if self._final:
                    break
                before = self.progress.sent_bytes
                self._look(source, drained=False)
                self._drain(source)
                self._look(source, drained=True)
                rested, idle = idle, self.progress.sent_bytes == before
                if not idle:
                    self.progress = replace(self.progress, passes=self.progress.passes + 1)
            if idle and not rested:
                self._changed()  # what was told in the midst of the last burst is no longer so
        with self._turn:
            if not self._said and not self._stopped and self.error is None:
                self._send_rest()
        if self._said and not self._stopped:
            self._outlet.acknowledged(self.progress.sent_bytes, "END")
            self.progress = replace(self.progress, finished=True)
            self._changed()

    def _send_rest(self) -> None:
        """In STOP_COPY: send until the device has nothing more at all, and that this is the end."""
        self._outlet.burst()
        began = self._outlet.now()
        while not self._fill():
            if self._stopped:
                return
            HEADER.pack_into(self._frame, 0, FrameType.DATA, self._left)
            self._outlet.data(self._frame[: HEADER.size + self._left], began, self._left)
            self._account(self._left)
            self._left, began = 0, self._outlet.now()
        self._say_end()

    def _fill(self, *, wait: bool = True) -> bool:
        """Read what the device has left until that is worth a frame; whether it has nothing more at all.

        What is small is not sent by itself: each message wakes the other end. wait: for a device that has to do
        something before it gives its state.
        """
        source = self._source
        assert source is not None
        while self._left <= self._small and not self._stopped and (wait or source.ready()):
            count = self._read(source, self._payload[self._left :])
            if count == 0:
                return True
            self._left += count or 0
        return False

    def _say_end(self) -> None:
        """Send the last bytes of state, which are in the frame already, and what is to be said after them."""
        began, config = self._outlet.now(), self._config()
        if len(config) > MAX_CONFIG:
            raise DeviceError(
                f"device {self._device}: its config has {len(config)} bytes, at most {MAX_CONFIG} can be carried",
                device=self._device,
            )
        left = self._left
        tail = pack_config(config) if config else b""
        tail += pack_count(FrameType.END, self.progress.sent_bytes + left)
        if left:
            HEADER.pack_into(self._frame, 0, FrameType.DATA, left)
            end = HEADER.size + left
            self._frame[end : end + len(tail)] = tail
            self._outlet.data(self._frame[: end + len(tail)], began, left)
            self._count(left)  # it is told when it is acknowledged
        else:
            self._outlet.send(tail)
        self._left, self._said = 0, True

    def _wait(self, *, idle: bool) -> DataStream | None:
        with self._wake:
            if self._source is None:  # also at the end: what a pod saves comes when it is saved
                self._wake.wait_for(lambda: self._source is not None or self._stopped)
            elif (idle or self.progress.drained) and not (self._final or self._stopped or self._asked != self._looked):
                self._wake.wait(self._poll)
            return self._source

    def _drain(self, source: DataStream) -> None:
        """Send until the device has nothing more for now, or nothing more at all."""
        self._outlet.burst()
        while not self._stopped:
            began = self._outlet.now()
            count = self._read(source, self._payload)
            if count is None:
                continue
            if count == 0:
                return
            HEADER.pack_into(self._frame, 0, FrameType.DATA, count)
            self._outlet.data(self._frame[: HEADER.size + count], began, count)
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
        self._count(count)
        now = time.monotonic()
        due = now - self._last_report >= REPORT_SECONDS
        if due:
            self._last_report = now
            self._changed()
        return due

    def _count(self, count: int) -> None:
        self.progress = replace(
            self.progress,
            sent_bytes=self.progress.sent_bytes + count,
            bytes_per_second=self._outlet.bytes_per_second,
        )
        self._carried(count)

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
        anew = before.initial_acknowledged and (info.reinit or info.initial_bytes > 0 or self._renewed)
        self._renewed = False
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
