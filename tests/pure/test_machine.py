"""What an agent's session may do: the rounds of every goal from every state, and the rules that admit a command."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from vfio_agent import machine
from vfio_agent.machine import DeviceFacts, Inquiry, SessionFacts, admit, rounds
from vfio_api.device import RUNS, DeviceState, MigrationFlags, path, supports
from vfio_api.errors import CommandError, Reason
from vfio_api.types import Command, Goal, MigrationKey, Outcome, Role

S = DeviceState
F = MigrationFlags
KEY = MigrationKey("5b2d", "team", "move")
STOP_COPY_ONLY = F.STOP_COPY
P2P = F.STOP_COPY | F.P2P
PRE_COPY = F.STOP_COPY | F.PRE_COPY
ALL = P2P | F.PRE_COPY
FLAGS = (STOP_COPY_ONLY, P2P, PRE_COPY, ALL)
STOPPING = (Goal.QUIESCED, Goal.STOP_COPY)

Moves = tuple[tuple[str, dict[str, DeviceState]], ...]


def device(state: DeviceState, flags: F = ALL, name: str = "a") -> DeviceFacts:
    return DeviceFacts(name, state, flags)


def planned(role: Role, goal: Goal, *devices: DeviceFacts, pre_copy: bool = True) -> Moves:
    return tuple((r.step, dict(r.moves)) for r in rounds(role, goal, devices, pre_copy=pre_copy))


def command(role: Role, goal: Goal, decision: Outcome | None = None, epoch: int = 1, sequence: int = 1) -> Command:
    return Command(KEY, role, goal, epoch, sequence, 1000, decision)


def states_of(flags: F) -> list[DeviceState]:
    return [state for state in DeviceState if supports(flags, state)]


def sets_of_two() -> Iterator[tuple[DeviceFacts, DeviceFacts]]:
    """Two devices that may migrate together, in every pair of states."""
    for one, two in itertools.product((P2P, ALL), repeat=2):
        for first, second in itertools.product(states_of(one), states_of(two)):
            yield device(first, one, "a"), device(second, two, "b")


# --- rounds


@pytest.mark.parametrize(
    ("role", "goal", "state", "flags", "expected"),
    [
        (Role.SOURCE, Goal.PREPARED, S.RUNNING, ALL, ()),
        (Role.SOURCE, Goal.PRE_COPY, S.RUNNING, ALL, (("pre_copy", S.PRE_COPY),)),
        (Role.SOURCE, Goal.PRE_COPY, S.RUNNING, PRE_COPY, (("pre_copy", S.PRE_COPY),)),
        (Role.SOURCE, Goal.PRE_COPY, S.RUNNING, P2P, ()),
        (Role.SOURCE, Goal.PRE_COPY, S.PRE_COPY, ALL, ()),
        (Role.SOURCE, Goal.QUIESCED, S.PRE_COPY, ALL, (("barrier_a", S.PRE_COPY_P2P),)),
        (Role.SOURCE, Goal.QUIESCED, S.RUNNING, ALL, (("barrier_a", S.RUNNING_P2P),)),
        (Role.SOURCE, Goal.QUIESCED, S.RUNNING, P2P, (("barrier_a", S.RUNNING_P2P),)),
        (Role.SOURCE, Goal.QUIESCED, S.RUNNING, STOP_COPY_ONLY, ()),
        (Role.SOURCE, Goal.QUIESCED, S.STOP_COPY, ALL, ()),
        (
            Role.SOURCE,
            Goal.STOP_COPY,
            S.PRE_COPY,
            ALL,
            (("barrier_a", S.PRE_COPY_P2P), ("barrier_b", S.STOP_COPY)),
        ),
        (Role.SOURCE, Goal.STOP_COPY, S.RUNNING, P2P, (("barrier_a", S.RUNNING_P2P), ("barrier_b", S.STOP_COPY))),
        (Role.SOURCE, Goal.STOP_COPY, S.PRE_COPY_P2P, ALL, (("barrier_b", S.STOP_COPY),)),
        (Role.SOURCE, Goal.STOP_COPY, S.RUNNING, STOP_COPY_ONLY, (("barrier_b", S.STOP_COPY),)),
        (Role.SOURCE, Goal.STOP_COPY, S.PRE_COPY, PRE_COPY, (("barrier_b", S.STOP_COPY),)),
        (Role.SOURCE, Goal.STOP_COPY, S.STOP_COPY, ALL, ()),
        (Role.SOURCE, Goal.RUNNING_P2P, S.STOP_COPY, ALL, (("rollback_p2p", S.RUNNING_P2P),)),
        (
            Role.SOURCE,
            Goal.RUNNING_P2P,
            S.PRE_COPY,
            ALL,
            (("rollback_quiesce", S.PRE_COPY_P2P), ("rollback_p2p", S.RUNNING_P2P)),
        ),
        (Role.SOURCE, Goal.RUNNING_P2P, S.RUNNING, ALL, ()),
        (Role.SOURCE, Goal.RUNNING_P2P, S.STOP_COPY, STOP_COPY_ONLY, ()),
        (
            Role.SOURCE,
            Goal.RUNNING,
            S.STOP_COPY,
            ALL,
            (("rollback_p2p", S.RUNNING_P2P), ("rollback_running", S.RUNNING)),
        ),
        (Role.SOURCE, Goal.RUNNING, S.STOP_COPY, PRE_COPY, (("rollback_running", S.RUNNING),)),
        (Role.SOURCE, Goal.RUNNING, S.RUNNING, ALL, ()),
        (Role.SOURCE, Goal.RELEASED, S.STOP_COPY, ALL, (("release", S.STOP),)),
        (Role.SOURCE, Goal.RELEASED, S.RUNNING, ALL, ()),
        (Role.TARGET, Goal.PREPARED, S.RUNNING, ALL, (("resuming", S.RESUMING),)),
        (Role.TARGET, Goal.PREPARED, S.RESUMING, ALL, ()),
        (Role.TARGET, Goal.LOADED, S.RESUMING, ALL, (("load", S.STOP),)),
        (Role.TARGET, Goal.RUNNING_P2P, S.STOP, ALL, (("barrier_c", S.RUNNING_P2P),)),
        (Role.TARGET, Goal.RUNNING_P2P, S.STOP, STOP_COPY_ONLY, ()),
        (Role.TARGET, Goal.RUNNING, S.STOP, ALL, (("barrier_c", S.RUNNING_P2P), ("barrier_d", S.RUNNING))),
        (Role.TARGET, Goal.RUNNING, S.RUNNING_P2P, ALL, (("barrier_d", S.RUNNING),)),
        (Role.TARGET, Goal.RUNNING, S.STOP, STOP_COPY_ONLY, (("barrier_d", S.RUNNING),)),
        (Role.TARGET, Goal.RUNNING, S.RUNNING, ALL, ()),
        (Role.TARGET, Goal.RELEASED, S.RESUMING, ALL, ()),
    ],
)
def test_the_rounds_of_a_goal_for_one_device(
    role: Role, goal: Goal, state: DeviceState, flags: F, expected: tuple[tuple[str, DeviceState], ...]
) -> None:
    assert planned(role, goal, device(state, flags)) == tuple((step, {"a": to}) for step, to in expected)


def test_pre_copy_is_left_out_when_it_is_not_wanted() -> None:
    assert planned(Role.SOURCE, Goal.PRE_COPY, device(S.RUNNING), pre_copy=False) == ()
    assert planned(Role.SOURCE, Goal.STOP_COPY, device(S.RUNNING), pre_copy=False) == (
        ("barrier_a", {"a": S.RUNNING_P2P}),
        ("barrier_b", {"a": S.STOP_COPY}),
    )


def test_a_rollback_before_anything_was_quiesced_disturbs_nothing() -> None:
    devices = device(S.RUNNING, ALL, "a"), device(S.RUNNING, P2P, "b")
    assert planned(Role.SOURCE, Goal.RUNNING_P2P, *devices) == planned(Role.SOURCE, Goal.RUNNING, *devices) == ()


def test_a_rollback_quiesces_a_device_that_runs_before_another_is_started() -> None:
    devices = device(S.PRE_COPY, ALL, "a"), device(S.RUNNING, ALL, "b"), device(S.STOP_COPY, ALL, "c")
    assert planned(Role.SOURCE, Goal.RUNNING, *devices) == (
        ("rollback_quiesce", {"a": S.PRE_COPY_P2P, "b": S.RUNNING_P2P}),
        ("rollback_p2p", {"a": S.RUNNING_P2P, "c": S.RUNNING_P2P}),
        ("rollback_running", {"a": S.RUNNING, "b": S.RUNNING, "c": S.RUNNING}),
    )


def test_what_was_never_quiesced_leaves_pre_copy_without_being_disturbed() -> None:
    """After a rehearsal: the trace of the source shows RUNNING and PRE_COPY, nothing else."""
    devices = device(S.PRE_COPY, ALL, "a"), device(S.RUNNING, P2P, "b"), device(S.PRE_COPY, ALL, "c")
    assert planned(Role.SOURCE, Goal.RUNNING, *devices) == (("leave_pre_copy", {"a": S.RUNNING, "c": S.RUNNING}),)


def test_one_that_was_quiesced_takes_its_peers_back_behind_the_barrier() -> None:
    devices = device(S.PRE_COPY_P2P, ALL, "a"), device(S.PRE_COPY, ALL, "b")
    assert planned(Role.SOURCE, Goal.RUNNING, *devices) == (
        ("rollback_quiesce", {"b": S.PRE_COPY_P2P}),
        ("rollback_p2p", {"a": S.RUNNING_P2P, "b": S.RUNNING_P2P}),
        ("rollback_running", {"a": S.RUNNING, "b": S.RUNNING}),
    )


def test_a_rollback_leaves_a_device_in_error_to_its_reset() -> None:
    devices = device(S.ERROR, ALL, "a"), device(S.STOP_COPY, ALL, "b")
    assert planned(Role.SOURCE, Goal.RUNNING, *devices) == (
        ("rollback_p2p", {"b": S.RUNNING_P2P}),
        ("rollback_running", {"b": S.RUNNING}),
    )


def test_a_mixed_set_quiesces_each_device_in_its_own_way_behind_one_barrier() -> None:
    devices = device(S.PRE_COPY, ALL, "a"), device(S.RUNNING, P2P, "b")
    assert planned(Role.SOURCE, Goal.STOP_COPY, *devices) == (
        ("barrier_a", {"a": S.PRE_COPY_P2P, "b": S.RUNNING_P2P}),
        ("barrier_b", {"a": S.STOP_COPY, "b": S.STOP_COPY}),
    )


def barrier_breaks() -> list[str]:
    """Sets of two for which the rounds break a barrier (I3); every goal of both roles from every pair of states."""
    broken = []
    for (role, goal), devices in itertools.product(machine.WAYPOINTS, sets_of_two()):
        states = {d.name: d.state for d in devices}
        for found in rounds(role, goal, devices):
            # by the table of the uAPI: every single arc, the worst order within the round
            for name, wanted in found.moves:
                others = [state for other, state in states.items() if other != name]
                if wanted is S.STOP_COPY and any(state in (S.RUNNING, S.PRE_COPY) for state in others):
                    broken.append(f"{role} {goal} {devices}: {name} stops while another is not quiescent")
                # PRE_COPY is RUNNING for all that a device does to its peers
                runs = (S.RUNNING, S.RUNNING_P2P, S.PRE_COPY)
                if wanted is S.RUNNING and any(state not in runs for state in others):
                    broken.append(f"{role} {goal} {devices}: {name} runs while another is stopped")
            states.update(found.moves)
    return broken


def test_no_device_of_a_set_stops_or_starts_before_all_are_in_the_p2p_state() -> None:
    assert barrier_breaks() == []


@pytest.mark.parametrize(
    "goal",
    [(Role.SOURCE, Goal.STOP_COPY), (Role.SOURCE, Goal.RUNNING), (Role.TARGET, Goal.RUNNING)],
    ids=lambda goal: f"{goal[0]}-{goal[1]}",
)
def test_mutant_a_table_without_its_p2p_waypoint_is_caught(
    monkeypatch: pytest.MonkeyPatch, goal: tuple[Role, Goal]
) -> None:
    monkeypatch.setattr(machine, "WAYPOINTS", {**machine.WAYPOINTS, goal: machine.WAYPOINTS[goal][-1:]})
    assert barrier_breaks()


@pytest.mark.parametrize("goal", [g for r, g in machine.WAYPOINTS if r is Role.SOURCE])
@pytest.mark.parametrize("flags", FLAGS)
def test_a_repeated_source_goal_moves_nothing(goal: Goal, flags: F) -> None:
    assert_repeat_is_no_op(Role.SOURCE, goal, flags)


@pytest.mark.parametrize("goal", [g for r, g in machine.WAYPOINTS if r is Role.TARGET])
@pytest.mark.parametrize("flags", FLAGS)
def test_a_repeated_target_goal_moves_nothing(goal: Goal, flags: F) -> None:
    assert_repeat_is_no_op(Role.TARGET, goal, flags)


def assert_repeat_is_no_op(role: Role, goal: Goal, flags: F) -> None:
    for state in states_of(flags):
        after = device(state, flags)
        for found in rounds(role, goal, (after,)):
            after = replace(after, state=dict(found.moves)["a"])
        assert rounds(role, goal, (after,)) == (), f"{role} {goal} from {state.name}"


def test_every_planned_move_exists_on_the_device_from_the_states_a_session_can_be_in() -> None:
    """Source: never in RESUMING. Target before its vote: blank, RESUMING or STOP."""
    for (role, goal), flags in itertools.product(machine.WAYPOINTS, FLAGS):
        for state in states_of(flags):
            if role is Role.SOURCE and state is S.RESUMING:
                continue
            if role is Role.TARGET and state not in (S.RUNNING, S.RESUMING, S.STOP, S.RUNNING_P2P):
                continue
            for found in rounds(role, goal, (device(state, flags),)):
                for _, to in found.moves:
                    path(state, to, flags)
                    state = to


@pytest.mark.parametrize("goal", STOPPING)
@pytest.mark.parametrize("lacking", [STOP_COPY_ONLY, PRE_COPY])
def test_a_set_with_a_device_that_lacks_p2p_is_not_stopped(goal: Goal, lacking: F) -> None:
    with pytest.raises(CommandError) as refused:
        rounds(Role.SOURCE, goal, (device(S.RUNNING, ALL, "a"), device(S.RUNNING, lacking, "b")))
    assert refused.value.reason is Reason.P2P_UNSUPPORTED
    assert refused.value.device == "b"
    assert "device b does not support P2P" in refused.value.message
    assert "migrate it alone" in refused.value.message


@pytest.mark.parametrize(
    ("role", "goal"),
    [(role, goal) for role in Role for goal in Goal if (role, goal) not in machine.WAYPOINTS],
)
def test_a_goal_of_the_other_role_does_not_exist(role: Role, goal: Goal) -> None:
    with pytest.raises(CommandError, match=f"goal {goal} does not exist for a {role} session"):
        rounds(role, goal, (device(S.RUNNING),))


def test_the_goals_of_each_role_are_those_of_the_protocol() -> None:
    assert {goal for role, goal in machine.WAYPOINTS if role is Role.SOURCE} == set(Goal) - {Goal.LOADED}
    assert {goal for role, goal in machine.WAYPOINTS if role is Role.TARGET} == {
        Goal.PREPARED,
        Goal.LOADED,
        Goal.RUNNING_P2P,
        Goal.RUNNING,
        Goal.RELEASED,
    }


# --- admit


source = SessionFacts(Role.SOURCE, epoch=1, sequence=1)
target = SessionFacts(Role.TARGET, epoch=1, sequence=1)
COMMIT, ABORT = Outcome.COMMIT, Outcome.ABORT

# what is refused, the end of its message, and the smallest change of facts or command that is admitted
RULES: dict[str, tuple[SessionFacts, Command, str, SessionFacts | None, Command | None]] = {
    "an older epoch": (
        replace(source, epoch=3),
        command(Role.SOURCE, Goal.PRE_COPY, epoch=2, sequence=9),
        "command PreCopy has epoch 2 sequence 9, this session is at epoch 3 sequence 1: a newer leader commands it",
        None,
        command(Role.SOURCE, Goal.PRE_COPY, epoch=3, sequence=9),
    ),
    "an older sequence": (
        replace(source, sequence=5),
        command(Role.SOURCE, Goal.PRE_COPY, sequence=4),
        "command PreCopy has epoch 1 sequence 4, this session is at epoch 1 sequence 5: a newer leader commands it",
        None,
        command(Role.SOURCE, Goal.PRE_COPY, sequence=5),
    ),
    "a decision against the one read before": (
        replace(source, switchover=True, decision=ABORT),
        command(Role.SOURCE, Goal.RELEASED, COMMIT),
        "Source session refuses goal Released: the decision read before is Abort; it outranks this command",
        replace(source, switchover=True, decision=COMMIT),
        None,
    ),
    "forward after backward": (
        replace(source, backward=True),
        command(Role.SOURCE, Goal.STOP_COPY),
        "Source session refuses goal StopCopy: the source has begun to roll back; it never goes forward again",
        source,
        None,
    ),
    "forward after Abort": (
        source,
        command(Role.SOURCE, Goal.STOP_COPY, ABORT),
        "Source session refuses goal StopCopy: the decision is Abort; roll back instead",
        None,
        command(Role.SOURCE, Goal.STOP_COPY),
    ),
    "back after Commit": (
        replace(source, switchover=True, decision=COMMIT),
        command(Role.SOURCE, Goal.RUNNING),
        "Source session refuses goal Running: the decision is Commit; the state lives at the target now",
        replace(source, switchover=True, decision=ABORT),
        None,
    ),
    "back without Abort": (
        replace(source, switchover=True),
        command(Role.SOURCE, Goal.RUNNING_P2P),
        "Source session refuses goal RunningP2P: the switchover has begun and no Abort is known; write Abort and "
        "send it along",
        None,
        command(Role.SOURCE, Goal.RUNNING_P2P, ABORT),
    ),
    "the release of an undecided source": (
        replace(source, switchover=True),
        command(Role.SOURCE, Goal.RELEASED),
        "Source session refuses goal Released: the source holds the state and no Commit is known; decide first",
        None,
        command(Role.SOURCE, Goal.RELEASED, COMMIT),
    ),
    "anything but the decision after the latch": (
        replace(source, switchover=True, latched=True),
        command(Role.SOURCE, Goal.STOP_COPY),
        "Source session refuses goal StopCopy: it has heard nothing for too long and has asked for Abort; send the "
        "decision along",
        replace(source, switchover=True),
        None,
    ),
    "barrier C without Commit": (
        replace(target, loaded=True),
        command(Role.TARGET, Goal.RUNNING_P2P),
        "Target session refuses goal RunningP2P: no Commit is known; a loaded target leaves STOP only after Commit",
        None,
        command(Role.TARGET, Goal.RUNNING_P2P, COMMIT),
    ),
    "barrier D after Abort": (
        replace(target, loaded=True, decision=ABORT),
        command(Role.TARGET, Goal.RUNNING),
        "Target session refuses goal Running: no Commit is known; a loaded target leaves STOP only after Commit",
        replace(target, loaded=True, decision=COMMIT),
        None,
    ),
    "barrier C without a vote": (
        target,
        command(Role.TARGET, Goal.RUNNING_P2P, COMMIT),
        "Target session refuses goal RunningP2P: the target has not loaded and validated every device; wait for "
        "its vote",
        replace(target, loaded=True),
        None,
    ),
    "preparing over a vote": (
        replace(target, loaded=True),
        command(Role.TARGET, Goal.PREPARED),
        "Target session refuses goal Prepared: the target has voted; its state is not to be overwritten",
        target,
        None,
    ),
    "a vote that is commanded": (
        target,
        command(Role.TARGET, Goal.LOADED),
        "Target session refuses goal Loaded: the vote is the target's own word; wait for it",
        None,
        command(Role.TARGET, Goal.PREPARED),
    ),
    "the release of an undecided vote": (
        replace(target, loaded=True),
        command(Role.TARGET, Goal.RELEASED),
        "Target session refuses goal Released: the target has voted and the decision is unknown; decide first",
        None,
        command(Role.TARGET, Goal.RELEASED, ABORT),
    ),
    "the release of a committed target that has not started": (
        replace(target, loaded=True),
        command(Role.TARGET, Goal.RELEASED, COMMIT),
        "Target session refuses goal Released: the target has voted and the decision is Commit; decide first",
        replace(target, loaded=True, started=True),
        None,
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_refuses_with_a_message_and_admits_its_nearest_sibling(rule: str) -> None:
    facts, refused, message, other_facts, other_command = RULES[rule]
    with pytest.raises(CommandError) as error:
        admit(facts, refused)
    assert error.value.message == f"migration team/move: {message}"
    assert error.value.reason is (Reason.STALE_EPOCH if "older" in rule else Reason.COMMAND_REFUSED)
    admit(other_facts or facts, other_command or refused)


def every_source() -> Iterator[SessionFacts]:
    for backward, switchover in itertools.product((False, True), repeat=2):
        for decision in (None, *Outcome):
            yield replace(source, backward=backward, switchover=switchover, decision=decision)


def every_target() -> Iterator[SessionFacts]:
    for loaded, started in ((False, False), (True, False), (True, True)):
        for decision in (None, *Outcome):
            yield replace(target, loaded=loaded, started=started, decision=decision)


def admitted(facts: SessionFacts, asked: Command) -> bool:
    try:
        admit(facts, asked)
    except CommandError:
        return False
    return True


def allowed() -> Iterator[tuple[SessionFacts, Command, Outcome | None]]:
    """Every (facts, command) that is admitted, and the decision that is known then."""
    for facts in (*every_source(), *every_target()):
        for goal, decision in itertools.product(Goal, (None, *Outcome)):
            asked = command(facts.role, goal, decision)
            if (facts.role, goal) in machine.WAYPOINTS and admitted(facts, asked):
                yield facts, asked, facts.decision or decision


def targets_started_without_commit() -> list[str]:
    """I1, first half: what lets a target leave STOP though no Commit, or no vote, is known."""
    return [
        f"{facts} {asked.goal}"
        for facts, asked, decision in allowed()
        if facts.role is Role.TARGET
        and asked.goal in (Goal.RUNNING_P2P, Goal.RUNNING)
        and not (decision is Outcome.COMMIT and facts.loaded)
    ]


def sources_run_after_commit() -> list[str]:
    """I1, second half: what takes a stopped source to a running state though the decision is Commit."""
    found = []
    for facts, asked, decision in allowed():
        if facts.role is not Role.SOURCE or decision is not Outcome.COMMIT:
            continue
        for state in (S.STOP_COPY, S.STOP):
            moves = [to for r in rounds(Role.SOURCE, asked.goal, (device(state),)) for _, to in r.moves]
            if any(to in RUNS for to in moves):
                found.append(f"{asked.goal} from {state.name}")
    return found


def test_no_admitted_command_starts_a_target_without_commit_and_vote() -> None:
    assert targets_started_without_commit() == []


def test_no_admitted_command_runs_a_saved_source_after_commit() -> None:
    assert sources_run_after_commit() == []


def test_mutant_an_agent_without_the_commit_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_admit_target", lambda *_: None)
    assert targets_started_without_commit()


def test_mutant_an_agent_that_rolls_back_after_commit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROLLBACK", ())
    assert sources_run_after_commit()


def test_a_repeated_command_is_admitted() -> None:
    """Same epoch, sequence and goal, over the facts that taking it left behind."""
    for facts, asked, decision in allowed():
        taken = replace(
            facts,
            decision=decision,
            backward=facts.backward or asked.goal in machine.ROLLBACK,
            switchover=facts.switchover or asked.goal in STOPPING,
            started=facts.started or (facts.role is Role.TARGET and asked.goal is Goal.RUNNING),
        )
        assert admitted(taken, asked), f"{facts} {asked}"


def test_a_decision_known_to_the_session_is_as_good_as_one_in_the_command() -> None:
    admit(replace(target, loaded=True, decision=COMMIT), command(Role.TARGET, Goal.RUNNING))
    admit(replace(source, switchover=True, decision=ABORT), command(Role.SOURCE, Goal.RUNNING))


# --- silence


SILENT = [
    (source, Inquiry.NONE, None),
    (replace(source, switchover=True), Inquiry.ABORT, None),
    (replace(source, switchover=True, latched=True), Inquiry.ABORT, None),
    (replace(source, switchover=True, decision=ABORT), Inquiry.NONE, Goal.RUNNING),
    (replace(source, switchover=True, decision=ABORT, backward=True), Inquiry.NONE, Goal.RUNNING),
    (replace(source, switchover=True, decision=COMMIT), Inquiry.NONE, None),
    (target, Inquiry.NONE, None),
    (replace(target, loaded=True), Inquiry.READ, None),
    (replace(target, loaded=True, decision=COMMIT), Inquiry.NONE, Goal.RUNNING),
    (replace(target, loaded=True, decision=ABORT), Inquiry.NONE, Goal.RELEASED),
    (replace(target, loaded=True, started=True, decision=COMMIT), Inquiry.NONE, None),
]


@pytest.mark.parametrize(("facts", "asked", "goal"), SILENT)
def test_what_a_session_does_when_nobody_tells_it_anything(
    facts: SessionFacts, asked: Inquiry, goal: Goal | None
) -> None:
    assert machine.inquiry(facts) is asked
    assert machine.alone(facts) is goal
    if goal is not None:  # and it may
        admit(facts, command(facts.role, goal, facts.decision))


# --- once more


@pytest.mark.parametrize("decision", [None, ABORT, COMMIT])
@pytest.mark.parametrize("goal", Goal)
@pytest.mark.parametrize("role", Role)
def test_devices_are_named_again_only_after_commit_and_by_the_goal_that_does_it(
    role: Role, goal: Goal, decision: Outcome | None
) -> None:
    """With any other goal a target would blank what it has loaded."""
    lost = SessionFacts(role, switchover=True, lost=("gpu0",))
    told = replace(command(role, goal, decision), attempt=1, again=("gpu0",))
    if decision is COMMIT and (role, goal) in ((Role.TARGET, Goal.PREPARED), (Role.SOURCE, Goal.STOP_COPY)):
        admit(lost, told)
        return
    with pytest.raises(CommandError):
        admit(lost, told)
    if (role, goal, decision) == (Role.TARGET, Goal.RUNNING_P2P, COMMIT):
        with pytest.raises(CommandError, match="it names devices to be loaded or sent again"):
            admit(replace(lost, loaded=True, lost=(), decision=COMMIT), told)
