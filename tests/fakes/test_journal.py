"""What the agent knows after it was killed: records are whole or absent, belong to a boot, and to one agent only."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfio_agent.journal import AgentRunningError, Journal
from vfio_agent.machine import SessionFacts
from vfio_agent.records import seal, unseal
from vfio_api.errors import JournalError
from vfio_api.types import MigrationKey, Outcome, Role, SessionDevice, SessionSpec

KEY = MigrationKey("uid-1", "team", "move")
SPEC = SessionSpec((SessionDevice("gpu0", "0000:3b:00.2", "node-b"),), True, 1000, 30_000)
FACTS = SessionFacts(Role.SOURCE, epoch=3, sequence=7, switchover=True, decision=Outcome.ABORT)


@pytest.fixture
def boot(tmp_path: Path) -> Callable[[str], Journal]:
    """The node's journal as an agent of that boot opens it."""
    return lambda boot_id: Journal(tmp_path / "state", tmp_path / "run", boot_id)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    facts=st.builds(
        SessionFacts,
        role=st.sampled_from(Role),
        epoch=st.integers(0, 2**63),
        sequence=st.integers(0, 2**63),
        backward=st.booleans(),
        switchover=st.booleans(),
        loaded=st.booleans(),
        started=st.booleans(),
        decision=st.none() | st.sampled_from(Outcome),
    ),
    durable=st.booleans(),
)
def test_a_record_comes_back_as_it_was(boot: Callable[[str], Journal], facts: SessionFacts, durable: bool) -> None:
    journal = boot("boot-1")
    journal.write(KEY, SPEC, facts, durable=durable)
    assert boot("boot-1").sessions() == [(KEY, SPEC, facts)]
    journal.forget(KEY, facts.role)
    assert boot("boot-1").sessions() == []


def test_the_volatile_record_of_this_boot_outranks_the_durable_one(boot: Callable[[str], Journal]) -> None:
    journal = boot("boot-1")
    journal.write(KEY, SPEC, replace(FACTS, sequence=1), durable=True)
    journal.write(KEY, SPEC, FACTS, durable=False)
    assert boot("boot-1").sessions() == [(KEY, SPEC, FACTS)]


def test_after_a_reboot_a_volatile_record_means_nothing(boot: Callable[[str], Journal]) -> None:
    early = replace(FACTS, sequence=1)
    journal = boot("boot-1")
    journal.write(KEY, SPEC, early, durable=True)
    journal.write(KEY, SPEC, FACTS, durable=False)
    assert boot("boot-2").sessions() == [(KEY, SPEC, early)]
    journal.write(replace(KEY, uid="uid-2"), SPEC, FACTS, durable=False)
    assert boot("boot-2").sessions() == [(KEY, SPEC, early)]


def test_what_a_newer_agent_wrote_beside_is_passed_over(boot: Callable[[str], Journal], tmp_path: Path) -> None:
    """An agent that was rolled back must start, and take its sessions up."""
    boot("boot-1").write(KEY, SPEC, FACTS, durable=True)
    (path,) = (tmp_path / "state").rglob("uid-1.source.json")
    record = unseal(path.read_bytes())
    record["of_tomorrow"] = record["spec"]["of_tomorrow"] = record["facts"]["of_tomorrow"] = True
    for folder in ("state", "run"):
        (tmp_path / folder / "sessions" / path.name).write_bytes(seal(record))
    assert boot("boot-1").sessions() == [(KEY, SPEC, FACTS)]


def test_both_sides_of_a_migration_on_one_node_are_kept_apart(boot: Callable[[str], Journal]) -> None:
    journal = boot("boot-1")
    for role in Role:
        journal.write(KEY, SPEC, replace(FACTS, role=role), durable=True)
    assert [facts.role for _, _, facts in journal.sessions()] == [Role.SOURCE, Role.TARGET]
    journal.forget(KEY, Role.SOURCE)
    assert [facts.role for _, _, facts in journal.sessions()] == [Role.TARGET]
    journal.forget(KEY, Role.SOURCE)


def test_the_highest_epoch_survives_everything(boot: Callable[[str], Journal]) -> None:
    journal = boot("boot-1")
    assert journal.highest_epoch() == 0
    journal.raise_epoch(5)
    assert boot("boot-2").highest_epoch() == 5
    journal.raise_epoch(6)
    assert boot("boot-3").highest_epoch() == 6


