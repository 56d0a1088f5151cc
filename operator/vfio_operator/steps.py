"""The two ladders of a migration, and when a rung is done. Pure; `plan` climbs them.

Order rule: whatever makes the next step safe is above it. Sources are quiescent (barrier A) above their STOP_COPY
(barrier B); every vote is above the decision; the decision is above barrier C; barrier D is above the release of the
sources.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

from vfio_api.device import MigrationFlags
from vfio_api.errors import Reason
from vfio_api.models_status import Phase
from vfio_api.types import Failure, Goal, Outcome, Role
from vfio_operator.actions import (
    Action,
    AddFinalizer,
    Claim,
    CreateSwitchover,
    Decide,
    PersistFailure,
    PersistPairs,
    PersistRehearsal,
    Send,
    Step,
    Unclaim,
)
from vfio_operator.forecast import converged, not_acknowledged, within_limit
from vfio_operator.observed import Observed, Participant, ends_of, has_reached


def all_reached(role: Role, goal: Goal) -> Callable[[Observed], bool]:
    """Whether every participant of a side is at `goal` or further."""

    def done(observed: Observed) -> bool:
        side = observed.side(role)
        passed = _may_be_missing(observed, role)
        return bool(side) and all(has_reached(p, goal) or (passed and (is_released(p) or _absent(p))) for p in side)

    return done


def _tell(role: Role, goal: Goal) -> Callable[[Observed], tuple[Action, ...]]:
    def actions(observed: Observed) -> tuple[Action, ...]:
        return tuple(
            Send(p.node, role, goal, observed.switchover.decision)
            for p in observed.side(role)
            if not has_reached(p, goal) and not is_released(p) and not (_absent(p) and _perhaps_passed(observed, role))
        )

    return actions


def _tell_touched(role: Role, goal: Goal) -> Callable[[Observed], tuple[Action, ...]]:
    def actions(observed: Observed) -> tuple[Action, ...]:
        return tuple(
            Send(p.node, role, goal, observed.switchover.decision)
            for p in observed.side(role)
            if _may_hold(observed, p) and not has_reached(p, goal) and not is_released(p)
        )

    return actions


def _all_touched(role: Role, goal: Goal) -> Callable[[Observed], bool]:
    def done(observed: Observed) -> bool:
        return all(has_reached(p, goal) or is_released(p) for p in observed.side(role) if _may_hold(observed, p))

    return done


def sources_run(observed: Observed) -> bool:
    """Whether every source that may hold anything is RUNNING again, or released after that."""
    return bool(observed.side(Role.SOURCE)) and _all_touched(Role.SOURCE, Goal.RUNNING)(observed)


def is_released(participant: Participant) -> bool:
    """Released already: what it says now is only that."""
    return participant.report is not None and participant.report.reached is Goal.RELEASED


def _absent(participant: Participant) -> bool:
    """Connected, and said in its Hello that it has no session (any more)."""
    return participant.connected and participant.report is None


def _may_be_missing(observed: Observed, role: Role) -> bool:
    """Whether a session that is not there has been through everything: only in the order in which they are released.

    Sources are released first, after Commit and barrier D. A target without a session is lost as long as a source is
    still there.
    """
    if observed.switchover.decision is not Outcome.COMMIT:
        return False
    return role is Role.SOURCE or all(is_released(p) or _absent(p) for p in observed.side(Role.SOURCE))


def _perhaps_passed(observed: Observed, role: Role) -> bool:
    """Whether a session that is not there may have been through everything: nobody is told to be where it was.

    A target is certainly lost only while a source's session is seen to be there; until then its agent is awaited.
    """
    if observed.switchover.decision is not Outcome.COMMIT:
        return False
    there = any(p.report is not None and not is_released(p) for p in observed.side(Role.SOURCE))
    return role is Role.SOURCE or not there


def _may_hold(observed: Observed, participant: Participant) -> bool:
    """An agent that has not dialled this leader yet may hold anything that an earlier leader commanded."""
    return participant.touched or (observed.inherited and not participant.connected)


def _targets_blank(observed: Observed) -> bool:
    # a target that cannot be reached keeps its claim; it is blanked when it comes back
    return all(has_reached(p, Goal.RELEASED) or not p.connected for p in observed.side(Role.TARGET) if p.touched)


def one_node(observed: Observed, role: Role) -> bool:
    """Whether a side lies on one node, whose agent then runs its barriers locally in one command."""
    return len(observed.side(role)) == 1


def _stopped(observed: Observed) -> bool:
    # a full set of votes proves that every source was stopped and sent to its end
    return all_reached(Role.SOURCE, Goal.STOP_COPY)(observed) or all_reached(Role.TARGET, Goal.LOADED)(observed)


def _quiescent(observed: Observed) -> bool:
    return one_node(observed, Role.SOURCE) or all_reached(Role.SOURCE, Goal.QUIESCED)(observed) or _stopped(observed)


def target_lost(observed: Observed) -> Failure | None:
    """After Commit: that a target's state is gone for good, by its agent's own word or as it was written down."""
    if observed.switchover.decision is not Outcome.COMMIT:
        return None
    said = (p.report.failure for p in observed.side(Role.TARGET) if p.report is not None)
    found = (f for f in (observed.recorded, *said) if f is not None and f.reason is Reason.TARGET_LOST_AFTER_COMMIT)
    return next(found, None)


def _lost(observed: Observed) -> frozenset[str]:
    """Pairs whose targets lost their state after Commit without having left STOP."""
    return frozenset(name for p in observed.side(Role.TARGET) if p.report is not None for name in p.report.lost)


def _is_ready_again(participant: Participant) -> bool:
    report = participant.report
    return report is None or not report.lost or (report.reached is Goal.PREPARED and report.failure is None)


def _ready_again(observed: Observed) -> bool:
    return all(_is_ready_again(p) for p in observed.side(Role.TARGET))


def _reload(observed: Observed) -> tuple[Action, ...]:
    return tuple(
        Send(p.node, Role.TARGET, Goal.PREPARED, Outcome.COMMIT, p.report.attempt + 1, p.report.lost)
        for p in observed.side(Role.TARGET)
        if p.report is not None and not _is_ready_again(p)
    )


def _resend(observed: Observed) -> tuple[Action, ...]:
    # grows with every attempt of any target: a source that knows a number has sent for it
    attempt = sum(p.report.attempt for p in observed.side(Role.TARGET) if p.report is not None)
    lost = _lost(observed)
    wanted = {
        p.node: tuple(sorted(pair.name for pair in observed.pairs if pair.source_node == p.node and pair.name in lost))
        for p in observed.side(Role.SOURCE)
    }
    return tuple(
        Send(node, Role.SOURCE, Goal.STOP_COPY, Outcome.COMMIT, attempt, again)
        for node, again in wanted.items()
        if again
    )


def _p2p_started(observed: Observed) -> bool:
    return one_node(observed, Role.TARGET) or all_reached(Role.TARGET, Goal.RUNNING_P2P)(observed)


def _p2p_restored(observed: Observed) -> bool:
    if not observed.switchover.exists:
        return True  # the intent comes before the first quiesce: nothing has left RUNNING and PRE_COPY
    touched = [p for p in observed.side(Role.SOURCE) if _may_hold(observed, p)]
    return len(touched) < 2 or _all_touched(Role.SOURCE, Goal.RUNNING_P2P)(observed)


def _recorded(observed: Observed) -> bool:
    # a cancellation is in the spec, and one that was turned around by an earlier leader is known by that
    known = (Reason.CANCELLED, Reason.OPERATOR_RESTARTED)
    failure = observed.failure
    return observed.recorded is not None or not observed.pairs or failure is None or failure.reason in known


def _converged(observed: Observed) -> bool:
    if observed.switchover.exists:
        return True
    if not all(p.connected for p in observed.participants):
        return False  # what an absent agent said last must not stop the others' devices
    if observed.rehearsed or converged(observed):
        return True
    if not observed.converge_expired or not_acknowledged(observed):
        return False
    return observed.wish.strategy.switch_over_on_timeout or within_limit(observed)


def claimed_devices(observed: Observed) -> tuple[tuple[str, str], ...]:
    """(node, address) of every device of the migration, in an order that all migrations share (no deadlocks)."""
    return tuple(sorted(ends_of(observed.pairs)))


def _all_claimed(observed: Observed) -> bool:
    return len(observed.claims) == len(claimed_devices(observed)) or observed.switchover.exists


def _prepare_seconds(observed: Observed) -> float:
    return observed.limits.prepare_seconds


def _release_seconds(observed: Observed) -> float:
    return observed.limits.release_seconds


def _api_seconds(observed: Observed) -> float:
    return observed.limits.api_seconds


def _switchover_seconds(observed: Observed) -> float:
    return float(observed.wish.strategy.switchover_timeout_seconds)


_P, _S, _T = Phase, Role.SOURCE, Role.TARGET

FORWARD: tuple[Step, ...] = (
    Step(
        "AddFinalizer",
        _P.PENDING,
        lambda o: o.has_finalizer,
        lambda _o: (AddFinalizer(),),
        "accepted",
        _api_seconds,
    ),
    Step(
        "PersistPairs",
        _P.PENDING,
        lambda o: bool(o.pairs),
        lambda o: (PersistPairs(o.authorized or ()),),
        "validated",
        _api_seconds,
    ),
    Step(
        "Claim",
        _P.PREPARING,
        _all_claimed,
        lambda o: (Claim(claimed_devices(o)),),
        "reserving {pairs} device pairs",
        _api_seconds,
    ),
    Step(
        "PrepareSources",
        _P.PREPARING,
        all_reached(_S, Goal.PREPARED),
        _tell(_S, Goal.PREPARED),
        "preparing sources on {sources}",
        _prepare_seconds,
    ),
    Step(
        "PrepareTargets",
        _P.PREPARING,
        all_reached(_T, Goal.PREPARED),
        _tell(_T, Goal.PREPARED),
        "preparing targets on {targets}",
        _prepare_seconds,
    ),
    Step(
        "PreCopy",
        _P.PRE_COPY,
        all_reached(_S, Goal.PRE_COPY),
        _tell(_S, Goal.PRE_COPY),
        "connecting streams",
        _prepare_seconds,
    ),
    Step("Converge", _P.PRE_COPY, _converged, lambda _o: (), "pre-copy until the downtime limit can be kept"),
    Step(
        "BeginSwitchover",
        _P.SWITCHOVER,
        lambda o: o.switchover.exists,
        lambda _o: (CreateSwitchover(),),
        "recording the switchover",
        _api_seconds,
    ),
    Step(
        "BarrierA",
        _P.SWITCHOVER,
        _quiescent,
        _tell(_S, Goal.QUIESCED),
        "barrier A: quiescing P2P on {sources}",
        _switchover_seconds,
    ),
    Step(
        "BarrierB",
        _P.SWITCHOVER,
        _stopped,
        _tell(_S, Goal.STOP_COPY),
        "barrier B: stopping sources and sending the rest",
        _switchover_seconds,
    ),
    Step(
        "Vote",
        _P.SWITCHOVER,
        all_reached(_T, Goal.LOADED),
        lambda _o: (),
        "waiting for the votes of {targets}",
        _switchover_seconds,
    ),
    Step(
        "Decide",
        _P.SWITCHOVER,
        lambda o: o.switchover.decision is not None,
        lambda _o: (Decide(Outcome.COMMIT),),
        "every target has voted: committing",
    ),
    Step(
        "ReloadTargets",
        _P.STARTING,
        _ready_again,
        _reload,
        "targets on {targets} lost what they had loaded: preparing them again",
    ),
    Step(
        "ResendSources",
        _P.STARTING,
        lambda o: not _lost(o),
        _resend,
        "sending the state from {sources} once more",
    ),
    Step(
        "BarrierC",
        _P.STARTING,
        _p2p_started,
        _tell(_T, Goal.RUNNING_P2P),
        "barrier C: targets to RUNNING_P2P",
        _prepare_seconds,
    ),
    Step(
        "BarrierD",
        _P.STARTING,
        all_reached(_T, Goal.RUNNING),
        _tell(_T, Goal.RUNNING),
        "barrier D: targets to RUNNING",
        _prepare_seconds,
    ),
    Step(
        "ReleaseSources",
        _P.STARTING,
        all_reached(_S, Goal.RELEASED),
        _tell(_S, Goal.RELEASED),
        "releasing the sources",
        _release_seconds,
    ),
    Step(
        "ReleaseTargets",
        _P.STARTING,
        all_reached(_T, Goal.RELEASED),
        _tell(_T, Goal.RELEASED),
        "handing the targets over",
        _release_seconds,
    ),
    Step("Unclaim", _P.STARTING, lambda o: not o.claims, lambda _o: (Unclaim(),), "dropping the claims", _api_seconds),
)

ROLLBACK: tuple[Step, ...] = (
    Step(
        "Abort",
        _P.ROLLING_BACK,
        lambda o: not o.switchover.exists or o.switchover.decision is not None,
        lambda _o: (Decide(Outcome.ABORT),),
        "recording the abort: {failure}",
    ),
    Step(
        "RestoreP2P",
        _P.ROLLING_BACK,
        _p2p_restored,
        _tell_touched(_S, Goal.RUNNING_P2P),
        "rollback barrier: sources to RUNNING_P2P: {failure}",
        _prepare_seconds,
    ),
    Step(
        "Restore",
        _P.ROLLING_BACK,
        _all_touched(_S, Goal.RUNNING),
        _tell_touched(_S, Goal.RUNNING),
        "returning sources to RUNNING: {failure}",
        _prepare_seconds,
    ),
    Step(
        "RecordFailure",
        _P.ROLLING_BACK,
        _recorded,
        lambda o: (PersistFailure(o.failure),) if o.failure else (),
        "recording why: {failure}",
        _api_seconds,
    ),
    Step(
        "BlankTargets",
        _P.ROLLING_BACK,
        _targets_blank,
        _tell_touched(_T, Goal.RELEASED),
        "resetting the targets: {failure}",
        _release_seconds,
    ),
    Step(
        "EndSources",
        _P.ROLLING_BACK,
        _all_touched(_S, Goal.RELEASED),
        _tell_touched(_S, Goal.RELEASED),
        "ending the source sessions: {failure}",
        _release_seconds,
    ),
    Step(
        "Unclaim", _P.ROLLING_BACK, lambda o: not o.claims, lambda _o: (Unclaim(),), "dropping the claims", _api_seconds
    ),
)


_LADDER = {step.name: step for step in FORWARD}
_BACK = {step.name: step for step in ROLLBACK}

# After Commit, when a target's state is gone: nothing can be made good any more. What is left starts, behind the same
# barriers, and every device is given back. The sources' copies are of before the targets ran, and must never run.
LOST: tuple[Step, ...] = (
    replace(
        _BACK["RecordFailure"],
        phase=_P.STARTING,
        done=lambda o: o.recorded is not None,
        actions=lambda o: tuple(PersistFailure(failure) for failure in (target_lost(o),) if failure),
        sentence="recording that the state is lost",
    ),
    replace(_LADDER["BarrierC"], name="RestP2P", sentence="the state is lost: what is left to RUNNING_P2P"),
    replace(_LADDER["BarrierD"], name="RestRuns", sentence="the state is lost: what is left to RUNNING"),
    replace(_LADDER["ReleaseTargets"], sentence="the state is lost: handing over what runs, blanking what does not"),
    replace(_LADDER["ReleaseSources"], sentence="the state is lost: releasing the sources"),
    _LADDER["Unclaim"],
)

_REHEARSED = Step(
    "Rehearsed",
    _P.PRE_COPY,
    lambda o: o.rehearsed,
    lambda _o: (PersistRehearsal(),),
    "rehearsed: the switchover could begin",
    _api_seconds,
)

# Up to where a migration would switch over, and back from there: no device is quiesced or stopped.
REHEARSAL: tuple[Step, ...] = (
    *itertools.takewhile(lambda step: step.name != "BeginSwitchover", FORWARD),
    _REHEARSED,
)
REHEARSAL_BACK: tuple[Step, ...] = tuple(
    replace(_BACK[name], name=called, phase=_P.PRE_COPY, sentence=sentence)
    for name, called, sentence in (
        ("Restore", "LeavePreCopy", "rehearsed: sources leave pre-copy on {sources}"),
        ("BlankTargets", "BlankTargets", "rehearsed: resetting the targets"),
        ("EndSources", "EndSources", "rehearsed: ending the source sessions"),
        ("Unclaim", "Unclaim", "rehearsed: dropping the claims"),
    )
)


def wants_pre_copy(observed: Observed, node: str) -> bool:
    """Whether the sources on `node` are asked to pre-copy."""
    if observed.wish.strategy.pre_copy == "Disabled":
        return False
    return any(
        MigrationFlags.PRE_COPY in record.flags
        for pair in observed.pairs
        if pair.source_node == node
        and (record := observed.inventory.get((pair.source_node, pair.source_device))) is not None
    )
