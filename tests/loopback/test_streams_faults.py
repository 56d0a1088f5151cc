"""What goes wrong on a stream, at the device or at the peer, and what is said of it."""

import errno
import os
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

# --- what goes wrong on the way
from loopback.stream_bench import (
    MIB,
    PATIENCE,
    Bench,
    Endless,
    LoadingDevice,
    RawSource,
    SavingDevice,
    finish,
    until,
)
from vfio_agent.datatls import context
from vfio_agent.devices.protocol import NoDataError, PrecopyInfo
from vfio_agent.frames import (
    HEADER,
    MAX_DATA,
    PREAMBLE,
    FrameType,
    StreamHello,
    pack_count,
    pack_hello,
)
from vfio_api.errors import DeviceError, FrameError, Reason, StreamError


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (HEADER.pack(FrameType.DATA, 10)[:5], "truncated: 5 of 8 bytes"),
        (HEADER.pack(FrameType.DATA, 10) + b"abc", "truncated: 3 of 10 bytes"),
        (HEADER.pack(FrameType.DATA, MAX_DATA + 1), "allowed are 1 to 1048576"),
        (HEADER.pack(99, 1), "frame type 99 is unknown"),
        (pack_hello(StreamHello("u", "gpu0", 1)), "HELLO is out of order"),
        (pack_count(FrameType.END, 5), "the source sent 5 bytes of state, 0 were received"),
        (pack_count(FrameType.INITIAL, 5), "INITIAL says offset 5, 0 bytes were received"),
        (pack_count(FrameType.ACK, 0), "ACK is out of order"),
    ],
)
def test_a_stream_that_is_cut_or_wrong_fails_the_inlet(bench: Bench, sent: bytes, message: str) -> None:
    target = bench.target()
    with RawSource(bench, target) as tls:
        tls.sendall(sent)
        tls.shutdown(socket.SHUT_WR)
    error = target.end()
    assert isinstance(error, FrameError)
    assert message in error.message
    assert (error.reason, error.device) == (Reason.FRAME_INVALID, "gpu0")
    assert target.ended.empty()


def test_a_stream_that_ends_between_frames_is_a_broken_one(bench: Bench) -> None:
    target = bench.target()
    with RawSource(bench, target) as tls:
        tls.shutdown(socket.SHUT_WR)
    error = target.end()
    assert error is not None
    assert "closed the data stream before its end" in error.message
    assert (error.reason, error.device) == (Reason.STREAM_BROKEN, "gpu0")


def test_a_read_error_of_the_device_names_device_and_errno(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(MIB)), bench.target()
    saving.fails_at = 0
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.error is not None)
    assert isinstance(sender.error, DeviceError)
    assert (sender.error.device, sender.error.errno) == ("gpu0", errno.EIO)
    assert sender.error.message == (
        "device gpu0: reading its state failed after 0 bytes: [Errno 5] Input/output error; "
        "look at the kernel log of its node"
    )


def test_a_write_error_of_the_device_fails_both_ends(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(3 * MIB)), bench.target(LoadingDevice(most=1000))
    target.device.fails_at = 5000
    sender, changed = bench.connected(target, saving)
    error = target.end()
    assert isinstance(error, DeviceError)
    assert (error.device, error.errno, error.reason) == ("gpu0", errno.EINVAL, Reason.STATE_REFUSED)
    assert error.message == (
        "device gpu0: it refused state at byte 5000: [Errno 22] Invalid argument; the state does not fit or came "
        "incomplete: compare driver and firmware versions of both devices"
    )
    until(changed, lambda: sender.error is not None)
    assert sender.error is not None
    assert sender.error.device == "gpu0"


def test_a_device_that_takes_nothing_is_an_error_and_no_endless_loop(bench: Bench) -> None:
    saving, target = SavingDevice(b"state"), bench.target(LoadingDevice(most=0))
    bench.connected(target, saving)
    error = target.end()
    assert error is not None
    assert error.message == "device gpu0: it took no bytes"