def test_a_record_half_written_when_the_agent_died_is_as_if_it_had_not_begun(
    boot: Callable[[str], Journal], tmp_path: Path
) -> None:
    """What is not renamed yet is never read; the next write is not in its way."""
    journal = boot("boot-1")
    journal.write(KEY, SPEC, FACTS, durable=True)
    for folder in ("state", "run"):
        (tmp_path / folder / "sessions" / "uid-1.source.tmp").write_text('{"boot": "boot-1", "mig')
    (tmp_path / "state" / "epoch.tmp").write_text('{"ep')
    again = boot("boot-1")
    assert again.sessions() == [(KEY, SPEC, FACTS)]
    assert again.highest_epoch() == 0
    again.write(KEY, SPEC, replace(FACTS, backward=True), durable=True)
    again.raise_epoch(9)
    assert boot("boot-1").sessions() == [(KEY, SPEC, replace(FACTS, backward=True))]
    assert boot("boot-1").highest_epoch() == 9


def test_a_write_that_fails_leaves_the_record_before_it(
    boot: Callable[[str], Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses the rename (a full or read-only disk): the old record is whole."""
    journal = boot("boot-1")
    journal.write(KEY, SPEC, FACTS, durable=True)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(JournalError, match=r"cannot be written.*No space left"):
        journal.write(KEY, SPEC, replace(FACTS, backward=True), durable=True)
    assert boot("boot-1").sessions() == [(KEY, SPEC, FACTS)]


def test_a_durable_record_is_on_the_disk_before_its_name_and_its_folder_after(
    boot: Callable[[str], Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, calls = boot("boot-1"), []
    fsync, rename = os.fsync, os.rename

    def watch_fsync(fd: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        fsync(fd)

    def watch_rename(old: str, new: str) -> None:
        calls.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "rename", watch_rename)
    journal.write(KEY, SPEC, FACTS, durable=True)
    journal.raise_epoch(3)
    assert calls == ["rename"] + ["file", "rename", "folder"] * 2
    calls.clear()
    journal.write(KEY, SPEC, FACTS, durable=False)
    assert calls == ["rename"], "inside the switchover nothing waits for a disk"


def test_records_are_private(boot: Callable[[str], Journal], tmp_path: Path) -> None:
    boot("boot-1").write(KEY, SPEC, FACTS, durable=True)
    record = tmp_path / "state" / "sessions" / "uid-1.source.json"
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(record.read_text())["boot"] == "boot-1"


# --- what cannot be read

UID, FILE = KEY.uid, "uid-1.source.json"


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_fact(path: Path) -> None:
    """What would be a record of before the switchover."""
    raw = path.read_bytes()
    assert b'"switchover": true' in raw
    path.write_bytes(raw.replace(b'"switchover": true', b'"switchover": false'))


def take_the_check_off(path: Path) -> None:
    path.write_text(json.dumps(unseal(path.read_bytes())))


def say_what_no_agent_says(path: Path) -> None:
    record = unseal(path.read_bytes())
    record["facts"]["switchover"] = "no"
    path.write_bytes(seal(record))


def give_it_another_name(path: Path) -> None:
    record = unseal(path.read_bytes())
    record["migration"]["uid"] = "uid-2"
    path.write_bytes(seal(record))


def nest(path: Path) -> None:
    path.write_bytes(b"[" * 1_000_000)


def make_it_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def make_it_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_it_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


SPOILERS = [
    (cut_short, "check does not match"),
    (flip_a_fact, "check does not match"),
    (take_the_check_off, "check does not match"),
    (say_what_no_agent_says, "facts.switchover is 'no', expected bool"),
    (give_it_another_name, "it is of the Source session of migration uid-2"),
    (nest, "check does not match"),
    (make_it_huge, "more than 8388608 bytes"),
    (make_it_a_folder, "it is no file"),
    (make_it_a_pipe, "it is no file"),
]


@pytest.mark.parametrize(("spoil", "why"), SPOILERS, ids=[spoil.__name__ for spoil, _ in SPOILERS])
def test_a_record_that_cannot_be_read_is_told_and_no_older_one_takes_its_place(
    boot: Callable[[str], Journal], tmp_path: Path, spoil: Callable[[Path], None], why: str
) -> None:
    journal = boot("boot-1")
    journal.write(KEY, SPEC, replace(FACTS, sequence=1, switchover=False, decision=None), durable=True)
    journal.write(KEY, SPEC, FACTS, durable=False)
    journal.write(replace(KEY, uid="uid-3"), SPEC, FACTS, durable=False)
    spoil(tmp_path / "run" / "sessions" / FILE)
    readable, (unreadable,) = boot("boot-1").recall()
    assert [key.uid for key, _, _ in readable] == ["uid-3"], "the others are as they were"
    assert (unreadable.migration_uid, unreadable.role) == (UID, Role.SOURCE)
    assert str(tmp_path / "run" / "sessions" / FILE) in unreadable.why
    assert why in unreadable.why


def test_without_the_record_of_this_boot_the_durable_one_is_not_believed(
    boot: Callable[[str], Journal], tmp_path: Path
) -> None:
    boot("boot-1").write(KEY, SPEC, FACTS, durable=True)
    (tmp_path / "run" / "sessions" / FILE).unlink()
    readable, (unreadable,) = boot("boot-1").recall()
    assert not readable
    assert f"{FILE} is gone, the record of this boot that says how far it is" in unreadable.why
    assert boot("boot-2").recall() == ([(KEY, SPEC, FACTS)], []), "after a reboot it is as ever"


def test_a_durable_record_that_cannot_be_read_counts_only_after_a_reboot(
    boot: Callable[[str], Journal], tmp_path: Path
) -> None:
    boot("boot-1").write(KEY, SPEC, FACTS, durable=True)
    cut_short(tmp_path / "state" / "sessions" / FILE)
    assert boot("boot-1").recall() == ([(KEY, SPEC, FACTS)], [])
    readable, (unreadable,) = boot("boot-2").recall()
    assert (readable, unreadable.migration_uid) == ([], UID)


def test_what_was_recorded_durably_last_is_what_is_read(boot: Callable[[str], Journal]) -> None:
    """A decision that was read back is durable; what was recorded before, in the switchover, does not hide it."""
    journal = boot("boot-1")
    journal.write(KEY, SPEC, replace(FACTS, decision=None), durable=False)
    journal.write(KEY, SPEC, FACTS, durable=True)
    assert boot("boot-1").sessions() == boot("boot-2").sessions() == [(KEY, SPEC, FACTS)]


def test_a_stray_file_is_nobodys_record(boot: Callable[[str], Journal], tmp_path: Path) -> None:
    journal = boot("boot-1")
    for name in ("notes.json", ".source.json", "uid-1.both.json"):
        (tmp_path / "state" / "sessions" / name).write_text("{}")
    assert journal.recall() == ([], [])


@pytest.mark.parametrize("content", [b"", b"{}", b'{"epoch": 99}', seal({"epoch": -1}), seal({"epoch": "9"}), seal({})])
def test_an_epoch_that_cannot_be_read_is_the_highest_that_a_session_knows(
    boot: Callable[[str], Journal], tmp_path: Path, content: bytes
) -> None:
    journal = boot("boot-1")
    journal.write(KEY, SPEC, FACTS, durable=True)
    (tmp_path / "state" / "epoch.json").write_bytes(content)
    assert journal.highest_epoch() == FACTS.epoch
    journal.raise_epoch(12)
    assert boot("boot-1").highest_epoch() == 12


# --- one agent per node


def test_a_second_agent_in_this_process_is_refused(boot: Callable[[str], Journal]) -> None:
    first = boot("boot-1")
    first.lock()
    with pytest.raises(AgentRunningError, match="one agent per node; stop the other first"):
        boot("boot-1").lock()
    os.close(first._lock_fd)
    again = boot("boot-1")
    again.lock()
    os.close(again._lock_fd)


AGENT = """
import sys
from pathlib import Path
from vfio_agent.journal import Journal
journal = Journal(Path(sys.argv[1]), Path(sys.argv[2]), "boot-1")
journal.lock()
print("locked", flush=True)
sys.stdin.read()
"""


def test_an_agent_that_was_killed_makes_room_for_the_next(boot: Callable[[str], Journal], tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", AGENT, str(tmp_path / "state"), str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(AgentRunningError):
            boot("boot-1").lock()
        other.kill()
    mine = boot("boot-1")
    mine.lock()
    os.close(mine._lock_fd)
