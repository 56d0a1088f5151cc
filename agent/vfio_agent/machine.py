"""What a session may do, and through which device states it goes: pure decisions over frozen facts.

Two tables. WAYPOINTS says, for a role and a goal, the device states on the way, one local barrier each: every device
of the session is in a waypoint's state before any device goes on to the next. `admit` is the list of rules that a
command must pass first; each rule guards one of the promises I1 to I3 of the design.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from vfio_api.device import DeviceState, MigrationFlags
from vfio_api.errors import CommandError, Reason
from vfio_api.types import Command, Goal, Outcome, Role


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A device as it was last read back."""

    name: str
    state: DeviceState
    flags: MigrationFlags


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What a session remembers, also across a restart of the agent.

    backward: it has begun to roll back. switchover: a command past pre-copy was accepted. loaded: it has voted.
    latched: it has heard nothing for too long in the switchover, and takes no command any more that brings no decision.
    lost: devices of a target that lost what they had loaded, after Commit, without having left STOP. leaving: it was
    told to leave STOP. resumed: the hook of a target's pod has said that it runs. attempt: how often devices were made
    ready to load, or sent, once more. gone: devices that lost their state after they had left STOP, or may have; that
    is final.
    incarnations: (device name, opening) of every device; another opening is another device.
    """

    role: Role
    epoch: int = 0
    sequence: int = 0
    backward: bool = False
    switchover: bool = False
    loaded: bool = False
    started: bool = False
    incarnations: tuple[tuple[str, str], ...] = ()
    decision: Outcome | None = None
    latched: bool = False
    lost: tuple[str, ...] = ()
    leaving: bool = False
    attempt: int = 0
    gone: tuple[str, ...] = ()
    resumed: bool = False


def told(facts: SessionFacts, command: Command) -> SessionFacts:
    """What a session remembers once it was told `command`, before it does anything about it."""
    return replace(
        facts,
        epoch=command.epoch,
        sequence=command.sequence,
        decision=facts.decision or command.decision,
        backward=facts.backward or (facts.role is Role.SOURCE and command.goal in ROLLBACK),
        switchover=facts.switchover or command.goal in (Goal.QUIESCED, Goal.STOP_COPY),
        leaving=facts.leaving or command.goal in (Goal.RUNNING_P2P, Goal.RUNNING),
        attempt=max(facts.attempt, command.attempt),
    )


class Inquiry(StrEnum):
    """What a session asks of the VFIOSwitchover by itself when it has heard nothing for too long."""

    NONE = "None"
    READ = "Read"  # whether there is a decision
    ABORT = "Abort"  # for Abort; then, as ever, it obeys what is read back


@dataclass(frozen=True, slots=True)
class Round:
    """One local barrier: every move of a round succeeds before the next round begins."""

    step: str
    moves: tuple[tuple[str, DeviceState], ...]


SOURCE_FORWARD = (Goal.PREPARED, Goal.PRE_COPY, Goal.QUIESCED, Goal.STOP_COPY)
BARRIER_A, BARRIER_B, BARRIER_D = "barrier_a", "barrier_b", "barrier_d"
ROLLBACK = (Goal.RUNNING_P2P, Goal.RUNNING)

_QUIESCENT_TWIN = {
    DeviceState.RUNNING: DeviceState.RUNNING_P2P,
    DeviceState.PRE_COPY: DeviceState.PRE_COPY_P2P,
}

_UNTOUCHED = (DeviceState.RUNNING, DeviceState.PRE_COPY, DeviceState.ERROR)

_Choice = Callable[[DeviceFacts, bool], DeviceState | None]


def _pre_copy(device: DeviceFacts, wanted: bool) -> DeviceState | None:
    able = wanted and MigrationFlags.PRE_COPY in device.flags
    return DeviceState.PRE_COPY if able and device.state is DeviceState.RUNNING else None


def _quiesce(device: DeviceFacts, _wanted: bool) -> DeviceState | None:
    # a device in STOP is quiescent, and after Commit it must never run again
    if MigrationFlags.P2P not in device.flags or device.state in (DeviceState.STOP, DeviceState.STOP_COPY):
        return None
    if device.state in (DeviceState.PRE_COPY, DeviceState.PRE_COPY_P2P):
        return DeviceState.PRE_COPY_P2P
    return DeviceState.RUNNING_P2P


def _running_p2p(device: DeviceFacts, _wanted: bool) -> DeviceState | None:
    if MigrationFlags.P2P not in device.flags or device.state in (DeviceState.RUNNING, DeviceState.ERROR):
        return None
    return DeviceState.RUNNING_P2P


def _hush(device: DeviceFacts, _wanted: bool) -> DeviceState | None:
    # on rollback a device that never stopped is quiesced too, and not by way of RUNNING: nothing enters RUNNING before
    # the barrier
    if MigrationFlags.P2P not in device.flags:
        return None
    return _QUIESCENT_TWIN.get(device.state)


def _leave_pre_copy(device: DeviceFacts, _wanted: bool) -> DeviceState | None:
    # nothing was quiesced: PRE_COPY is RUNNING for all that a device does, so each may leave it by itself
    return DeviceState.RUNNING if device.state is DeviceState.PRE_COPY else None


def _rollback_running(device: DeviceFacts, _wanted: bool) -> DeviceState | None:
    # no arc leads out of ERROR: such a device is reset when its peers are back
    return None if device.state is DeviceState.ERROR else DeviceState.RUNNING


def _release(device: DeviceFacts, _wanted: bool) -> DeviceState | None:
    # after Commit the copy is saved and no longer needed; a source that rolled back runs and is left alone
    return DeviceState.STOP if device.state is DeviceState.STOP_COPY else None


def _always(state: DeviceState) -> _Choice:
    return lambda _device, _wanted: state


# (role, goal) -> (step name, state of each device or None to leave it as it is)
WAYPOINTS: Mapping[tuple[Role, Goal], tuple[tuple[str, _Choice], ...]] = {
    (Role.SOURCE, Goal.PREPARED): (),
    (Role.SOURCE, Goal.PRE_COPY): (("pre_copy", _pre_copy),),
    (Role.SOURCE, Goal.QUIESCED): ((BARRIER_A, _quiesce),),
    (Role.SOURCE, Goal.STOP_COPY): ((BARRIER_A, _quiesce), (BARRIER_B, _always(DeviceState.STOP_COPY))),
    (Role.SOURCE, Goal.RUNNING_P2P): (("rollback_quiesce", _hush), ("rollback_p2p", _running_p2p)),
    (Role.SOURCE, Goal.RUNNING): (
        ("rollback_quiesce", _hush),
        ("rollback_p2p", _running_p2p),
        ("rollback_running", _rollback_running),
    ),
    (Role.SOURCE, Goal.RELEASED): (("release", _release),),
    (Role.TARGET, Goal.PREPARED): (("resuming", _always(DeviceState.RESUMING)),),
    (Role.TARGET, Goal.LOADED): (("load", _always(DeviceState.STOP)),),
    (Role.TARGET, Goal.RUNNING_P2P): (("barrier_c", _running_p2p),),
    (Role.TARGET, Goal.RUNNING): (("barrier_c", _running_p2p), (BARRIER_D, _always(DeviceState.RUNNING))),
    (Role.TARGET, Goal.RELEASED): (),
}


# The way back to RUNNING when no device has left RUNNING and PRE_COPY: after a rehearsal, or an early end.
NEVER_QUIESCED: tuple[tuple[str, _Choice], ...] = (("leave_pre_copy", _leave_pre_copy),)


# The goals of a command that names devices `again`: with any other, devices would be blanked that are needed.
AGAIN = ((Role.TARGET, Goal.PREPARED), (Role.SOURCE, Goal.STOP_COPY))


# Once more from the start: what a data stream has given it does not give again.
RESEND: tuple[tuple[str, _Choice], ...] = (
    ("resend", _release),
    (BARRIER_B, _always(DeviceState.STOP_COPY)),
)


def rounds(
    role: Role, goal: Goal, devices: tuple[DeviceFacts, ...], *, pre_copy: bool = True, again: bool = False
) -> tuple[Round, ...]:
    """The rounds that bring `devices` to `goal`; rounds and moves with nothing to do are left out.

    again: a source's devices are to be sent whole once more.

    Raises CommandError if the goal does not exist for the role, or if more than one device is to be stopped and one
    of them cannot quiesce its P2P traffic (I3).
    """
    waypoints = WAYPOINTS.get((role, goal))
    if waypoints is None:
        raise CommandError(f"goal {goal} does not exist for a {role} session")
    if role is Role.SOURCE and goal in (Goal.QUIESCED, Goal.STOP_COPY) and len(devices) > 1:
        for device in devices:
            if MigrationFlags.P2P not in device.flags:
                raise CommandError(
                    f"device {device.name} does not support P2P (flags {device.flags!r}); a set of "
                    f"{len(devices)} devices is stopped only behind the P2P barrier: migrate it alone",
                    reason=Reason.P2P_UNSUPPORTED,
                    device=device.name,
                )
    back = role is Role.SOURCE and goal in ROLLBACK
    if back and all(d.state in (DeviceState.RUNNING, DeviceState.ERROR) for d in devices):
        waypoints = ()  # they run already: nothing to bring back, and nothing to disturb
    elif back and goal is Goal.RUNNING and all(d.state in _UNTOUCHED for d in devices):
        waypoints = NEVER_QUIESCED
    if again and role is Role.SOURCE:
        waypoints = RESEND
    planned = []
    for step, choose in waypoints:
        moves = []
        for number, device in enumerate(devices):
            state = choose(device, pre_copy)
            if state is not None and state is not device.state:
                moves.append((device.name, state))
                devices = (*devices[:number], replace(device, state=state), *devices[number + 1 :])
        if moves:
            planned.append(Round(step, tuple(moves)))
    return tuple(planned)


def rebooted(facts: SessionFacts) -> SessionFacts:
    """What a session knows when only its durable record is left, of an earlier boot.

    After Commit nobody knows any more whether a target had left STOP: its state is gone for good.
    """
    if facts.role is not Role.TARGET or facts.decision is not Outcome.COMMIT:
        return facts
    names = tuple(name for name, _ in facts.incarnations)
    return replace(facts, loaded=True, lost=(), leaving=True, gone=names)


def inquiry(facts: SessionFacts) -> Inquiry:
    """What the session asks after silence. Only a source may ask for Abort: a target's vote is irrevocable."""
    if facts.decision is not None:
        return Inquiry.NONE
    if facts.role is Role.SOURCE:
        return Inquiry.ABORT if facts.switchover and not facts.backward else Inquiry.NONE
    return Inquiry.READ if facts.loaded and not facts.started and not facts.gone else Inquiry.NONE


