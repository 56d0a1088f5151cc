"""What the spans of a migration are: ids that need no agreement, and trees that hang together."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pure.plan_world import ONE_TO_ONE, World
from vfio_agent.trail import Trail as AgentTrail
from vfio_api.device import DeviceState as S
from vfio_api.models_status import Phase
from vfio_api.spans import (
    MAX_ATTRIBUTE,
    ROOT,
    Identity,
    Link,
    Span,
    carried_out,
    command_identity,
    exemplar,
    lasted,
    link_of,
    phase_identity,
    short,
    span_id,
    trace_id,
)
from vfio_api.types import Command, Goal, MigrationKey, Role, SessionReport, SessionSpec
from vfio_operator.actions import Finish, Plan, Send
from vfio_operator.observed import Participant
from vfio_operator.trail import Trail as OperatorTrail

UID = "0af76519-16cd-43dd-8448-eb211c80319c"
KEY = MigrationKey(UID, "default", "moves")
OBSERVED = World(ONE_TO_ONE).observe()
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self, instance: str = "operator-0", *, sampled: bool = True):
        self.instance, self.sampled = instance, sampled
        self.spans: list[Span] = []
        self.times = 0

    def covers(self, uid: str) -> bool:
        return self.sampled

    def export(self, uid: str, spans: Sequence[Span]) -> None:
        self.times += 1
        self.spans += spans

    def named(self, name: str) -> Span:
        (found,) = [span for span in self.spans if span.name == name]
        return found


# ids


def test_the_trace_is_the_uid() -> None:
    assert trace_id(UID) == "0af7651916cd43dd8448eb211c80319c"


@given(st.uuids())
def test_every_uid_has_a_trace_of_its_own_that_w3c_allows(uid: object) -> None:
    assert trace_id(str(uid)) == str(uid).replace("-", "") or not int(str(uid).replace("-", ""), 16)
    assert int(trace_id(str(uid)), 16)


@pytest.mark.parametrize("uid", ["", "uid-1", "00000000-0000-0000-0000-000000000000"])
def test_what_is_no_uuid_has_a_trace_all_the_same(uid: str) -> None:
    assert re.fullmatch("[0-9a-f]{32}", trace_id(uid))
    assert int(trace_id(uid), 16)


def identities() -> Iterator[Identity]:
    yield ROOT
    for epoch in (1, 11):
        yield phase_identity(epoch, "PreCopy")
        yield phase_identity(epoch, "PreCopy", 1)
        for sequence in (1, 11):
            for node in ("a", "b"):
                for role in Role:
                    yield command_identity(epoch, sequence, node, role)
                    yield carried_out(epoch, sequence, node, role, "barrier_a")
                    yield carried_out(epoch, sequence, node, role, "barrier_b")


def test_spans_differ_by_what_they_are_and_by_migration() -> None:
    known = list(identities())
    made = {span_id(uid, identity) for uid in (UID, "other") for identity in known}
    assert len(made) == 2 * len(known)
    assert all(re.fullmatch("[0-9a-f]{16}", each) and int(each, 16) for each in made)


def test_no_two_facts_run_into_each_other() -> None:
    assert span_id(UID, ("phase", 1, "1")) != span_id(UID, ("phase", 11, ""))


def test_ids_are_the_same_in_every_process_and_release() -> None:
    """They are a contract between an operator and an agent that may be a version apart."""
    assert span_id(UID, ROOT) == "61e67e44ea2123f1"
    assert span_id(UID, command_identity(3, 7, "node-a", Role.SOURCE)) == "0419c35d7a04a424"
    assert span_id(UID, phase_identity(3, "Switchover")) == "254ea3c612e9b6ac"


def test_an_exemplar_names_the_trace_if_there_is_one_and_fits() -> None:
    assert exemplar(UID, traced=False) == {"migration_uid": UID}
    labels = exemplar(UID, traced=True)
    assert labels == {"migration_uid": UID, "trace_id": trace_id(UID)}
    assert sum(len(key) + len(value) for key, value in labels.items()) <= 128  # OpenMetrics 1.0, 4.1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        PARENT.upper(),
        PARENT + "-x",
        " " + PARENT,
        PARENT + "\n",
        "ff" + PARENT[2:],
        "00-" + "0" * 32 + PARENT[35:],
        PARENT[:36] + "0" * 16 + "-01",
        "x" * 262144,
    ],
)
def test_what_is_no_traceparent_links_to_nothing(text: str) -> None:
    assert link_of(text) is None


def test_a_traceparent_is_linked_to() -> None:
    assert link_of(PARENT) == Link("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


def test_a_span_lies_where_its_clocks_say() -> None:
    assert lasted(10.0, 10.5, 12.0, 5_000_000_000) == (3_000_000_000, 500_000_000)
    assert lasted(10.0, 9.0, 12.0, 5_000_000_000)[1] == 0


def test_a_text_is_bounded() -> None:
    assert short("x" * MAX_ATTRIBUTE) == "x" * MAX_ATTRIBUTE
    assert len(short("x" * 10_000)) == MAX_ATTRIBUTE


# an agent's session


def command(role: Role, goal: Goal, sequence: int, again: tuple[str, ...] = ()) -> Command:
    spec = SessionSpec(()) if goal is Goal.PREPARED else None
    return Command(KEY, role, goal, 3, sequence, 1000, spec=spec, again=again)


def source_session(trail: AgentTrail) -> None:
    """Two devices through pre-copy, quiesce and stop, as a session goes."""
    steps = (
        (Goal.PREPARED, ()),
        (Goal.PRE_COPY, (("pre_copy", S.RUNNING, S.PRE_COPY),)),
        (
            Goal.STOP_COPY,
            (("barrier_a", S.PRE_COPY, S.PRE_COPY_P2P), ("barrier_b", S.PRE_COPY_P2P, S.STOP_COPY)),
        ),
    )
    for sequence, (goal, rounds) in enumerate(steps, 1):
        told, began = command(Role.SOURCE, goal, sequence), time.perf_counter()
        trail.told(told)
        for step, old, new in rounds:
            trail.enter(step)
            for device in ("gpu0", "gpu1"):
                trail.arc(device, old, new, began)
            trail.timed(step, began, time.perf_counter())
        if goal is Goal.STOP_COPY:
            trail.timed("transfer", began, time.perf_counter())
        trail.done(told, began)


def test_a_sources_arcs_are_in_rounds_in_commands() -> None:
    kept = Kept("node-a")
    trail = AgentTrail(kept, UID, Role.SOURCE, lambda: 3)
    source_session(trail)
    assert kept.times == 2, "handed over when prepared and in pre-copy, not in the switchover"
    trail.hand_over()

    stop, barrier = kept.named("Source StopCopy"), kept.named("barrier_b")
    assert stop.parent == command_identity(3, 3, "node-a", Role.SOURCE)
    assert barrier.parent == stop.identity
    assert kept.named("transfer").parent == stop.identity
    assert kept.named("gpu1: PRE_COPY_P2P -> STOP_COPY").parent == barrier.identity
    copied = kept.named("pre-copy/gpu0")
    assert copied.parent == phase_identity(3, "PreCopy")
    assert copied.attributes == {"vfio.device": "gpu0"}
    assert len({span.identity for span in kept.spans}) == len(kept.spans)


def test_a_target_loads_and_votes_in_the_switchover_or_after_commit() -> None:
    for again, phase in (((), Phase.SWITCHOVER), (("gpu0",), Phase.STARTING)):
        kept = Kept("node-b")
        trail = AgentTrail(kept, UID, Role.TARGET, lambda: 3)
        trail.told(command(Role.TARGET, Goal.PREPARED, 4, again))
        began = time.perf_counter()
        trail.arc("gpu0", S.RESUMING, S.STOP, began, "[Errno 22]")
        trail.timed("load/gpu0", began, time.perf_counter(), "refused")
        trail.timed("vote", began, time.perf_counter())
        assert kept.spans == []
        trail.hand_over()
        load = kept.named("load/gpu0")
        assert load.parent == kept.named("vote").parent == phase_identity(3, phase.value)
        assert (load.error, kept.named("gpu0: RESUMING -> STOP").error) == ("refused", "[Errno 22]")
        assert kept.named("gpu0: RESUMING -> STOP").parent == load.identity


def test_what_no_command_tells_is_below_the_newest_leaders_phase() -> None:
    """A leader that finds the devices in pre-copy tells them nothing before it has them stopped."""
    epoch, source, target = 3, Kept("node-a"), Kept("node-b")
    trail = AgentTrail(source, UID, Role.SOURCE, lambda: epoch)
    trail.told(command(Role.SOURCE, Goal.PRE_COPY, 1))
    trail.arc("gpu0", S.RUNNING, S.PRE_COPY, time.perf_counter())
    other = AgentTrail(target, UID, Role.TARGET, lambda: epoch)
    other.told(command(Role.TARGET, Goal.PREPARED, 1))
    epoch = 4
    trail.arc("gpu0", S.PRE_COPY, S.STOP_COPY, time.perf_counter())
    other.timed("vote", time.perf_counter(), time.perf_counter())
    trail.hand_over()
    other.hand_over()
    assert source.named("pre-copy/gpu0").parent == phase_identity(3, "PreCopy")
    assert target.named("vote").parent == phase_identity(4, "Switchover")


def test_a_device_that_turns_back_ends_its_pre_copy() -> None:
    kept = Kept("node-a")
    trail = AgentTrail(kept, UID, Role.SOURCE, lambda: 3)
    trail.told(command(Role.SOURCE, Goal.PRE_COPY, 1))
    trail.arc("gpu0", S.RUNNING, S.PRE_COPY, time.perf_counter())
    trail.told(command(Role.SOURCE, Goal.RUNNING, 2))
    trail.arc("gpu0", S.PRE_COPY, S.RUNNING, time.perf_counter())
    trail.hand_over()
    assert kept.named("pre-copy/gpu0").parent == phase_identity(3, "PreCopy")


# the operator


def operator_trail(kept: Kept | None, epoch: int = 3) -> OperatorTrail:
    body = {
        "metadata": {
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"vfiomigration.io/traceparent": PARENT},
        }
    }
    return OperatorTrail(kept, KEY, epoch, body)


def drive(trail: OperatorTrail, kept: Kept) -> list[int]:
    """A plan's steps as they come; returns how often was handed over at each."""
    observed, handed = OBSERVED, []
    steps = (
        ("Claim", Phase.PREPARING),
        ("PreCopy", Phase.PRE_COPY),
        ("Converge", Phase.PRE_COPY),
        ("BarrierB", Phase.SWITCHOVER),
        ("Decide", Phase.SWITCHOVER),
        ("BarrierD", Phase.STARTING),
        ("ReleaseSources", Phase.STARTING),
    )
    for number, (step, phase) in enumerate(steps):
        for _ in range(2):  # a plan is made again for every event
            trail.follow(Plan(step, phase, (), ""), observed)
        if step == "BarrierB":
            trail.told(Send("node-a", Role.SOURCE, Goal.STOP_COPY), (3, number))
        if step == "Decide":
            trail.wrote("patch decision Commit", time.perf_counter())
        handed.append(kept.times)
    trail.follow(Plan("Finish", Phase.SUCCEEDED, (Finish(Phase.SUCCEEDED),), ""), observed)
    return handed


