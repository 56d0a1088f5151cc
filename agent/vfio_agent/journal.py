"""What the agent must know after it was killed: one small JSON file a session, and the highest epoch seen.

`durable` survives a reboot: written to a temporary file, fsynced, renamed, directory fsynced. `volatile` lies on a
tmpfs and needs to survive the process only; it is what is written inside the switchover. A volatile record belongs
to one boot ID. Blocking: call it from a thread. What cannot be written raises JournalError, and the record that was
there before stays.
"""

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from vfio_agent.machine import SessionFacts
from vfio_api.errors import JournalError
from vfio_api.types import MigrationKey, Outcome, Role, SessionDevice, SessionSpec

Record = dict[str, Any]


class AgentRunningError(RuntimeError):
    """Another agent process holds this node's journal."""


class Journal:
    """The agent's records below `durable` and `volatile` (folders, made if absent)."""

    def __init__(self, durable: Path, volatile: Path, boot_id: str):
        self._durable, self._volatile, self._boot_id = durable / "sessions", volatile / "sessions", boot_id
        self._root = durable
        for folder in (self._durable, self._volatile):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_fd = -1

    def lock(self) -> None:
        """Prove that no other agent of this node lives. Raises AgentRunningError."""
        self._lock_fd = os.open(self._root / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AgentRunningError(
                f"another vfio-agent holds {self._root / 'agent.lock'}: one agent per node; stop the other first"
            ) from None

    def highest_epoch(self) -> int:
        """The highest epoch that any leader has shown; 0 on a new node."""
        record = _read(self._root / "epoch.json")
        return int(record["epoch"]) if record else 0

    def raise_epoch(self, epoch: int) -> None:
        """Remember a higher epoch, durably."""
        _write(self._root / "epoch.json", {"epoch": epoch}, durable=True)

    def write(self, key: MigrationKey, spec: SessionSpec, facts: SessionFacts, *, durable: bool) -> None:
        """Record a session before the effect that it stands for."""
        record = {
            "boot": self._boot_id,
            "migration": asdict(key),
            "spec": asdict(spec),
            "facts": asdict(facts),
        }
        folder = self._durable if durable else self._volatile
        _write(folder / _file_name(key, facts.role), record, durable=durable)

    def forget(self, key: MigrationKey, role: Role) -> None:
        """The session has ended; nothing of it is needed any more."""
        for folder in (self._durable, self._volatile):
            (folder / _file_name(key, role)).unlink(missing_ok=True)

    def sessions(self) -> list[tuple[MigrationKey, SessionSpec, SessionFacts]]:
        """Every session on record; the volatile record of this boot outranks the durable one."""
        found: dict[str, Record] = {}
        for folder in (self._durable, self._volatile):
            for path in sorted(folder.glob("*.json")):
                record = _read(path)
                if record and (folder == self._durable or record["boot"] == self._boot_id):
                    found[path.name] = record
        return [_parse(record) for record in found.values()]


def _file_name(key: MigrationKey, role: Role) -> str:
    return f"{key.uid}.{role.value.lower()}.json"


def _parse(record: Record) -> tuple[MigrationKey, SessionSpec, SessionFacts]:
    spec, facts = record["spec"], record["facts"]
    devices = tuple(SessionDevice(**device) for device in spec.pop("devices"))
    role, decision = Role(facts.pop("role")), facts.pop("decision")
    facts["incarnations"] = tuple((name, opening) for name, opening in facts["incarnations"])
    facts["lost"], facts["gone"] = tuple(facts.get("lost", ())), tuple(facts.get("gone", ()))
    return (
        MigrationKey(**record["migration"]),
        SessionSpec(devices=devices, **_known(SessionSpec, spec)),
        SessionFacts(role=role, decision=Outcome(decision) if decision else None, **_known(SessionFacts, facts)),
    )


def _known(kind: type[SessionSpec] | type[SessionFacts], record: Record) -> Record:
    """What this version knows of a record: a newer agent may have written it, before it was rolled back."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in record.items() if name in names}


def _read(path: Path) -> Record | None:
    try:
        record: Record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return record


def _write(path: Path, record: Record, *, durable: bool) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        _fill(temporary, json.dumps(record).encode(), durable=durable)
        os.rename(temporary, path)
        if durable:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise JournalError(
            f"{path.parent} cannot be written: {error}; what was to be recorded is not done: look at its free space"
        ) from error


def _fill(path: Path, content: bytes, *, durable: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        left = memoryview(content)
        while left:  # a disk that is nearly full takes a part, and says so with the rest
            left = left[os.write(fd, left) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
