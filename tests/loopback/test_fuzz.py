"""Randomized inputs: a short run of every target, and that a planted defect is found by the one that looks for it."""

import asyncio
import contextlib
import random
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from http.client import HTTPResponse
from pathlib import Path

import pytest

from devtools.fuzz import answers, base, control, parsers, records, samples, sockets
from devtools.fuzz.base import Feed, Result, Target
from vfio_agent import freezer, hooks, machine
from vfio_agent import keeper as keeping
from vfio_agent.broker import Broker
from vfio_agent.frames import FrameReader, FrameType
from vfio_agent.journal import Journal, _read, _stored
from vfio_agent.pods import PodRef
from vfio_agent.records import RecordError, Stored
from vfio_api import wire
from vfio_api.types import Hook, Role
from vfio_api.v1 import agent_pb2 as pb
from vfio_operator.channel import Agents

ROOT = Path(__file__).resolve().parents[2]
Prepare = Callable[[Path], contextlib.AbstractAsyncContextManager[Feed]]


def test_twenty_thousand_inputs_of_every_kind_harm_nothing() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "hack/fuzz.py"), "--inputs", "20000", "--seed", "7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    last = run.stdout.splitlines()[-1]
    found = re.fullmatch(r"inputs: (\d+), crashes: 0", last)
    assert found, last
    assert int(found[1]) >= 20000


def crashes(prepare: Prepare, tmp_path: Path, count: int = 2000) -> str:
    """What a target finds."""
    found: Result = asyncio.run(base.run(Target("planted", 1, prepare), count, 1, tmp_path))
    return "\n".join(found.crashes)


class TakesMoreAfterEnd(FrameReader):
    def header(self, raw: bytes | bytearray | memoryview) -> tuple[FrameType, int]:
        if self._last is FrameType.END:
            self._last = FrameType.DATA
        return super().header(raw)


class MiscountsLarge(FrameReader):
    def header(self, raw: bytes | bytearray | memoryview) -> tuple[FrameType, int]:
        kind, length = super().header(raw)
        if kind is FrameType.DATA and length == 1 << 20:
            self.data_bytes -= 1
        return kind, length


class BelievesEnd(FrameReader):
    def end(self, payload: bytes | bytearray | memoryview) -> None:
        pass


@pytest.mark.parametrize(
    ("reader", "found"),
    [
        (TakesMoreAfterEnd, "was taken after END"),
        (MiscountsLarge, "bytes miscounted"),
        (BelievesEnd, "END says .* bytes came, and it was taken"),
    ],
)
def test_a_defect_of_the_frame_reader_is_found(reader: type[FrameReader], found: str, tmp_path: Path) -> None:
    assert crashes(parsers.frames, tmp_path) == ""
    assert re.search(found, crashes(partial(parsers.frames, reader=reader), tmp_path))


def test_a_message_without_bounds_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unbounded(_count: int, _limit: int, _what: str) -> None:
        pass

    monkeypatch.setattr(wire, "_bounded", unbounded)
    assert "too many" in crashes(parsers.messages, tmp_path, 20_000)


def test_a_pause_without_an_end_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlimited(_value: int, _limit: int, _what: str) -> None:
        pass

    monkeypatch.setattr(wire, "_limited", unlimited)
    assert re.search("without an end|beyond its bounds", crashes(parsers.messages, tmp_path, 20_000))


def test_a_hook_whose_answer_was_cut_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def believes(_hook: Hook, _pod: PodRef, _step: str, answer: HTTPResponse) -> bytes:
        return answer.read1(1 << 16)

    assert crashes(answers.answers, tmp_path, 500) == ""
    monkeypatch.setattr(hooks, "_content", believes)
    assert "a part was taken for the whole" in crashes(answers.answers, tmp_path, 500)


def test_a_broker_that_does_not_keep_pods_apart_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broker, "_refuse_if_used", lambda _broker, _held: None)
    assert "a pod took another's device" in crashes(sockets.broker, tmp_path)


def test_an_agent_that_does_not_freeze_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezer, "freeze", lambda _pods, _pod, _seconds, _called_off: None)
    assert "pod is not frozen" in crashes(control.agent, tmp_path, 20_000)


class TakesTheOlderOne(Journal):
    """Where the newer record cannot be read."""

    def _latest(self, name: str, identity: tuple[str, Role]) -> Stored | None:
        try:
            return super()._latest(name, identity)
        except RecordError:
            found = _stored(self._durable / name, identity)
            return found[1] if found else None


class BeginsEpochsAnew(Journal):
    """An epoch that cannot be read is none."""

    def highest_epoch(self) -> int:
        try:
            return int((_read(self._root / "epoch.json") or {})["epoch"])
        except RecordError:
            return 0


@pytest.mark.parametrize(
    ("journal", "found"),
    [(TakesTheOlderOne, "a source goes back with no Abort"), (BeginsEpochsAnew, "an older leader is let in")],
)
def test_a_defect_of_the_journal_is_found(journal: type[Journal], found: str, tmp_path: Path) -> None:
    assert found in crashes(partial(records.journal_files, journal=journal), tmp_path, 400)


def test_a_keeper_that_leaks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaks(keeping.Keeper):
        def answer(self, request: dict, fds: list[int]) -> tuple[dict, list[int]]:
            return super().answer(request, fds if request.get("op") == "store" else [])

    monkeypatch.setattr(sockets, "Keeper", Leaks)
    assert "descriptors" in crashes(sockets.keeper, tmp_path, 200)


def test_an_operator_that_takes_a_report_in_anothers_name_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = Agents.reported

    def everywhere(self: Agents, node: str, report: object) -> None:
        for each in (node, *self.connected):
            reported(self, each, report)  # type: ignore[arg-type]

    monkeypatch.setattr(Agents, "reported", everywhere)
    assert "another agent's report was changed" in crashes(control.operator, tmp_path)


def test_an_agent_that_starts_without_commit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "admit", lambda _facts, _command: None)
    assert re.search("of a (target|source) goes", crashes(control.agent, tmp_path, 6000))


def test_the_messages_that_are_changed_are_valid_before(tmp_path: Path) -> None:
    """Who changes what was refused anyway tests nothing."""
    for n in range(100):
        rng = random.Random(n)
        wire.command_from_wire(samples.command(rng))
        wire.report_from_wire(samples.report(rng))
        wire.hello_from_wire(samples.hello(rng))
        assert isinstance(samples.command(rng), pb.Command)