def test_steps_are_in_phases_in_the_migration() -> None:
    kept = Kept()
    trail = operator_trail(kept)
    handed = drive(trail, kept)
    assert handed == [1, 2, 2, 2, 2, 2, 2], "nothing is handed over from the switchover on"
    trail.finished(OBSERVED, Finish(Phase.SUCCEEDED), 5000, time.monotonic() - 1, inherited=False)
    trail.stop()

    root = kept.named("migration default/moves")
    assert (root.identity, root.parent, root.link) == (ROOT, None, link_of(PARENT))
    assert kept.named("Switchover").identity == phase_identity(3, "Switchover")
    assert kept.named("Switchover").parent == ROOT
    assert kept.named("Decide").parent == kept.named("Switchover").identity
    assert kept.named("patch decision Commit").parent == kept.named("Decide").identity
    told = kept.named("Source StopCopy on node-a")
    assert told.identity == command_identity(3, 3, "node-a", Role.SOURCE)
    assert (told.parent, told.error) == (kept.named("BarrierB").identity, "it was not answered")
    assert (kept.named("downtime").parent, kept.named("downtime").duration_ns) == (ROOT, 5_000_000)
    assert kept.named("Finish").parent == ROOT
    known = {span.identity for span in kept.spans}
    assert len(known) == len(kept.spans)
    assert all(span.parent is None or span.parent in known for span in kept.spans)
    assert max(root.start_ns + root.duration_ns - span.start_ns - span.duration_ns for span in kept.spans) >= 0