@pytest.mark.parametrize(
    ("code", "reason", "step"),
    [
        (errno.ENOMEM, Reason.STATE_REFUSED, "its node is out of memory for the state"),
        (errno.ENOSPC, Reason.STATE_REFUSED, "its node has no room for the state"),
        (errno.EFAULT, Reason.STATE_REFUSED, "its driver could not copy these bytes"),
        (errno.ENODEV, Reason.DEVICE_LOST, "the device is gone"),
    ],
)
def test_a_write_error_says_what_to_do_next(bench: Bench, code: int, reason: Reason, step: str) -> None:
    saving, target = SavingDevice(os.urandom(MIB)), bench.target(LoadingDevice(most=1000))
    target.device.fails_at, target.device.fails_with = 5000, code
    bench.connected(target, saving)
    error = target.end()
    assert isinstance(error, DeviceError)
    assert (error.device, error.errno, error.reason) == ("gpu0", code, reason)
    assert error.message.startswith(f"device gpu0: it refused state at byte 5000: [Errno {code}]")
    assert step in error.message


def test_a_device_that_is_gone_while_it_is_read(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(MIB), chunk=lambda _room: 1000), bench.target()
    saving.fails_at, saving.fails_with = 5000, errno.ENODEV
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.error is not None)
    assert isinstance(sender.error, DeviceError)
    assert (sender.error.reason, sender.error.errno) == (Reason.DEVICE_LOST, errno.ENODEV)
    assert "after 5000 bytes" in sender.error.message


class NeverEnding(SavingDevice):
    """In STOP_COPY it says that there is nothing for now, which is for pre-copy only."""

    def readinto(self, buffer: memoryview) -> int:
        count = super().readinto(buffer)
        if not count:
            raise NoDataError
        return count


def test_enomsg_in_stop_copy_is_an_error_and_no_endless_loop(bench: Bench) -> None:
    saving, target = NeverEnding(b"state", b"rest"), bench.target()
    sender, changed = bench.connected(target, saving)
    saving.stop_copy()
    sender.finish()
    until(changed, lambda: sender.error is not None)
    assert isinstance(sender.error, DeviceError)
    assert (sender.error.errno, sender.error.device) == (errno.ENOMSG, "gpu0")
    assert "ENOMSG, no data for now, in STOP_COPY" in sender.error.message
    assert not sender.progress.finished


class BrokenInfo(SavingDevice):
    code = errno.EIO

    def precopy_info(self) -> PrecopyInfo:
        raise OSError(self.code, os.strerror(self.code))


def test_a_device_without_pre_copy_has_nothing_to_tell_before_its_end(bench: Bench) -> None:
    """Its driver knows no VFIO_MIG_GET_PRECOPY_INFO at all; it hands out its stream in STOP_COPY."""
    saving, target = BrokenInfo(b"", b"state"), bench.target()
    saving.code = errno.ENOTTY
    saving.stop_copy()
    finish(saving, *bench.connected(target, saving))
    assert target.end() is None
    assert target.device.loaded == b"state"


def test_a_device_that_cannot_tell_how_much_is_left_fails(bench: Bench) -> None:
    sender, changed = bench.connected(bench.target(), BrokenInfo(b"state"))
    until(changed, lambda: sender.error is not None)
    assert isinstance(sender.error, DeviceError)
    assert sender.error.errno == errno.EIO


# --- a peer that says nothing; the short patience is the case, nothing is measured against it


def test_a_target_that_accepts_and_says_nothing(bench: Bench) -> None:
    target = bench.target()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        sender, _ = bench.sender(target, port=port)
        with pytest.raises(StreamError) as refused:
            sender.connect(0.2)
        assert f"no data stream to 127.0.0.1:{port}" in refused.value.message
        assert "while awaiting its TLS handshake" in refused.value.message


