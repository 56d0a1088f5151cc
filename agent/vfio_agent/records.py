"""What a journal record looks like, and what of one is believed: all of it or nothing.

A record is one JSON object whose last field, `check`, is the SHA-256 of the object without it. A damaged record that
were believed in part could have a session forget that it is in a switchover, or the decision that it has read.
"""

import hashlib
import json
import types
from dataclasses import MISSING, asdict, fields
from typing import Any, get_args, get_origin, get_type_hints

from vfio_agent.machine import SessionFacts
from vfio_api.types import Hook, MigrationKey, Outcome, PauseMethod, Role, SessionDevice, SessionSpec, Workload

Record = dict[str, Any]
Stored = tuple[MigrationKey, SessionSpec, SessionFacts]

MAX_RECORD = 8 << 20  # bytes; a session with as many devices as a message can carry, and the longest names, is smaller
MAX_NUMBER = 2**64 - 1  # as on the wire: whatever was written must be readable
MAX_ITEMS = 1024
_CHECK = b', "check": "%b"}'
_CHECK_BYTES = len(_CHECK % bytes(64))
_FACTS = [field.name for field in fields(SessionFacts)]


class RecordError(ValueError):
    """A record is not as it was written, or not one that an agent writes."""


def seal(record: Record) -> bytes:
    """A record as it is written."""
    return _sealed(json.dumps(record).encode())


def _sealed(raw: bytes) -> bytes:
    return raw[:-1] + _CHECK % hashlib.sha256(raw).hexdigest().encode()


def unseal(raw: bytes) -> Record:
    """A record as it was written. Raises RecordError if it is not whole and unchanged."""
    if len(raw) > MAX_RECORD:
        raise RecordError(f"it has more than {MAX_RECORD} bytes")
    whole = raw[:-_CHECK_BYTES] + b"}"
    if raw[-_CHECK_BYTES:] != _CHECK % hashlib.sha256(whole).hexdigest().encode():
        raise RecordError("its check does not match: it is damaged, or was not written by an agent")
    try:
        record = json.loads(whole)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"it is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise RecordError("it is no JSON object")
    return record


def number(record: Record, name: str) -> int:
    """A count of a record. Raises RecordError."""
    return int(_fitting(int, record.get(name), name))


def boot_of(record: Record) -> str:
    """The boot ID in which a session's record was written. Raises RecordError."""
    return str(_fitting(str, record.get("boot"), "boot"))


def session_beginning(boot_id: str, key: MigrationKey, spec: SessionSpec) -> bytes:
    """What of a session's record stays the same as long as it lives: all but its facts."""
    return json.dumps({"boot": boot_id, "migration": asdict(key), "spec": asdict(spec)}).encode()[:-1]


def session_record(beginning: bytes, facts: SessionFacts) -> bytes:
    """A session's record as it is written. beginning: `session_beginning` of it."""
    # not by asdict, which takes ten times as long: this is written while devices are down
    told = json.dumps({name: getattr(facts, name) for name in _FACTS}).encode()
    return _sealed(beginning + b', "facts": ' + told + b"}")


def parse_session(record: Record) -> Stored:
    """What a session's record says, also of one that was written by a newer agent. Raises RecordError."""
    key = MigrationKey(**_known(MigrationKey, record.get("migration"), "migration"))
    spec = SessionSpec(**_known(SessionSpec, record.get("spec"), "spec"))
    facts = SessionFacts(**_known(SessionFacts, record.get("facts"), "facts"))
    for what, names in (("name", [d.name for d in spec.devices]), ("address", [d.address for d in spec.devices])):
        if len(set(names)) != len(names):
            raise RecordError(f"two devices have the same {what}")
    return key, spec, facts


def _known(kind: type, value: object, what: str) -> Record:
    """The fields of `kind`, checked; what this version does not know is passed over: an agent can be rolled back."""
    if not isinstance(value, dict):
        raise RecordError(f"{what} is no object")
    hints = get_type_hints(kind)
    found = {
        f.name: _fitting(hints[f.name], value[f.name], f"{what}.{f.name}") for f in fields(kind) if f.name in value
    }
    absent = [name for name in _required(kind) if name not in found]
    if absent:
        raise RecordError(f"{what} has no {absent[0]}")
    return found


def _required(kind: type) -> list[str]:
    if kind is SessionFacts:  # what a session began with says nothing of how far it is
        return ["role", "epoch", "sequence", "backward", "switchover", "loaded", "started", "incarnations", "decision"]
    return [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]


def _fitting(hint: Any, value: Any, what: str) -> Any:
    """`value`, as JSON gives it, as the type `hint`. Raises RecordError unless it is exactly that."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is types.UnionType:  # X | None
        return None if value is None else _fitting(inner[0], value, what)
    if origin is tuple and isinstance(value, list) and len(value) <= MAX_ITEMS:
        if inner[-1] is Ellipsis:
            return tuple(_fitting(inner[0], each, what) for each in value)
        if len(inner) == len(value):
            return tuple(_fitting(each, item, what) for each, item in zip(inner, value, strict=True))
    elif hint in (SessionDevice, Workload, Hook):
        return hint(**_known(hint, value, what))
    elif hint in (Role, Outcome, PauseMethod):
        try:
            return hint(value)
        except ValueError:
            pass
    elif type(value) is hint and (hint is not int or 0 <= value <= MAX_NUMBER):
        return value
    raise RecordError(f"{what} is {str(value)[:80]!r}, expected {getattr(hint, '__name__', hint)}")