def test_a_source_whose_state_is_loaded_has_answered() -> None:
    """Votes prove that every source was stopped; what the source itself says of it comes later."""
    kept = Kept()
    trail = operator_trail(kept)
    told = Participant("node-a", Role.SOURCE), Participant("node-b", Role.TARGET)
    loaded = replace(told[1], report=SessionReport(UID, Role.TARGET, 3, 1, Goal.LOADED))
    trail.follow(Plan("BarrierB", Phase.SWITCHOVER, (), ""), replace(OBSERVED, participants=told))
    trail.told(Send("node-a", Role.SOURCE, Goal.STOP_COPY), (3, 1))
    trail.follow(Plan("Decide", Phase.SWITCHOVER, (), ""), replace(OBSERVED, participants=(told[0], loaded)))
    trail.told(Send("node-a", Role.SOURCE, Goal.RELEASED), (3, 2))
    trail.stop()
    assert kept.named("Source StopCopy on node-a").error == ""


class Clock:
    """The clocks of a process that is never kept from reading one of them right after the other."""

    def __init__(self) -> None:
        self._ns = 1_767_300_000_000_000_000

    def time_ns(self) -> int:
        self._ns += 1000
        return self._ns

    def perf_counter(self) -> float:
        return (self.time_ns() - 1_767_300_000_000_000_000) / 1e9


