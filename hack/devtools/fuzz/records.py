"""Journal files: what an agent that starts makes of records that were damaged, by a disk or by a person."""

import json
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from devtools.fuzz.base import Feed, insist
from devtools.fuzz.mutate import changed_json, json_bytes
from devtools.fuzz.samples import WORKLOADS
from vfio_agent import machine
from vfio_agent.journal import Journal
from vfio_agent.machine import SessionFacts
from vfio_agent.records import seal
from vfio_api.errors import CommandError
from vfio_api.types import Command, Goal, MigrationKey, Outcome, Role, SessionDevice, SessionSpec

BOOT = "boot-1"
SPEC = SessionSpec(
    (SessionDevice("gpu0", "mem0", "other"), SessionDevice("gpu1", "mem1", "other")), workloads=WORKLOADS[:2]
)
EPOCH = 7
_STARTS = (Goal.RUNNING_P2P, Goal.RUNNING)


@dataclass(frozen=True, slots=True)
class Life:
    """A session's records in the order in which they are written: (durable, facts). The last one is the truth."""

    key: MigrationKey
    records: tuple[tuple[bool, SessionFacts], ...]

    @property
    def truth(self) -> SessionFacts:
        """What the session was when its agent was killed."""
        return self.records[-1][1]


def lives() -> tuple[Life, ...]:
    """Sessions killed at every stage, with every decision."""
    made = []
    for role in Role:
        early = SessionFacts(role, 3, 1, incarnations=(("gpu0", "boot-1/a"), ("gpu1", "boot-1/b")))
        late = replace(early, sequence=5, switchover=role is Role.SOURCE, loaded=role is Role.TARGET)
        stages = [
            ((True, early),),
            ((True, early), (False, late)),
            ((True, early), (False, replace(late, latched=True))),
        ]
        for outcome in Outcome:
            decided = replace(late, decision=outcome, sequence=9, backward=role is Role.SOURCE and outcome == "Abort")
            stages += [
                ((True, early), (False, late), (False, decided)),
                ((True, early), (False, late), (True, decided)),
            ]
        made += [Life(MigrationKey(f"uid-{role}-{n}", "team", "move"), tuple(each)) for n, each in enumerate(stages)]
    return tuple(made)


def check(truth: SessionFacts, found: SessionFacts, key: MigrationKey) -> None:
    """What was restored from damaged records must not do what the whole ones would have forbidden."""
    told = {goal: admitted(found, key, goal) for goal in Goal}
    if truth.role is Role.SOURCE:
        if truth.switchover and truth.decision is not Outcome.ABORT:
            for goal in machine.ROLLBACK:
                insist(not told[goal], f"a source goes back with no Abort: {found}")
        if truth.decision is Outcome.COMMIT:
            for goal in machine.ROLLBACK:
                insist(not admitted(found, key, goal, Outcome.COMMIT), f"a source goes back after Commit: {found}")
        if truth.switchover and truth.decision is None:
            insist(not told[Goal.RELEASED], f"a source is released with no decision: {found}")
        return
    for goal in _STARTS:
        may = truth.loaded and truth.decision is Outcome.COMMIT
        insist(may or not told[goal], f"a target starts with no Commit: {found}")
        insist(truth.loaded or not admitted(found, key, goal, Outcome.COMMIT), f"a target starts unloaded: {found}")
    if truth.loaded:
        insist(not told[Goal.PREPARED], f"a target that has voted is blanked: {found}")
        may = truth.decision is Outcome.ABORT
        insist(may or not told[Goal.RELEASED], f"a target that has voted is released with no decision: {found}")


def admitted(facts: SessionFacts, key: MigrationKey, goal: Goal, decision: Outcome | None = None) -> bool:
    """Whether the session takes such a command of a later leader."""
    try:
        machine.admit(facts, Command(key, facts.role, goal, 1 << 63, 1 << 63, 1000, decision, attempt=1))
    except CommandError:
        return False
    return True


