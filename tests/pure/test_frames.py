"""The format of a data stream: every legal sequence is taken, everything else is refused with what was wrong."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_agent.frames import (
    COUNT,
    HEADER,
    MAGIC,
    MAX_CONFIG,
    MAX_DATA,
    MAX_HELLO,
    MAX_PROBE,
    MAX_PROBES,
    PREAMBLE,
    FrameReader,
    FrameType,
    StreamHello,
    buffer_bytes,
    pack_config,
    pack_count,
    pack_hello,
    pack_preamble,
    parse_ack,
    parse_hello,
    parse_preamble,
)
from vfio_api.errors import FrameError

UID = "0b7f3ad8-1f7c-4c9e-9a52-7f5a0c7d0f11"
HELLO = StreamHello(UID, "gpu0", 3)
T = FrameType


def header(kind: int, length: int) -> bytes:
    return HEADER.pack(kind, length)


def started() -> FrameReader:
    reader = FrameReader()
    reader.header(header(T.HELLO, 20))
    return reader


# --- legal streams

# None is INITIAL, a number is a DATA frame of that length.
bodies = st.lists(st.none() | st.integers(1, MAX_DATA), max_size=40)
probings = st.lists(st.integers(1, MAX_PROBES // 8), max_size=8)
configs = st.binary(max_size=MAX_CONFIG)


def stream_of(body: Sequence[int | None], probes: Sequence[int] = (), config: bytes = b"") -> bytes:
    """Headers and counts of a whole stream; the payload of DATA and PROBE is left out."""
    sent, parts = 0, [pack_hello(HELLO), *(header(T.PROBE, length) for length in probes)]
    if probes:
        parts.append(pack_count(T.PROBED, sum(probes)))
    for length in body:
        if length is None:
            parts.append(pack_count(T.INITIAL, sent))
        else:
            parts.append(header(T.DATA, length))
            sent += length
    if config:
        parts.append(pack_config(config))
    return b"".join([*parts, pack_count(T.END, sent)])


def parse(raw: bytes) -> list[tuple[FrameType, int]]:
    """As the receiver reads it: a header, then the payload, until END."""
    reader, frames, view = FrameReader(), [], memoryview(raw)
    while True:
        kind, length = reader.header(view[: HEADER.size])
        view = view[HEADER.size :]
        frames.append((kind, length))
        if kind in (T.DATA, T.PROBE):
            continue  # left out of these streams
        if len(view) < length:
            raise FrameError("the stream was truncated")  # the receiver's part: it reads exactly `length`
        payload, view = view[:length], view[length:]
        if kind is T.HELLO:
            assert parse_hello(payload) == HELLO
        elif kind is T.INITIAL:
            assert reader.initial(payload) == reader.data_bytes
        elif kind is T.PROBED:
            assert reader.probed(payload) == reader.probe_bytes
        elif kind is T.END:
            reader.end(payload)
            assert not view
            return frames


@given(body=bodies, probes=probings, config=configs)
def test_any_legal_stream_is_taken(body: list[int | None], probes: list[int], config: bytes) -> None:
    frames = parse(stream_of(body, probes, config))
    expected = [*[T.PROBE for _ in probes], *[T.PROBED for _ in probes[:1]]]
    expected += [T.INITIAL if length is None else T.DATA for length in body] + [T.CONFIG for _ in config[:1]]
    assert [kind for kind, _ in frames] == [T.HELLO, *expected, T.END]
    assert [length for kind, length in frames if kind is T.DATA] == [length for length in body if length is not None]
    assert [length for kind, length in frames if kind is T.PROBE] == probes


@given(body=bodies, probes=probings, config=configs, data=st.data())
def test_a_stream_cut_anywhere_is_refused(
    body: list[int | None], probes: list[int], config: bytes, data: st.DataObject
) -> None:
    whole = stream_of(body, probes, config)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(FrameError, match="truncated"):
        parse(whole[:cut])


@given(raw=st.binary(max_size=64))
def test_random_bytes_are_refused_with_a_frame_error_or_legal(raw: bytes) -> None:
    reader = FrameReader()
    try:
        kind, length = reader.header(raw)
    except FrameError:
        return
    assert kind is T.HELLO
    assert 2 <= length <= MAX_HELLO


# --- refused


@pytest.mark.parametrize("size", [0, 1, 7, 9])
def test_a_truncated_header_is_refused(size: int) -> None:
    with pytest.raises(FrameError, match=f"frame header has {size} bytes, expected 8: the stream was truncated"):
        FrameReader().header(bytes(size))


@pytest.mark.parametrize("number", [0, 9, 22, 255])
def test_an_unknown_frame_is_refused(number: int) -> None:
    with pytest.raises(FrameError, match=f"frame type {number} is unknown"):
        FrameReader().header(header(number, 8))


@pytest.mark.parametrize("kind", [kind for kind in T if kind is not T.HELLO])
def test_a_stream_begins_with_hello(kind: FrameType) -> None:
    expected = f"frame {kind.name} is out of order: it may not follow the beginning of the stream"
    with pytest.raises(FrameError, match=expected):
        FrameReader().header(header(kind, 8))


STATE = (T.DATA, T.INITIAL, T.CONFIG, T.END)
FOLLOWERS: dict[FrameType, tuple[FrameType, ...]] = {
    T.HELLO: (T.PROBE, *STATE),
    T.PROBE: (T.PROBE, T.PROBED),
    T.PROBED: STATE,
    T.DATA: STATE,
    T.INITIAL: STATE,
    T.CONFIG: (T.END,),
    T.END: (),
}


@pytest.mark.parametrize("before", FOLLOWERS)
@pytest.mark.parametrize("kind", list(T))
def test_what_may_follow_what(before: FrameType, kind: FrameType) -> None:
    reader = started()
    if before is T.PROBED:
        reader.header(header(T.PROBE, 8))
    if before is not T.HELLO:
        reader.header(header(before, 8))
    if kind in FOLLOWERS[before]:
        assert reader.header(header(kind, 8)) == (kind, 8)
    else:
        with pytest.raises(FrameError, match=f"frame {kind.name} is out of order: it may not follow {before.name}"):
            reader.header(header(kind, 8))


@pytest.mark.parametrize(
    ("kind", "length", "allowed"),
    [
        (T.DATA, 0, "1 to 1048576"),
        (T.DATA, MAX_DATA + 1, "1 to 1048576"),
        (T.DATA, 2**32 - 1, "1 to 1048576"),
        (T.INITIAL, 7, "8 to 8"),
        (T.END, 9, "8 to 8"),
        (T.END, 0, "8 to 8"),
        (T.PROBE, 0, "1 to 1048576"),
        (T.PROBE, MAX_PROBE + 1, "1 to 1048576"),
        (T.CONFIG, 0, "1 to 4096"),
        (T.CONFIG, MAX_CONFIG + 1, "1 to 4096"),
    ],
)
def test_a_payload_that_is_too_long_or_too_short_is_refused(kind: FrameType, length: int, allowed: str) -> None:
    reader = started()
    expected = f"frame {kind.name} has {length} bytes of payload, allowed are {allowed}"
    with pytest.raises(FrameError, match=expected):
        reader.header(header(kind, length))
    assert reader.data_bytes == 0


@pytest.mark.parametrize("length", [0, 1, MAX_HELLO + 1])
def test_a_hello_of_an_impossible_length_is_refused(length: int) -> None:
    with pytest.raises(FrameError, match=f"frame HELLO has {length} bytes of payload, allowed are 2 to 4096"):
        FrameReader().header(header(T.HELLO, length))


@given(sent=st.integers(0, 2**64 - 1), received=st.integers(0, MAX_DATA))
def test_end_must_say_how_much_was_received(sent: int, received: int) -> None:
    reader = started()
    if received:
        reader.header(header(T.DATA, received))
    reader.header(header(T.END, COUNT.size))
    if sent == received:
        reader.end(COUNT.pack(sent))
        return
    with pytest.raises(FrameError, match=f"the source sent {sent} bytes of state, {received} were received"):
        reader.end(COUNT.pack(sent))


def test_initial_must_say_where_the_stream_is() -> None:
    reader = started()
    reader.header(header(T.DATA, 10))
    assert reader.initial(COUNT.pack(10)) == 10
    with pytest.raises(FrameError, match="INITIAL says offset 9, 10 bytes were received"):
        reader.initial(COUNT.pack(9))


def test_a_stream_is_probed_within_bounds_and_no_probe_is_state() -> None:
    reader = started()
    for _ in range(MAX_PROBES // MAX_PROBE):
        reader.header(header(T.PROBE, MAX_PROBE))
    with pytest.raises(FrameError, match=f"probed with at most {MAX_PROBES} bytes, more came"):
        reader.header(header(T.PROBE, 1))
    reader.header(header(T.PROBED, COUNT.size))
    with pytest.raises(FrameError, match=f"the source probed with 1 bytes, {MAX_PROBES} were received"):
        reader.probed(COUNT.pack(1))
    assert reader.probed(COUNT.pack(MAX_PROBES)) == MAX_PROBES
    assert reader.data_bytes == 0
    reader.header(header(T.END, COUNT.size))
    reader.end(COUNT.pack(0))


@pytest.mark.parametrize("size", [0, MAX_CONFIG + 1])
def test_a_config_that_no_frame_carries_is_not_packed(size: int) -> None:
    with pytest.raises(FrameError, match=f"carries 1 to 4096 bytes, not {size}"):
        pack_config(bytes(size))


def test_the_buffers_of_many_streams_stay_bounded_together() -> None:
    assert [buffer_bytes(streams) for streams in (0, 1, 64)] == [MAX_DATA] * 3
    assert [buffer_bytes(streams) * streams for streams in (65, 128, 256, 1024)] == [65 * (64 * MAX_DATA // 65)] + [
        64 * MAX_DATA
    ] * 3


# --- HELLO, ACK, preamble


@given(
    hello=st.builds(
        StreamHello,
        migration_uid=st.text(max_size=36),
        device=st.text(max_size=63),
        epoch=st.integers(0, 2**63),
    )
)
def test_a_hello_comes_back_as_it_was(hello: StreamHello) -> None:
    raw = pack_hello(hello)
    kind, length = FrameReader().header(raw[: HEADER.size])
    assert (kind, length) == (T.HELLO, len(raw) - HEADER.size)
    assert parse_hello(raw[HEADER.size :]) == hello


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"{}", "not the expected JSON"),
        (b"[]", "not the expected JSON"),
        (b"no json", "not the expected JSON"),
        (b"\xff\xfe", "not the expected JSON"),
        (b"[" * 4000, "not the expected JSON"),
        (json.dumps({"migration": 1, "device": "a", "epoch": 1}).encode(), "fields of the wrong type"),
        (json.dumps({"migration": "u", "device": None, "epoch": 1}).encode(), "fields of the wrong type"),
        (json.dumps({"migration": "u", "device": "a", "epoch": "1"}).encode(), "fields of the wrong type"),
    ],
)
def test_a_hello_that_is_none_is_refused(payload: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        parse_hello(payload)


@given(payload=st.binary(max_size=MAX_HELLO))
def test_any_bytes_as_hello_are_refused_with_a_frame_error(payload: bytes) -> None:
    with pytest.raises(FrameError):
        parse_hello(payload)


def test_an_ack_must_be_whole_and_say_what_was_sent() -> None:
    parse_ack(pack_count(T.ACK, 5), 5)
    with pytest.raises(FrameError, match="ACK says 4 bytes were loaded, 5 were sent"):
        parse_ack(pack_count(T.ACK, 4), 5)
    with pytest.raises(FrameError, match="ACK has 15 bytes: the stream was truncated"):
        parse_ack(pack_count(T.ACK, 5)[:-1], 5)
    with pytest.raises(FrameError, match="expected ACK, found frame type 4 with 8 bytes"):
        parse_ack(pack_count(T.END, 5), 5)


def test_a_preamble_names_the_migration() -> None:
    assert parse_preamble(pack_preamble(UID)) == UID
    assert parse_preamble(pack_preamble("short")) == "short"
    assert len(pack_preamble(UID)) == PREAMBLE.size == len(MAGIC) + len(UID)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "preamble has 0 bytes, expected 40"),
        (MAGIC, "preamble has 4 bytes, expected 40"),
        (b"GET / HTTP/1.1".ljust(40, b"\r"), "the peer does not speak its protocol"),
        (MAGIC + b"\xff" * 36, "preamble has a migration UID that is not ASCII"),
    ],
)
def test_a_preamble_that_is_none_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        parse_preamble(raw)