def test_two_leaders_have_one_trace_and_one_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ends in the middle; the second, of which the beginning is known from the API server, goes on."""
    monkeypatch.setattr("vfio_operator.trail.time", Clock())
    kept = Kept()
    first = operator_trail(kept, 3)
    first.follow(Plan("Claim", Phase.PREPARING, (), ""), OBSERVED)
    first.stop()
    second = operator_trail(kept, 4)
    second.follow(Plan("Claim", Phase.PREPARING, (), ""), OBSERVED)
    second.finished(OBSERVED, Finish(Phase.SUCCEEDED), None, None, inherited=True)
    assert [span.identity for span in kept.spans].count(ROOT) == 1
    assert {span.identity for span in kept.spans} >= {phase_identity(3, "Preparing"), phase_identity(4, "Preparing")}
    root = kept.named("migration default/moves")
    assert root.start_ns == 1_767_225_600_000_000_000
    assert all(span.start_ns + span.duration_ns <= root.start_ns + root.duration_ns for span in kept.spans)


def test_a_phase_that_is_entered_again_is_another_span() -> None:
    kept = Kept()
    trail = operator_trail(kept)
    for phase in (Phase.PENDING, Phase.PREPARING, Phase.PENDING):
        trail.follow(Plan(f"Step{phase}", phase, (), ""), OBSERVED)
    trail.stop()
    assert {span.identity for span in kept.spans} >= {phase_identity(3, "Pending"), phase_identity(3, "Pending", 1)}


@pytest.mark.parametrize("kept", [None, Kept(sampled=False)], ids=["off", "not sampled"])
def test_without_a_sink_nothing_is_recorded(kept: Kept | None) -> None:
    trail = operator_trail(kept)
    drive(trail, Kept())
    trail.finished(OBSERVED, Finish(Phase.SUCCEEDED), 5000, time.monotonic() - 1, inherited=False)
    trail.stop()
    assert trail.trace_id == ""
    source_session(AgentTrail(kept, UID, Role.SOURCE, lambda: 3))
    assert kept is None or (kept.spans, kept.times) == ([], 0)


def test_what_is_kept_is_bounded() -> None:
    kept = Kept("node-a")
    trail = AgentTrail(kept, UID, Role.SOURCE, lambda: 3)
    trail.told(command(Role.SOURCE, Goal.STOP_COPY, 1))
    for number in range(5000):
        trail.timed(f"load/{number}", 0.0, 1.0)
    trail.hand_over()
    assert len(kept.spans) == 4096


def test_a_span_cannot_be_changed() -> None:
    span = Span(ROOT, None, "x", 0, 0)
    assert replace(span, error="y") is not span