def alone(facts: SessionFacts) -> Goal | None:
    """What the decision asks of a side that lies on one node, with no leader to say so; None: a leader is needed.

    After Commit a source waits: that every target runs is for a leader to know.
    """
    if facts.role is Role.SOURCE:
        return Goal.RUNNING if facts.switchover and facts.decision is Outcome.ABORT else None
    if not facts.loaded or facts.started or facts.gone or facts.decision is None:
        return None
    return Goal.RUNNING if facts.decision is Outcome.COMMIT else Goal.RELEASED


def admit(facts: SessionFacts, command: Command) -> None:
    """Raise CommandError unless the session may take `command`.

    A repeated command (same epoch, sequence and goal) passes: commands say the state to be in.
    """
    _admit_order(facts, command)
    decision = facts.decision or command.decision
    if facts.decision and command.decision and facts.decision is not command.decision:
        raise _refused(command, f"the decision read before is {facts.decision}", "it outranks this command")
    if facts.latched and decision is None:
        raise _refused(command, "it has heard nothing for too long and has asked for Abort", "send the decision along")
    if command.again and (decision is not Outcome.COMMIT or (command.role, command.goal) not in AGAIN):
        raise _refused(command, "it names devices to be loaded or sent again", "that is done after Commit, by its goal")
    if facts.role is Role.SOURCE:
        _admit_source(facts, command, decision)
    else:
        _admit_target(facts, command, decision)


