"""A migration as a trace: identifiers that every process derives for itself, and spans as frozen data. Pure.

The trace is the migration: the 16 bytes of its UID, which Kubernetes makes a random UUID, are the 128 bits of the trace
id (W3C Trace Context, section 3.2.2.3: any 16 bytes but all zeros, the right 7 of them random, as a version 4 UUID's
are). So operator and agents agree on it without a word, a new leader goes on with the same trace, and status and
exemplars name it before a single span is exported.

A span is known by its identity, a tuple of facts that both sides of the control channel have: what it is, epoch,
sequence, node. Its 64 bits are the first of the SHA-256 of UID and identity, computed where it is exported, so that
recording a span costs no hash.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from vfio_api.types import Role

Identity = tuple[str | int, ...]
Attributes = Mapping[str, str | int | bool]

ROOT: Identity = ("migration",)
MAX_ATTRIBUTE = 256  # characters
_TRACEPARENT = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


class SpanKind(StrEnum):
    """What a span is between two processes, in the words of OpenTelemetry."""

    INTERNAL = "INTERNAL"
    CLIENT = "CLIENT"  # a command as the operator gave it, or a write to the API server
    SERVER = "SERVER"  # a command as an agent carried it out


@dataclass(frozen=True, slots=True)
class Link:
    """A span of another trace that led to this one. Hexadecimal digits: 32 and 16."""

    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took its time. start_ns: nanoseconds since 1970 by the wall clock of the node that it is of.

    duration_ns is of a monotonic clock. parent: the identity of the span that it is part of, None of the root only.
    error: why it failed, "" if it did not.
    """

    identity: Identity
    parent: Identity | None
    name: str
    start_ns: int
    duration_ns: int
    kind: SpanKind = SpanKind.INTERNAL
    attributes: Attributes = field(default_factory=dict)
    error: str = ""
    link: Link | None = None


class Sink(Protocol):
    """Where spans go. instance: the node or pod that they are of, as the control channel names it."""

    instance: str

    def covers(self, uid: str) -> bool:
        """Whether this migration is traced: the sampler may leave it out."""

    def export(self, uid: str, spans: Sequence[Span]) -> None:
        """Have the spans of a migration sent sometime; blocks nothing, and never fails."""


def trace_id(uid: str) -> str:
    """The trace of the migration with this UID, in 32 hexadecimal digits.

    A UID that is no UUID (nothing but tests makes one) is hashed.
    """
    try:
        number = UUID(uid).int
    except ValueError:
        number = 0
    return f"{number or int.from_bytes(hashlib.sha256(uid.encode()).digest()[:16]) or 1:032x}"


def span_id(uid: str, identity: Identity) -> str:
    """The span with this identity in the trace of this migration, in 16 hexadecimal digits."""
    told = "\0".join((uid, *map(str, identity))).encode()
    return f"{int.from_bytes(hashlib.sha256(told).digest()[:8]) or 1:016x}"


def exemplar(uid: str, *, traced: bool) -> dict[str, str]:
    """The labels of an exemplar of this migration: its UID and, if there is one, its trace.

    89 characters at most; OpenMetrics allows 128.
    """
    return {"migration_uid": uid} | ({"trace_id": trace_id(uid)} if traced else {})


def phase_identity(epoch: int, phase: str, count: int = 0) -> Identity:
    """A phase under the leader with this epoch. count: how often it had been in that phase before."""
    return ("phase", epoch, phase, count)


def command_identity(epoch: int, sequence: int, node: str, role: Role) -> Identity:
    """A command from when the operator gives it until it knows it to be carried out."""
    return ("command", epoch, sequence, node, role.value)


def carried_out(epoch: int, sequence: int, node: str, role: Role, what: str) -> Identity:
    """What an agent did at a command: the goal itself, or a part of it."""
    return ("agent", epoch, sequence, node, role.value, what)


def link_of(traceparent: str) -> Link | None:
    """What a W3C traceparent header (version 00) names; None if it is none, or all zeros."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or not int(found[1], 16) or not int(found[2], 16):
        return None
    return Link(found[1], found[2])


def lasted(began: float, ended: float, moment: float, now_ns: int) -> tuple[int, int]:
    """(start_ns, duration_ns) of what lasted from `began` to `ended`, readings of time.perf_counter on this node.

    moment, now_ns: the same clock and the wall clock, both read just now.
    """
    return now_ns - round((moment - began) * 1e9), max(0, round((ended - began) * 1e9))


def short(text: str) -> str:
    """A text as an attribute may have it."""
    return text if len(text) <= MAX_ATTRIBUTE else f"{text[: MAX_ATTRIBUTE - 1]}…"
