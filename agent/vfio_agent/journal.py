"""What the agent must know after it was killed: one small JSON file a session, and the highest epoch seen.

`durable` survives a reboot: written to a temporary file, fsynced, renamed, directory fsynced. `volatile` lies on a
tmpfs and needs to survive the process only; it is what is written inside the switchover. A volatile record belongs
to one boot ID. Blocking: call it from a thread. What cannot be written raises JournalError, and the record that was
there before stays.

A record that cannot be read is never replaced by an older one: that may be of before the switchover, or of before the
decision was read. It stays where it is and is told, so that nobody acts for its session.
"""

import contextlib
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import structlog

from vfio_agent.machine import SessionFacts, rebooted
from vfio_agent.records import (
    MAX_RECORD,
    Record,
    RecordError,
    Stored,
    boot_of,
    number,
    parse_session,
    seal,
    session_beginning,
    session_record,
    unseal,
)
from vfio_api.errors import JournalError
from vfio_api.types import MigrationKey, Role, SessionSpec

log = structlog.get_logger()


class AgentRunningError(RuntimeError):
    """Another agent process holds this node's journal."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A session's record that cannot be read: nothing is known of the session but that there is one."""

    migration_uid: str
    role: Role
    why: str  # with the file's path


class Journal:
    """The agent's records below `durable` and `volatile` (folders, made if absent)."""

    def __init__(self, durable: Path, volatile: Path, boot_id: str):
        self._durable, self._volatile, self._boot_id = durable / "sessions", volatile / "sessions", boot_id
        self._root = durable
        for folder in (self._durable, self._volatile):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_fd = -1
        self._beginnings: dict[tuple[str, Role], tuple[MigrationKey, SessionSpec, bytes]] = {}

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
        """The highest epoch that any leader has shown; 0 on a new node.

        If its record cannot be read, the highest of any session: the leader shows its own before it commands.
        """
        path = self._root / "epoch.json"
        try:
            record = _read(path)
            return number(record, "epoch") if record is not None else 0
        except RecordError as error:
            known = max((facts.epoch for _, _, facts in self.recall()[0]), default=0)
            log.error("epoch record cannot be read; sessions know one", path=str(path), error=str(error), epoch=known)
            return known

    def raise_epoch(self, epoch: int) -> None:
        """Remember a higher epoch, durably."""
        _write(str(self._root), "epoch.json", seal({"epoch": epoch}), durable=True)

    def write(self, key: MigrationKey, spec: SessionSpec, facts: SessionFacts, *, durable: bool) -> None:
        """Record a session before the effect that it stands for."""
        record = session_record(self._beginning(key, spec, facts.role), facts)
        # the volatile one first: it is never behind
        name = _file_name(key, facts.role)
        _write(str(self._volatile), name, record, durable=False)
        if durable:
            _write(str(self._durable), name, record, durable=True)

    def _beginning(self, key: MigrationKey, spec: SessionSpec, role: Role) -> bytes:
        known = self._beginnings.get((key.uid, role))
        if known is not None and known[0] == key and known[1] is spec:
            return known[2]
        made = session_beginning(self._boot_id, key, spec)
        self._beginnings[key.uid, role] = key, spec, made
        return made

    def forget(self, key: MigrationKey, role: Role) -> None:
        """The session has ended; nothing of it is needed any more."""
        self._beginnings.pop((key.uid, role), None)
        # the volatile one last: without it the durable one is not believed
        for folder in (self._durable, self._volatile):
            (folder / _file_name(key, role)).unlink(missing_ok=True)

    def sessions(self) -> list[Stored]:
        """Every session on record that can be read."""
        return self.recall()[0]

    def recall(self) -> tuple[list[Stored], list[Unreadable]]:
        """Every session on record; the volatile record of this boot outranks the durable one."""
        readable: list[Stored] = []
        unreadable: list[Unreadable] = []
        names = {path.name for folder in (self._durable, self._volatile) for path in folder.glob("*.json")}
        for name in sorted(names):
            identity = _identity(name)
            if identity is None:
                log.error("not a record of a session; nobody reads it", name=name)
                continue
            try:
                stored = self._latest(name, identity)
            except RecordError as error:
                log.error("record of a session cannot be read", name=name, error=str(error))
                unreadable.append(Unreadable(*identity, str(error)))
                continue
            if stored is not None:
                readable.append(stored)
        return readable, unreadable

    def _latest(self, name: str, identity: tuple[str, Role]) -> Stored | None:
        """What counts of a session. Raises RecordError with the file's path."""
        volatile = _stored(self._volatile / name, identity)
        if volatile is not None and volatile[0] == self._boot_id:
            return volatile[1]
        durable = _stored(self._durable / name, identity)
        if durable is None:
            return None
        if durable[0] == self._boot_id:
            raise RecordError(f"{self._volatile / name} is gone, the record of this boot that says how far it is")
        key, spec, facts = durable[1]
        return key, spec, rebooted(facts)


def _stored(path: Path, identity: tuple[str, Role]) -> tuple[str, Stored] | None:
    """The boot ID and the session of one record; None if there is none. Raises RecordError with the path."""
    try:
        record = _read(path)
        if record is None:
            return None
        boot, stored = boot_of(record), parse_session(record)
        if (stored[0].uid, stored[2].role) != identity:
            raise RecordError(f"it is of the {stored[2].role} session of migration {stored[0].uid[:80]}")
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    return boot, stored


def _file_name(key: MigrationKey, role: Role) -> str:
    return f"{key.uid}.{role.value.lower()}.json"


def _identity(name: str) -> tuple[str, Role] | None:
    """The migration UID and the role that a file's name says; None if it is no record's name."""
    uid, _, role = name.removesuffix(".json").rpartition(".")
    return next(((uid, each) for each in Role if uid and each.value.lower() == role), None)


def _read(path: Path) -> Record | None:
    """A record; None if there is none. Raises RecordError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"it cannot be opened: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise RecordError("it is no file")
        with open(fd, "rb", closefd=False) as file:
            raw = file.read(MAX_RECORD + 1)
    except OSError as error:
        raise RecordError(f"it cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)
    return unseal(raw)


def _write(folder: str, name: str, record: bytes, *, durable: bool) -> None:
    # plain strings: pathlib's are dear while devices are down
    temporary = f"{folder}/{name.removesuffix('.json')}.tmp"
    try:
        _fill(temporary, record, durable=durable)
        os.rename(temporary, f"{folder}/{name}")
        if durable:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise JournalError(
            f"{folder} cannot be written: {error}; what was to be recorded is not done: look at its free space"
        ) from error


def _fill(path: str, content: bytes, *, durable: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        left = memoryview(content)
        while left:  # a disk that is nearly full takes a part, and says so with the rest
            left = left[os.write(fd, left) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
