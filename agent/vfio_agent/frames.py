"""The format of a data stream, without I/O: what may follow what, and how long it may be.

A stream is HELLO, perhaps PROBEs and their PROBED, then DATA and INITIAL in any order, perhaps a CONFIG, then END;
nothing after. Back flow ACKs. Every frame is an 8-byte header (type, three zero bytes, payload length, big-endian) and
its payload. Payloads of DATA never pass through this module: the reader takes a header here, then receives the payload
straight into the device's buffer.
"""

import json
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from vfio_api.errors import FrameError

HEADER = struct.Struct("!B3xI")
COUNT = struct.Struct("!Q")
PREAMBLE = struct.Struct("!4s36s")  # magic, migration UID: which session's TLS context to use
MAGIC = b"VFM1"
MAX_DATA = 1 << 20
MAX_HELLO = 4096
MAX_CONFIG = 4096
MAX_PROBE = 1 << 20  # bytes of one PROBE
MAX_PROBES = 4 << 20  # bytes of all PROBEs of a stream
_BUFFERS = 64 << 20  # bytes of memory that the streams of a session share, at either end


def buffer_bytes(streams: int) -> int:
    """How large the buffer of each of so many streams of a session may be: all of them stay bounded together."""
    return max(64 * 1024, min(MAX_DATA, _BUFFERS // max(1, streams)))


class FrameType(IntEnum):
    """What a frame carries."""

    HELLO = 1  # JSON: migration, device, epoch
    DATA = 2  # device state as the device gave it; byte order is kept, segmentation is not
    INITIAL = 3  # everything before this is the initial data; acknowledge when it is LOADED
    END = 4  # the number of DATA bytes of the whole stream
    ACK = 5  # target to source: the number of DATA bytes loaded into the device, or of PROBE bytes that came
    PROBE = 6  # incompressible bytes to measure the link with; the target discards them
    PROBED = 7  # the number of PROBE bytes of the whole stream; acknowledge that they came
    CONFIG = 8  # Device.config: what the device state does not carry


_LENGTHS: dict[FrameType, tuple[int, int]] = {
    FrameType.HELLO: (2, MAX_HELLO),
    FrameType.DATA: (1, MAX_DATA),
    FrameType.INITIAL: (COUNT.size, COUNT.size),
    FrameType.END: (COUNT.size, COUNT.size),
    FrameType.ACK: (COUNT.size, COUNT.size),
    FrameType.PROBE: (1, MAX_PROBE),
    FrameType.PROBED: (COUNT.size, COUNT.size),
    FrameType.CONFIG: (1, MAX_CONFIG),
}
_STATE = frozenset({FrameType.DATA, FrameType.INITIAL, FrameType.CONFIG, FrameType.END})
_FOLLOWERS: dict[FrameType | None, frozenset[FrameType]] = {
    None: frozenset({FrameType.HELLO}),
    FrameType.HELLO: _STATE | {FrameType.PROBE},
    FrameType.PROBE: frozenset({FrameType.PROBE, FrameType.PROBED}),
    FrameType.PROBED: _STATE,
    FrameType.DATA: _STATE,
    FrameType.INITIAL: _STATE,
    FrameType.CONFIG: frozenset({FrameType.END}),
    FrameType.END: frozenset(),
}


@dataclass(frozen=True, slots=True)
class StreamHello:
    """Which device of which migration the stream carries."""

    migration_uid: str
    device: str
    epoch: int


class FrameReader:
    """Order and lengths of the frames of one stream, in the direction source to target."""

    def __init__(self) -> None:
        self._last: FrameType | None = None
        self.data_bytes = 0
        self.probe_bytes = 0

    def header(self, raw: bytes | bytearray | memoryview) -> tuple[FrameType, int]:
        """Take a frame's 8-byte header; returns its type and the length of the payload that follows.

        Raises FrameError if the frame is unknown, out of order, oversized or truncated.
        """
        if len(raw) != HEADER.size:
            raise FrameError(f"frame header has {len(raw)} bytes, expected {HEADER.size}: the stream was truncated")
        number, length = HEADER.unpack(raw)
        try:
            kind = FrameType(number)
        except ValueError:
            raise FrameError(f"frame type {number} is unknown") from None
        if kind not in _FOLLOWERS[self._last]:
            before = self._last.name if self._last else "the beginning of the stream"
            raise FrameError(f"frame {kind.name} is out of order: it may not follow {before}")
        low, high = _LENGTHS[kind]
        if not low <= length <= high:
            raise FrameError(f"frame {kind.name} has {length} bytes of payload, allowed are {low} to {high}")
        if kind is FrameType.PROBE and self.probe_bytes + length > MAX_PROBES:
            raise FrameError(f"a stream is probed with at most {MAX_PROBES} bytes, more came")
        self._last = kind
        if kind is FrameType.DATA:
            self.data_bytes += length
        elif kind is FrameType.PROBE:
            self.probe_bytes += length
        return kind, length

    def probed(self, payload: bytes | bytearray | memoryview) -> int:
        """Take PROBED's payload: the bytes to acknowledge. Raises FrameError unless that is what came."""
        (count,) = COUNT.unpack(payload)
        if count != self.probe_bytes:
            raise FrameError(f"the source probed with {count} bytes, {self.probe_bytes} were received")
        return int(count)

    def end(self, payload: bytes | bytearray | memoryview) -> None:
        """Take END's payload. Raises FrameError unless its count is the DATA bytes that were received."""
        (expected,) = COUNT.unpack(payload)
        if expected != self.data_bytes:
            raise FrameError(f"the source sent {expected} bytes of state, {self.data_bytes} were received")

    def initial(self, payload: bytes | bytearray | memoryview) -> int:
        """Take INITIAL's payload: the offset to acknowledge. Raises FrameError if it is not where we are."""
        (offset,) = COUNT.unpack(payload)
        if offset != self.data_bytes:
            raise FrameError(f"INITIAL says offset {offset}, {self.data_bytes} bytes were received")
        return int(offset)


def pack_hello(hello: StreamHello) -> bytes:
    """A whole HELLO frame."""
    payload = json.dumps({"migration": hello.migration_uid, "device": hello.device, "epoch": hello.epoch}).encode()
    return HEADER.pack(FrameType.HELLO, len(payload)) + payload


def parse_hello(payload: bytes | bytearray | memoryview) -> StreamHello:
    """HELLO's payload. Raises FrameError."""
    try:
        fields: Any = json.loads(bytes(payload))
        hello = StreamHello(fields["migration"], fields["device"], fields["epoch"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FrameError(f"frame HELLO is not the expected JSON: {error}") from None
    if not (isinstance(hello.migration_uid, str) and isinstance(hello.device, str) and isinstance(hello.epoch, int)):
        raise FrameError("frame HELLO has fields of the wrong type")
    return hello


def pack_count(kind: FrameType, count: int) -> bytes:
    """A whole INITIAL, END, ACK or PROBED frame."""
    return HEADER.pack(kind, COUNT.size) + COUNT.pack(count)


def pack_config(config: bytes) -> bytes:
    """A whole CONFIG frame. Raises FrameError for bytes that are none or too many."""
    if not 0 < len(config) <= MAX_CONFIG:
        raise FrameError(f"a CONFIG frame carries 1 to {MAX_CONFIG} bytes, not {len(config)}")
    return HEADER.pack(FrameType.CONFIG, len(config)) + config


def parse_ack(raw: bytes | bytearray | memoryview, expected: int) -> None:
    """A whole ACK frame. Raises FrameError unless it acknowledges exactly `expected` bytes."""
    if len(raw) != HEADER.size + COUNT.size:
        raise FrameError(f"ACK has {len(raw)} bytes: the stream was truncated")
    number, length = HEADER.unpack_from(raw)
    if number != FrameType.ACK or length != COUNT.size:
        raise FrameError(f"expected ACK, found frame type {number} with {length} bytes")
    (count,) = COUNT.unpack_from(raw, HEADER.size)
    if count != expected:
        raise FrameError(f"ACK says {count} bytes were loaded, {expected} were sent")


def pack_preamble(migration_uid: str) -> bytes:
    """What a connection begins with, before TLS."""
    return PREAMBLE.pack(MAGIC, migration_uid.encode())


def parse_preamble(raw: bytes) -> str:
    """The migration UID of a new connection. Raises FrameError."""
    if len(raw) != PREAMBLE.size:
        raise FrameError(f"preamble has {len(raw)} bytes, expected {PREAMBLE.size}")
    magic, uid = PREAMBLE.unpack(raw)
    if magic != MAGIC:
        raise FrameError("this is the data port of vfio-agent; the peer does not speak its protocol")
    try:
        return str(uid.rstrip(b"\0").decode("ascii"))
    except UnicodeDecodeError:
        raise FrameError("preamble has a migration UID that is not ASCII") from None
