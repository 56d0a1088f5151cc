"""The parsers that do no I/O: frames of data streams, and messages of the control channel."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

from google.protobuf.message import DecodeError

from devtools.fuzz.base import Feed, insist
from devtools.fuzz.mutate import change_message, changed_bytes, json_bytes
from devtools.fuzz.samples import WORDS, command, hello, report
from vfio_agent.frames import (
    COUNT,
    HEADER,
    MAX_DATA,
    MAX_PROBES,
    FrameReader,
    FrameType,
    pack_count,
    pack_preamble,
    parse_ack,
    parse_hello,
    parse_preamble,
)
from vfio_api import wire
from vfio_api.errors import FrameError
from vfio_api.types import AgentHello, Command, PauseMethod, SessionReport, Workload
from vfio_api.v1 import agent_pb2 as pb

_USUAL: dict[FrameType | None, tuple[FrameType, ...]] = {
    None: (FrameType.HELLO,),
    FrameType.HELLO: (FrameType.PROBE, FrameType.DATA, FrameType.END),
    FrameType.PROBE: (FrameType.PROBE, FrameType.PROBED),
    FrameType.PROBED: (FrameType.DATA, FrameType.INITIAL),
    FrameType.DATA: (FrameType.DATA, FrameType.INITIAL, FrameType.CONFIG, FrameType.END),
    FrameType.INITIAL: (FrameType.DATA, FrameType.END),
    FrameType.CONFIG: (FrameType.END,),
    FrameType.END: tuple(FrameType),
}
_COUNTS = (FrameType.INITIAL, FrameType.END, FrameType.PROBED)


class Stream:
    """One stream as a reader takes it, with an account of its own of what has come."""

    def __init__(self, reader: FrameReader, rng: random.Random):
        self._reader, self._rng = reader, rng
        self._last: FrameType | None = None
        self._data = self._probes = self._frames = 0

    def play(self) -> int:
        """Frames up to the first that is refused; returns how many were offered."""
        for number in range(1, self._rng.choice((2, 4, 8, 16)) + 1):
            raw = self._header()
            try:
                kind, length = self._reader.header(raw)
            except FrameError:
                return number
            self._check(kind, length, raw)
            try:
                self._payload(kind)
            except FrameError:
                return number
        return number

    def _header(self) -> bytes:
        rng = self._rng
        kind: int = rng.choice(_USUAL[self._last]) if rng.random() < 0.85 else rng.randrange(12)
        usual = COUNT.size if kind in _COUNTS else rng.choice((2, 100, 4096, 65536, MAX_DATA))
        length = usual if rng.random() < 0.9 else rng.choice((0, 1, 4097, MAX_DATA + 1, (1 << 32) - 1))
        raw = HEADER.pack(kind, length)
        return changed_bytes(rng, raw) if rng.random() < 0.1 else raw

    def _check(self, kind: FrameType, length: int, raw: bytes) -> None:
        insist(self._last is not FrameType.END, f"{kind.name} was taken after END")
        insist(self._last is not None or kind is FrameType.HELLO, f"{kind.name} was taken before HELLO")
        insist(self._last is None or kind is not FrameType.HELLO, "HELLO was taken twice")
        insist(self._last is not FrameType.CONFIG or kind is FrameType.END, f"{kind.name} was taken after CONFIG")
        insist(len(raw) == HEADER.size and raw[0] == kind, "a frame was taken for another")
        insist(0 < length <= MAX_DATA, f"a payload of {length} bytes was taken")
        self._data += length if kind is FrameType.DATA else 0
        self._probes += length if kind is FrameType.PROBE else 0
        insist(self._probes <= MAX_PROBES, f"{self._probes} bytes of probes were taken")
        insist((self._reader.data_bytes, self._reader.probe_bytes) == (self._data, self._probes), "bytes miscounted")
        self._last = kind

    def _payload(self, kind: FrameType) -> None:
        true = self._probes if kind is FrameType.PROBED else self._data
        said = true if self._rng.random() < 0.8 else self._rng.choice((0, true + 1, 1 << 63))
        takes: dict[FrameType, Callable[[bytes], object]] = {
            FrameType.PROBED: self._reader.probed,
            FrameType.INITIAL: self._reader.initial,
            FrameType.END: self._reader.end,
        }
        if kind in takes:
            takes[kind](COUNT.pack(said))
            insist(said == true, f"{kind.name} says {said}, {true} bytes came, and it was taken")


@asynccontextmanager
async def frames(_scratch: Path, reader: Callable[[], FrameReader] = FrameReader) -> AsyncIterator[Feed]:
    """Headers, their order and lengths, and what the counting frames say."""

    async def feed(rng: random.Random) -> int:
        return Stream(reader(), rng).play()

    yield feed


@asynccontextmanager
async def parses(_scratch: Path) -> AsyncIterator[Feed]:
    """HELLO's payload, ACK and the preamble."""
    sample = {"migration": "0b7f3ad8-1f7c-4c9e-9a52-7f5a0c7d0f11", "device": "gpu0", "epoch": 3}
    ack, preamble = pack_count(FrameType.ACK, 4711), pack_preamble("0b7f3ad8-1f7c-4c9e-9a52-7f5a0c7d0f11")

    async def feed(rng: random.Random) -> int:
        kind = rng.randrange(3)
        try:
            if kind == 0:
                found = parse_hello(json_bytes(rng, sample))
                insist(isinstance(found.device, str) and isinstance(found.epoch, int), "HELLO of the wrong types")
            elif kind == 1:
                raw = changed_bytes(rng, ack)
                parse_ack(raw, 4711)
                insist(len(raw) == len(ack) and raw[8:] == ack[8:], "an ACK was taken that is none")
            else:
                uid = parse_preamble(changed_bytes(rng, preamble))
                insist(len(uid) <= 36 and uid.isascii(), "a preamble was taken that is none")
        except FrameError:
            pass
        return 1

    yield feed