def _admit_order(facts: SessionFacts, command: Command) -> None:
    if (command.epoch, command.sequence) < (facts.epoch, facts.sequence):
        raise CommandError(
            f"migration {command.migration}: command {command.goal} has epoch {command.epoch} sequence "
            f"{command.sequence}, this session is at epoch {facts.epoch} sequence {facts.sequence}: a newer "
            "leader commands it",
            reason=Reason.STALE_EPOCH,
        )


def _admit_source(facts: SessionFacts, command: Command, decision: Outcome | None) -> None:
    if command.goal in SOURCE_FORWARD:
        if facts.backward:
            raise _refused(command, "the source has begun to roll back", "it never goes forward again")
        if decision is Outcome.ABORT:
            raise _refused(command, "the decision is Abort", "roll back instead")
    if command.goal in ROLLBACK:
        if decision is Outcome.COMMIT:
            raise _refused(command, "the decision is Commit", "the state lives at the target now")
        if facts.switchover and decision is not Outcome.ABORT:
            raise _refused(command, "the switchover has begun and no Abort is known", "write Abort and send it along")
    undecided = facts.switchover and not facts.backward and decision is not Outcome.COMMIT
    if command.goal is Goal.RELEASED and undecided:
        raise _refused(command, "the source holds the state and no Commit is known", "decide first")


def _admit_target(facts: SessionFacts, command: Command, decision: Outcome | None) -> None:
    if command.goal in (Goal.RUNNING_P2P, Goal.RUNNING):
        if decision is not Outcome.COMMIT:
            raise _refused(command, "no Commit is known", "a loaded target leaves STOP only after Commit")
        if not facts.loaded:
            raise _refused(command, "the target has not loaded and validated every device", "wait for its vote")
    if command.goal is Goal.LOADED:
        raise _refused(command, "the vote is the target's own word", "wait for it")
    if command.goal is Goal.PREPARED:
        _admit_preparation(facts, command, decision)
    voted = facts.loaded and not facts.started and not facts.gone
    if command.goal is Goal.RELEASED and voted and decision is not Outcome.ABORT:
        raise _refused(command, f"the target has voted and the decision is {decision or 'unknown'}", "decide first")


def _admit_preparation(facts: SessionFacts, command: Command, decision: Outcome | None) -> None:
    if facts.loaded:
        raise _refused(command, "the target has voted", "its state is not to be overwritten")
    if decision is Outcome.ABORT:
        raise _refused(command, "the decision is Abort", "release it instead")
    if decision is Outcome.COMMIT and (command.attempt <= facts.attempt or not set(command.again) <= set(facts.lost)):
        lost = ", ".join(facts.lost) or "none"
        raise _refused(
            command,
            f"after Commit only lost devices are prepared ({lost}), and attempt {facts.attempt} was the last one",
            "name these, and a later attempt",
        )


def _refused(command: Command, found: str, step: str) -> CommandError:
    return CommandError(
        f"migration {command.migration}: {command.role} session refuses goal {command.goal}: {found}; {step}"
    )
