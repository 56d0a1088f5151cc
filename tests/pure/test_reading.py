"""How a frame is read: who may be late, and who may not."""

import errno
import os
from typing import Any, cast

import pytest

from vfio_agent.receiver import _read_exactly


class Arriving:
    """A socket that gives one part after another, b"..." or what it fails with."""

    def __init__(self, *parts: bytes | OSError):
        self._parts = list(parts)

    def recv_into(self, buffer: memoryview, nbytes: int) -> int:
        assert nbytes == len(buffer), "it asks for what it has room for"
        part = self._parts.pop(0)
        if isinstance(part, OSError):
            raise part
        buffer[: len(part)] = part
        return len(part)


def read(*parts: bytes | OSError, may_rest: bool) -> bytearray:
    return _read_exactly(cast(Any, Arriving(*parts)), bytearray(4), may_rest=may_rest)


def test_between_frames_the_source_may_rest() -> None:
    late = TimeoutError("timed out")
    assert read(late, late, b"he", b"ad", may_rest=True) == b"head"


def test_within_a_frame_it_may_not_stall() -> None:
    with pytest.raises(TimeoutError):
        read(b"he", TimeoutError("timed out"), b"ad", may_rest=True)
    with pytest.raises(TimeoutError):
        read(TimeoutError("timed out"), b"body", may_rest=False)


def test_a_dead_peer_does_not_rest() -> None:
    with pytest.raises(TimeoutError):
        read(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)), b"head", may_rest=True)
