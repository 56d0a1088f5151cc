"""What a simulated device is made of, and the byte stream that carries it from one device to another.

Pure: no I/O and no clock. A state is a number of pages, a scratch region and a P2P identity. A page has a
version and no stored content: the content follows from (seed, page, version), so that the side that loads can
verify every byte while neither side holds more than a few bytes for a page.

The stream: one header, page records (a page may come again with a newer version), one trailer. It is a stream
of bytes; how it is cut into reads and writes means nothing.
"""

import errno
import hashlib
import os
import struct
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

PAGE_BYTES = 64 * 1024
SCRATCH_BYTES = 256
MODEL_BYTES = 64

_MAGIC = b"VFIOSIM\0"
_FORMAT = 1
_HEADER = struct.Struct(f"<8sIIQQ{MODEL_BYTES}s")  # magic, format, 0, size, seed, model
_RECORD = struct.Struct("<IIII")  # tag, then page, version, length; or body length, crc32 of the body, 0
_STAMP = struct.Struct("<QII")  # page, version, page ^ version: the first bytes of a page
_TRAILER = struct.Struct(f"<{SCRATCH_BYTES}sIIII")  # scratch, checksum of the versions, port, peers, counters
_PEER = struct.Struct("<I")
_COUNTERS = struct.Struct("<IQQQ")  # port, sent, received, last
_PAGE_TAG, _TRAILER_TAG = 0x45474150, 0x4C494154
_NO_PORT = 0xFFFFFFFF
_UINT32 = 0xFFFFFFFF
# More than a host has ports; what an honest sender never exceeds bounds what a load buffers.
_TRAILER_LIMIT = _TRAILER.size + 1024 * (_PEER.size + _COUNTERS.size)


def os_error(code: int, text: str = "") -> OSError:
    """OSError with `code` and the system's words for it, followed by `text`."""
    return OSError(code, f"{os.strerror(code)}: {text}" if text else os.strerror(code))


@lru_cache(maxsize=64)
def page_block(seed: int) -> bytes:
    """The bytes that all pages of a state with `seed` have in common but for their stamps."""
    return hashlib.shake_128(seed.to_bytes(8, "little")).digest(PAGE_BYTES)


@dataclass(slots=True)
class Counters:
    """P2P writes between a device and one peer: sent, received, and the last sequence received."""

    sent: int = 0
    received: int = 0
    last: int = 0


@dataclass(slots=True)
class Identity:
    """Who a device is to its peers. It moves with the state: it names the state, not the hardware.

    peers: the ports it writes to. traffic: counters by the peer's port.
    """

    port: int
    peers: tuple[int, ...]
    traffic: dict[int, Counters] = field(default_factory=dict)

    def with_peer(self, port: int) -> Counters:
        """The counters kept for `port`, new ones at its first write."""
        return self.traffic.setdefault(port, Counters())