def _command(raw: bytes) -> None:
    made = wire.command_from_wire(pb.Command.FromString(raw))
    insist(wire.command_from_wire(wire.command_to_wire(made)) == made, "a command does not come back")
    _bounded(made)


def _report(raw: bytes) -> None:
    made = wire.report_from_wire(pb.SessionReport.FromString(raw))
    insist(wire.report_from_wire(wire.report_to_wire(made)) == made, "a report does not come back")
    _bounded(made)


def _hello(raw: bytes) -> None:
    made = wire.hello_from_wire(pb.Hello.FromString(raw))
    insist(wire.hello_from_wire(wire.hello_to_wire(made)) == made, "a Hello does not come back")
    insist(len(made.sessions) <= wire.MAX_SESSIONS, "too many sessions")


def _bounded(made: Command | SessionReport) -> None:
    if isinstance(made, Command):
        devices = made.spec.devices if made.spec else ()
        insist(len(made.peers) <= wire.MAX_DEVICES and len(made.again) <= wire.MAX_DEVICES, "too many peers")
        insist(len({d.name for d in devices}) == len(devices), "a device twice")
        _workloads(made.spec.workloads if made.spec else ())
        names = [made.migration.uid, *(d.name for d in devices), *(p.data_address for p in made.peers)]
    else:
        insist(len(made.devices) <= wire.MAX_DEVICES and len(made.timings) <= wire.MAX_TIMINGS, "too many devices")
        insist(all(t.microseconds <= wire.MAX_MEASURED for t in made.timings), "a count beyond its bound")
        names = [made.migration_uid, *(d.name for d in made.devices), *(t.step for t in made.timings)]
    insist(all(len(name) <= wire.MAX_NAME for name in names), "a name beyond its bound")


def _workloads(pods: tuple[Workload, ...]) -> None:
    insist(len(pods) <= wire.MAX_DEVICES, "too many pods")
    insist(len({pod.pod_uid for pod in pods}) == len(pods), "a pod twice")
    hooked = [pod.hook for pod in pods if pod.hook is not None]
    insist(len(hooked) <= 1, "what one pod saves could be loaded by another")
    for pod in pods:
        insist((pod.hook is not None) == (pod.method is PauseMethod.HOOK), "a method without its hook")
        insist(pod.timeout_milliseconds <= wire.MAX_PAUSE_MILLISECONDS, "a pause without an end")
    for hook in hooked:
        ip_address(hook.address)
        insist(hook.timeout_milliseconds <= wire.MAX_PAUSE_MILLISECONDS, "a hook without an end")
        insist(hook.retries <= wire.MAX_RETRIES and hook.port <= wire.MAX_PORT, "a hook beyond its bounds")


Sample = Command | SessionReport | AgentHello


@asynccontextmanager
async def messages(_scratch: Path) -> AsyncIterator[Feed]:
    """Serialized protobuf, changed as a message or as bytes, or nothing but bytes."""
    kinds: tuple[
        tuple[Callable[[random.Random], pb.Command | pb.SessionReport | pb.Hello], Callable[[bytes], None]], ...
    ]
    kinds = ((command, _command), (report, _report), (hello, _hello))

    async def feed(rng: random.Random) -> int:
        make, parse = rng.choice(kinds)
        message = make(rng)
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            change_message(rng, message, WORDS)
        if isinstance(message, pb.Command) and message.spec.workloads and rng.random() < 0.3:
            change_message(rng, rng.choice(message.spec.workloads), WORDS)  # deep down it would hardly come to them
        raw = message.SerializeToString()
        if rng.random() < 0.3:
            raw = changed_bytes(rng, raw)
        elif rng.random() < 0.05:
            raw = rng.randbytes(rng.randrange(64))
        with suppress(DecodeError, ValueError):
            parse(raw)
        return 1

    yield feed