class Disk:
    """Both folders of a journal. Contents are made once by a real journal, then put there as they are."""

    def __init__(self, scratch: Path):
        self._root = scratch
        self.journal_class = Journal
        self._made = {life.key.uid: self._contents(life) for life in lives()}
        self._truth = {life.key.uid: life for life in lives()}
        journal = self.journal()
        journal.raise_epoch(EPOCH)
        self._epoch = (scratch / "state/epoch.json").read_bytes()

    def journal(self) -> Journal:
        """As an agent that starts opens it."""
        return self.journal_class(self._root / "state", self._root / "run", BOOT)

    def _contents(self, life: Life) -> list[tuple[str, str, bytes]]:
        journal, folder = self.journal(), {True: "state", False: "run"}
        for durable, facts in life.records:
            journal.write(life.key, SPEC, facts, durable=durable)
        name = f"{life.key.uid}.{life.truth.role.value.lower()}.json"
        places = [(each, name) for each in folder.values() if (self._root / each / "sessions" / name).exists()]
        found = [(*place, (self._root / place[0] / "sessions" / place[1]).read_bytes()) for place in places]
        journal.forget(life.key, life.truth.role)
        return found

    def feed(self, rng: random.Random) -> int:
        """An agent starts: some sessions have damaged records, and perhaps the epoch is damaged."""
        hurt = {uid: self._lay(rng, uid) for uid in rng.sample(sorted(self._truth), len(self._truth) * 3 // 4)}
        for uid in self._truth.keys() - hurt.keys():
            for folder, name, content in self._made[uid]:
                (self._root / folder / "sessions" / name).write_bytes(content)
        lost = rng.random() < 0.3
        epoch = json_bytes(rng, json.loads(self._epoch)) if lost else self._epoch
        (self._root / "state/epoch.json").write_bytes(epoch)
        try:
            self._judge(hurt, lost=lost)
        finally:
            for folder in ("state", "run"):
                for path in (self._root / folder / "sessions").iterdir():
                    path.unlink()
        return len(hurt) + lost

    def _lay(self, rng: random.Random, uid: str) -> bool:
        """The damaged records of a session; whether one has a digest that fits."""
        forged = False
        for folder, name, content in self._made[uid]:
            damaged = content
            if rng.random() < 0.7:
                record = json.loads(content)
                if rng.random() < 0.3:  # with a digest that fits: no damage does that, but another version may
                    del record["check"]
                    changed = changed_json(rng, record)
                    forged = forged or changed != record
                    damaged = seal(changed) if isinstance(changed, dict) else json.dumps(changed).encode()
                else:
                    damaged = json_bytes(rng, record)
            (self._root / folder / "sessions" / name).write_bytes(damaged)
        return forged

    def _judge(self, hurt: dict[str, bool], *, lost: bool) -> None:
        journal = self.journal()
        epoch = journal.highest_epoch()
        readable, unreadable = journal.recall()
        found = {key.uid: (key, spec, facts) for key, spec, facts in readable}
        told = {(each.migration_uid, each.role) for each in unreadable}
        insist(lost or epoch == EPOCH, f"the epoch is {epoch}")
        insist(set(found) <= set(self._truth), f"sessions that never were: {set(found)}")
        for uid, life in self._truth.items():
            if uid not in hurt:
                insist(found.get(uid) == (life.key, SPEC, life.truth), "another session did not live on")
                insist(epoch >= life.truth.epoch, f"an older leader is let in: {epoch}")
            elif uid not in found:
                insist((uid, life.truth.role) in told, "a session is gone without a trace")
            elif not hurt[uid]:
                check(life.truth, found[uid][2], life.key)


@asynccontextmanager
async def journal_files(scratch: Path, journal: type[Journal] = Journal) -> AsyncIterator[Feed]:
    """Records of sessions, and the highest epoch."""
    disk = Disk(scratch)
    disk.journal_class = journal

    async def feed(rng: random.Random) -> int:
        return disk.feed(rng)

    yield feed
    shutil.rmtree(scratch)