class Pages:
    """The memory of a device: versions of its pages, dirtied in turn.

    As pages are dirtied round robin, a version is computed from one counter; an array is held only for what
    was loaded (4 bytes for each page).
    """

    def __init__(self, size_bytes: int, seed: int, loaded: "array[int] | None" = None):
        if size_bytes < 1:
            raise ValueError(f"a state has at least one byte, not {size_bytes}")
        self.size_bytes, self.seed = size_bytes, seed
        self.count = -(-size_bytes // PAGE_BYTES)
        self.dirtied = 0
        self._loaded = loaded

    def length(self, page: int) -> int:
        """Bytes of `page`: all pages are whole but the last."""
        return min(PAGE_BYTES, self.size_bytes - page * PAGE_BYTES)

    def version(self, page: int) -> int:
        """How often `page` was written, modulo 2**32, including what was loaded."""
        own = (self.dirtied + self.count - 1 - page) // self.count
        return (own + (self._loaded[page] if self._loaded else 0)) & _UINT32

    def versions(self) -> "array[int]":
        """The versions of all pages."""
        rounds, rest = divmod(self.dirtied, self.count)
        if self._loaded is None:
            done, due = array("I", [(rounds + 1) & _UINT32]), array("I", [rounds & _UINT32])
            return done * rest + due * (self.count - rest)
        return array("I", ((v + rounds + (i < rest)) & _UINT32 for i, v in enumerate(self._loaded)))

    def dirty(self, count: int) -> tuple[tuple[int, int], ...]:
        """Dirty the next `count` pages; returns them as half-open ranges."""
        first = self.dirtied % self.count
        self.dirtied += count
        if count >= self.count:
            return ((0, self.count),)
        last = first + count
        if last <= self.count:
            return ((first, last),)
        return ((first, self.count), (0, last - self.count))

    def record_bytes(self, count: int, with_last: bool) -> int:
        """Stream bytes of `count` page records; `with_last`: one is the (perhaps short) last page."""
        short = self.count * PAGE_BYTES - self.size_bytes if with_last else 0
        return count * (_RECORD.size + PAGE_BYTES) - short


def trailer_bytes(identity: Identity | None) -> int:
    """Stream bytes of the trailer of a state with this identity."""
    body = _TRAILER.size
    if identity is not None:
        body += len(identity.peers) * _PEER.size + len(identity.traffic) * _COUNTERS.size
    return _RECORD.size + body


def encode_trailer(pages: Pages, scratch: bytes, identity: Identity | None) -> bytes:
    """The last record: checksum of the versions, the scratch region, and who this is to its peers."""
    port, peers, traffic = (_NO_PORT, (), {}) if identity is None else (identity.port, identity.peers, identity.traffic)
    body = _TRAILER.pack(scratch, zlib.crc32(pages.versions()), port, len(peers), len(traffic))
    body += b"".join(_PEER.pack(peer) for peer in peers)
    body += b"".join(_COUNTERS.pack(p, c.sent, c.received, c.last) for p, c in traffic.items())
    return _RECORD.pack(_TRAILER_TAG, len(body), zlib.crc32(body), 0) + body


def full_bytes(pages: Pages, identity: Identity | None) -> int:
    """Stream bytes of a whole state."""
    return _HEADER.size + pages.record_bytes(pages.count, True) + trailer_bytes(identity)


class SaveStream:
    """The saving side: every page once (the initial bytes), then dirtied pages, at the end the trailer.

    position: stream bytes read so far.
    """

    def __init__(self, pages: Pages, model: str):
        self.position = 0
        self._pages = pages
        self._pending = bytearray(b"\1") * pages.count
        self._pending_count = pages.count
        self._fresh = 0  # pages from here on were never sent; all of them are pending
        self._cursor = 0  # where the search for dirtied pages goes on
        # One record that only gets stamped anew for each page, as all pages share the rest of their bytes.
        self._template = bytearray(_RECORD.size) + page_block(pages.seed)
        header = _HEADER.pack(_MAGIC, _FORMAT, 0, pages.size_bytes, pages.seed, model.encode())
        self._record = memoryview(header)
        self._record_is_initial = True
        self._ended = False

    def mark(self, first: int, last: int) -> None:
        """Pages from `first` to before `last` were written: they are to be sent (again)."""
        self._pending_count += self._pending.count(0, first, last)
        self._pending[first:last] = b"\1" * (last - first)

    def begin_anew(self) -> None:
        """All pages are initial data again, and nothing else is pending."""
        self.mark(0, self._pages.count)
        self._fresh = 0
        self._record_is_initial = True  # what is left of a record must come first in any case

    def initial_bytes(self) -> int:
        """Stream bytes left of what there was at the start."""
        left = self._pages.count - self._fresh
        current = len(self._record) if self._record_is_initial else 0
        return self._pages.record_bytes(left, left > 0) + current

    def pending_bytes(self) -> int:
        """Stream bytes that could be read now, without the trailer unless that has begun."""
        return self._pages.record_bytes(self._pending_count, self._pending[-1] == 1) + len(self._record)

    def remaining_bytes(self, identity: Identity | None) -> int:
        """Stream bytes to the end if nothing else is dirtied."""
        return self.pending_bytes() + (0 if self._ended else trailer_bytes(identity))

    def read_into(self, buffer: memoryview, trailer: Callable[[], bytes] | None) -> int:
        """Fill `buffer` as far as there is data; returns the bytes. `trailer` is given in STOP_COPY only."""
        filled = 0
        while filled < len(buffer):
            if not self._record and not self._next_record(trailer):
                break
            part = min(len(buffer) - filled, len(self._record))
            buffer[filled : filled + part] = self._record[:part]
            self._record = self._record[part:]
            filled += part
        self.position += filled
        return filled

    def _next_record(self, trailer: Callable[[], bytes] | None) -> bool:
        if self._pending_count:
            self._record_is_initial = self._fresh < self._pages.count
            self._record = self._page_record(self._next_page())
            return True
        if trailer is None or self._ended:
            return False
        self._ended = True
        self._record_is_initial = False
        self._record = memoryview(trailer())
        return True

    def _next_page(self) -> int:
        if self._fresh < self._pages.count:
            page = self._fresh
            self._fresh += 1
        else:
            page = self._pending.find(1, self._cursor)
            if page < 0:
                page = self._pending.find(1)
            self._cursor = page + 1
        self._pending[page] = 0
        self._pending_count -= 1
        return page

    def _page_record(self, page: int) -> memoryview:
        length, version = self._pages.length(page), self._pages.version(page)
        if length < _STAMP.size:  # too short for the stamp in place
            stamp = _STAMP.pack(page, version, page ^ version)[:length]
            return memoryview(_RECORD.pack(_PAGE_TAG, page, version, length) + stamp)
        _RECORD.pack_into(self._template, 0, _PAGE_TAG, page, version, length)
        _STAMP.pack_into(self._template, _RECORD.size, page, version, page ^ version)
        return memoryview(self._template)[: _RECORD.size + length]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A state that came whole and verified."""

    pages: Pages
    scratch: bytes
    identity: Identity | None


class LoadStream:
    """The loading side: takes the stream in any segmentation, verifies it, and holds versions only.

    position: stream bytes taken so far.
    """

    def __init__(self, size_bytes: int, model: str):
        self.position = 0
        self._size_bytes, self._model = size_bytes, model
        self._count = -(-size_bytes // PAGE_BYTES)
        self._versions = array("I", bytes(4 * self._count))
        self._seen = bytearray(self._count)
        self._seed = 0
        self._head = bytearray()
        self._take: Callable[[memoryview], int] = self._take_header
        self._page = self._version = self._length = self._offset = 0
        self._expected = bytearray()  # the page that is being received, as it must be
        self._body_length = self._body_crc = 0
        self._loaded: Loaded | None = None
        self._broken = False

    def write(self, data: memoryview) -> int:
        """Take all of `data`; returns its length.

        Raises OSError: EFAULT for bytes that are no such stream, EINVAL for another device's state or damaged
        content, ENOMEM for more than the device can hold; ENODEV ever after.
        """
        if self._broken:
            raise os_error(errno.ENODEV, "an earlier write was refused")
        done = 0
        try:
            while done < len(data):
                done += self._take(data[done:])
        except OSError:
            self._broken = True
            raise
        self.position += done
        return done

    def finish(self) -> Loaded:
        """The state, if it is complete. Raises OSError EINVAL otherwise."""
        if self._broken or self._loaded is None:
            raise os_error(errno.EINVAL, f"the state is not complete after {self.position} bytes")
        return self._loaded

    def _gather(self, data: memoryview, size: int) -> int:
        part = min(size - len(self._head), len(data))
        self._head += data[:part]
        return part

    def _take_header(self, data: memoryview) -> int:
        part = self._gather(data, _HEADER.size)
        # Foreign bytes are refused at once, not only after a whole header of them.
        if not _MAGIC.startswith(bytes(self._head[: len(_MAGIC)])):
            raise os_error(errno.EFAULT, "no state of a simulated device")
        if len(self._head) < _HEADER.size:
            return part
        _, version, reserved, size, self._seed, model = _HEADER.unpack(self._head)
        if version != _FORMAT or reserved:
            raise os_error(errno.EFAULT, f"stream format {version}, expected {_FORMAT}")
        if size != self._size_bytes or model.rstrip(b"\0") != self._model.encode():
            raise os_error(
                errno.EINVAL,
                f"state of {model!r} with {size} bytes, this is {self._model!r} with {self._size_bytes}",
            )
        self._expected = bytearray(page_block(self._seed))
        self._expect_record()
        return part

    def _expect_record(self) -> None:
        self._head.clear()
        self._take = self._take_record

    def _take_record(self, data: memoryview) -> int:
        part = self._gather(data, _RECORD.size)
        if len(self._head) < _RECORD.size:
            return part
        tag, first, second, third = _RECORD.unpack(self._head)
        self._head.clear()
        if tag == _PAGE_TAG:
            self._begin_page(first, second, third)
        elif tag == _TRAILER_TAG and not third:
            if first > _TRAILER_LIMIT:
                raise os_error(errno.ENOMEM, f"trailer of {first} bytes")
            self._body_length, self._body_crc = first, second
            self._take = self._take_trailer
        else:
            raise os_error(errno.EFAULT, f"record of unknown kind {tag:#x}")
        return part

    def _begin_page(self, page: int, version: int, length: int) -> None:
        if page >= self._count:
            raise os_error(errno.ENOMEM, f"page {page} of {self._count}")
        if length != min(PAGE_BYTES, self._size_bytes - page * PAGE_BYTES):
            raise os_error(errno.ENOMEM, f"page {page} with {length} bytes")
        self._page, self._version, self._length, self._offset = page, version, length, 0
        _STAMP.pack_into(self._expected, 0, page, version, page ^ version)
        self._take = self._take_page

    def _take_page(self, data: memoryview) -> int:
        end = self._offset + min(self._length - self._offset, len(data))
        part = end - self._offset
        # A bytearray compares by memcmp; two memoryviews would be compared item by item.
        if self._expected[self._offset : end] != data[:part]:
            raise os_error(errno.EINVAL, f"content of page {self._page} version {self._version}")
        self._offset = end
        if end == self._length:
            self._versions[self._page] = self._version
            self._seen[self._page] = 1
            self._expect_record()
        return part

    def _take_trailer(self, data: memoryview) -> int:
        part = self._gather(data, self._body_length)
        if len(self._head) == self._body_length:
            self._loaded = self._decode(bytes(self._head))
            self._take = self._take_nothing
        return part

    def _take_nothing(self, data: memoryview) -> int:
        raise os_error(errno.ENOMEM, f"{len(data)} bytes after the end of the state")

    def _decode(self, body: bytes) -> Loaded:
        if zlib.crc32(body) != self._body_crc or len(body) < _TRAILER.size:
            raise os_error(errno.EINVAL, "damaged trailer")
        scratch, checksum, port, peer_count, counter_count = _TRAILER.unpack_from(body)
        peers_at = _TRAILER.size
        counters_at = peers_at + peer_count * _PEER.size
        if len(body) != counters_at + counter_count * _COUNTERS.size:
            raise os_error(errno.EINVAL, "damaged trailer")
        if not all(self._seen) or zlib.crc32(self._versions) != checksum:
            raise os_error(errno.EINVAL, "pages are missing or older than they were at the end")
        identity = None
        if port != _NO_PORT:
            identity = Identity(port, tuple(p for (p,) in _PEER.iter_unpack(body[peers_at:counters_at])))
            for peer, sent, received, last in _COUNTERS.iter_unpack(body[counters_at:]):
                identity.traffic[peer] = Counters(sent, received, last)
        return Loaded(Pages(self._size_bytes, self._seed, self._versions), scratch, identity)