def test_a_target_that_does_not_answer_hello(bench: Bench) -> None:
    target = bench.target()
    tls = context(target.identity, (bench.source.certificate,), server=True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        def greet() -> ssl.SSLSocket:
            plain, _ = silent.accept()
            plain.recv(PREAMBLE.size)
            return tls.wrap_socket(plain, server_side=True)

        with ThreadPoolExecutor(1) as pool:
            greeted = pool.submit(greet)
            sender, _ = bench.sender(target, port=port, patience=0.2)
            with pytest.raises(StreamError) as refused:
                sender.connect(PATIENCE)
            greeted.result(PATIENCE).close()
    expected = f"while awaiting the acknowledgement of HELLO (0 bytes) by 127.0.0.1:{port}"
    assert expected in refused.value.message


@pytest.mark.parametrize(
    ("size", "awaited"), [(256 * MIB, "to take more of the stream"), (10, "the acknowledgement of END (10 bytes)")]
)
def test_a_stream_that_stalls_names_the_peer_and_what_was_awaited(bench: Bench, size: int, awaited: str) -> None:
    saving, target = Endless(size), bench.target(LoadingDevice(keep=False))
    target.device.go.clear()
    sender, changed = bench.connected(target, saving, patience=0.2)
    saving.stop_copy()
    sender.finish()
    until(changed, lambda: sender.error is not None)
    target.device.go.set()
    error = sender.error
    assert isinstance(error, StreamError)
    assert (error.reason, error.device) == (Reason.STREAM_BROKEN, "gpu0")
    assert f"data stream to 127.0.0.1:{bench.server.port} stalled after" in error.message
    assert awaited in error.message
    assert "was awaited for 0.2 s" in error.message


def test_interrupting_the_source_ends_both_threads(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(MIB), b"rest"), bench.target()
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.progress.drained)
    sender.interrupt()
    sender.stop()
    assert saving.closed
    assert sender.error is None
    assert target.end() is not None
    assert_no_thread("send-gpu0")


class Hanging(SavingDevice):
    """Its read does not come back until `go` is set."""

    def __init__(self, state: bytes):
        super().__init__(state)
        self.go, self.asked = threading.Event(), threading.Event()

    def readinto(self, buffer: memoryview) -> int:
        self.asked.set()
        assert self.go.wait(PATIENCE)
        return super().readinto(buffer)


def test_ending_a_stream_waits_for_its_device_no_longer_than_told(bench: Bench) -> None:
    """All streams of a session share what is left of one deadline, which for the last may be nothing."""
    saving = Hanging(b"state")
    sender, _ = bench.connected(bench.target(), saving)
    assert saving.asked.wait(PATIENCE)
    sender.stop(0.0)
    assert not saving.go.is_set()
    assert saving.closed
    saving.go.set()


def test_a_data_stream_that_comes_too_late_is_closed(bench: Bench) -> None:
    """An arc outlived its deadline, and the session has turned back: nobody else would close the fd."""
    late, later = SavingDevice(b"state"), SavingDevice(b"state")
    sender, _ = bench.sender(bench.target())
    sender.connect(PATIENCE)
    sender.interrupt()
    sender.begin(late)
    sender.stop()
    sender.begin(later)
    assert late.closed
    assert later.closed


def test_a_stopped_source_that_waits_for_a_slow_target_ends(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(16 * MIB)), bench.target()
    target.device.go.clear()
    sender, _ = bench.connected(target, saving)
    assert target.device.asked.wait(PATIENCE)
    sender.stop()
    assert sender.error is None
    assert_no_thread("send-gpu0")
    target.device.go.set()
    assert target.end() is not None


def test_forgetting_a_migration_ends_its_streams(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(MIB), b"rest"), bench.target()
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.progress.drained)
    bench.server.forget(target.uid)
    assert target.end() is not None
    saving.stop_copy()
    sender.finish()
    until(changed, lambda: sender.error is not None)
    assert bytes(target.device.loaded) == saving._initial[: len(target.device.loaded)], "nothing but state is loaded"


def assert_no_thread(name: str) -> None:
    assert name not in [thread.name for thread in threading.enumerate()]
