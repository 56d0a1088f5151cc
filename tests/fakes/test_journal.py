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
    record = json.loads(path.read_text())
    record["spec"]["of_tomorrow"] = record["facts"]["of_tomorrow"] = True
    path.write_text(json.dumps(record))
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
    assert calls == ["file", "rename", "folder"] * 2
    calls.clear()
    journal.write(KEY, SPEC, FACTS, durable=False)
    assert calls == ["rename"], "inside the switchover nothing waits for a disk"


def test_records_are_private(boot: Callable[[str], Journal], tmp_path: Path) -> None:
    boot("boot-1").write(KEY, SPEC, FACTS, durable=True)
    record = tmp_path / "state" / "sessions" / "uid-1.source.json"
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(record.read_text())["boot"] == "boot-1"


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
