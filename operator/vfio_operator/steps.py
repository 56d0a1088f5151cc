"""The two ladders of a migration, and when a rung is done. Pure; `plan` climbs them.

Order rule: whatever makes the next step safe is above it. Sources are quiescent (barrier A) above their STOP_COPY
(barrier B); every vote is above the decision; the decision is above barrier C; barrier D is above the release of the
sources.
"""

import itertools
from dataclasses import replace

from vfio_api.models_status import Phase
from vfio_api.types import Goal, Outcome, Role
from vfio_operator.actions import (
    AddFinalizer,
    Claim,
    CreateSwitchover,
    Decide,
    KeepPod,
    PersistFailure,
    PersistPairs,
    PersistRehearsal,
    ReleasePods,
    StartTargetPod,
    Step,
    SwitchPods,
    Unclaim,
)
from vfio_operator.conditions import (
    all_claimed,
    all_reached,
    all_touched,
    api_seconds,
    claimed_devices,
    lost_pairs,
    may_switch_over,
    p2p_restored,
    p2p_started,
    pod_kept,
    pods_done,
    prepare_seconds,
    quiescent,
    ready_again,
    recorded,
    release_seconds,
    reload,
    resend,
    rest_reached,
    resume_seconds,
    source_ends_seconds,
    stopped,
    switchover_seconds,
    target_lost,
    target_pod_runs,
    targets_blank,
    tell,
    tell_rest,
    tell_touched,
)

_P, _S, _T = Phase, Role.SOURCE, Role.TARGET

FORWARD: tuple[Step, ...] = (
    Step(
        "AddFinalizer",
        _P.PENDING,
        lambda o: o.has_finalizer,
        lambda _o: (AddFinalizer(),),
        "accepted",
        api_seconds,
    ),
    Step(
        "PersistPairs",
        _P.PENDING,
        lambda o: bool(o.pairs),
        lambda o: (PersistPairs(o.authorized or ()),),
        "validated",
        api_seconds,
    ),
    Step(
        "Claim",
        _P.PREPARING,
        all_claimed,
        lambda o: (Claim(claimed_devices(o)),),
        "reserving {pairs} device pairs",
        api_seconds,
    ),
    Step(
        "TargetPod",
        _P.PREPARING,
        target_pod_runs,
        lambda o: () if o.move.made else (StartTargetPod(),),
        "starting the counterpart of the pod on {targets}",
        lambda o: o.limits.target_pod_seconds,
    ),
    Step(
        "PrepareSources",
        _P.PREPARING,
        all_reached(_S, Goal.PREPARED),
        tell(_S, Goal.PREPARED),
        "preparing sources on {sources}",
        prepare_seconds,
    ),
    Step(
        "PrepareTargets",
        _P.PREPARING,
        all_reached(_T, Goal.PREPARED),
        tell(_T, Goal.PREPARED),
        "preparing targets on {targets}",
        prepare_seconds,
    ),
    Step(
        "PreCopy",
        _P.PRE_COPY,
        all_reached(_S, Goal.PRE_COPY),
        tell(_S, Goal.PRE_COPY),
        "connecting streams",
        prepare_seconds,
    ),
    Step("Converge", _P.PRE_COPY, may_switch_over, lambda _o: (), "pre-copy until the downtime limit can be kept"),
    Step(
        "BeginSwitchover",
        _P.SWITCHOVER,
        lambda o: o.switchover.exists,
        lambda _o: (CreateSwitchover(),),
        "recording the switchover",
        api_seconds,
    ),
    Step(
        "BarrierA",
        _P.SWITCHOVER,
        quiescent,
        tell(_S, Goal.QUIESCED),
        "barrier A: quiescing P2P on {sources}",
        switchover_seconds,
    ),
    Step(
        "BarrierB",
        _P.SWITCHOVER,
        stopped,
        tell(_S, Goal.STOP_COPY),
        "barrier B: stopping sources and sending the rest",
        switchover_seconds,
    ),
    Step(
        "Vote",
        _P.SWITCHOVER,
        all_reached(_T, Goal.LOADED),
        lambda _o: (),
        "waiting for the votes of {targets}",
        switchover_seconds,
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
        ready_again,
        reload,
        "targets on {targets} lost what they had loaded: preparing them again",
    ),
    Step(
        "ResendSources",
        _P.STARTING,
        lambda o: not lost_pairs(o),
        resend,
        "sending the state from {sources} once more",
    ),
    Step(
        "BarrierC",
        _P.STARTING,
        p2p_started,
        tell(_T, Goal.RUNNING_P2P),
        "barrier C: targets to RUNNING_P2P",
        prepare_seconds,
    ),
    Step(
        "BarrierD",
        _P.STARTING,
        all_reached(_T, Goal.RUNNING),
        tell(_T, Goal.RUNNING),
        "barrier D: targets to RUNNING",
        resume_seconds,
    ),
    Step(
        "KeepPod",
        _P.STARTING,
        pod_kept,
        lambda _o: (KeepPod(),),
        "the counterpart is kept, whatever becomes of this object",
    ),
    Step(
        "AwaitReady",
        _P.STARTING,
        lambda o: pods_done(o) or o.move.waited or o.move.target is None or o.move.target.ready,
        lambda _o: (),
        "the counterpart is to become ready",
    ),
    Step(
        "SwitchPods",
        _P.STARTING,
        pods_done,
        lambda _o: (SwitchPods(),),
        "the counterpart takes the pod's place",
    ),
    Step(
        "ReleaseSources",
        _P.STARTING,
        all_reached(_S, Goal.RELEASED),
        tell(_S, Goal.RELEASED),
        "releasing the sources",
        release_seconds,
    ),
    Step(
        "SourceEnds",
        _P.STARTING,
        lambda o: not o.wish.moves_pod or o.move.source is None,
        lambda _o: (),
        "the source pod ends",
        source_ends_seconds,
    ),
    Step(
        "ReleaseTargets",
        _P.STARTING,
        all_reached(_T, Goal.RELEASED),
        tell(_T, Goal.RELEASED),
        "handing the targets over",
        release_seconds,
    ),
    Step("Unclaim", _P.STARTING, lambda o: not o.claims, lambda _o: (Unclaim(),), "dropping the claims", api_seconds),
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
        p2p_restored,
        tell_touched(_S, Goal.RUNNING_P2P),
        "rollback barrier: sources to RUNNING_P2P: {failure}",
        prepare_seconds,
    ),
    Step(
        "Restore",
        _P.ROLLING_BACK,
        all_touched(_S, Goal.RUNNING),
        tell_touched(_S, Goal.RUNNING),
        "returning sources to RUNNING: {failure}",
        resume_seconds,
    ),
    Step(
        "RecordFailure",
        _P.ROLLING_BACK,
        recorded,
        lambda o: (PersistFailure(o.failure),) if o.failure else (),
        "recording why: {failure}",
        api_seconds,
    ),
    Step(
        "ReleasePods",
        _P.ROLLING_BACK,
        pods_done,
        lambda _o: (ReleasePods(),),
        "deleting the counterpart: {failure}",
        api_seconds,
    ),
    Step(
        "BlankTargets",
        _P.ROLLING_BACK,
        targets_blank,
        tell_touched(_T, Goal.RELEASED),
        "resetting the targets: {failure}",
        release_seconds,
    ),
    Step(
        "EndSources",
        _P.ROLLING_BACK,
        all_touched(_S, Goal.RELEASED),
        tell_touched(_S, Goal.RELEASED),
        "ending the source sessions: {failure}",
        release_seconds,
    ),
    Step(
        "Unclaim", _P.ROLLING_BACK, lambda o: not o.claims, lambda _o: (Unclaim(),), "dropping the claims", api_seconds
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
    *(
        replace(_LADDER[name], name=called, done=rest_reached(goal), actions=tell_rest(goal), sentence=sentence)
        for name, called, goal, sentence in (
            ("BarrierC", "RestP2P", Goal.RUNNING_P2P, "the state is lost: what is left to RUNNING_P2P"),
            ("BarrierD", "RestRuns", Goal.RUNNING, "the state is lost: what is left to RUNNING"),
            (
                "ReleaseTargets",
                "ReleaseTargets",
                Goal.RELEASED,
                "the state is lost: handing over what runs, blanking what does not",
            ),
        )
    ),
    replace(_LADDER["SwitchPods"], sentence="the state is lost: the counterpart takes the pod's place"),
    replace(_LADDER["ReleaseSources"], sentence="the state is lost: releasing the sources"),
    _LADDER["Unclaim"],
)

_REHEARSED = Step(
    "Rehearsed",
    _P.PRE_COPY,
    lambda o: o.rehearsed,
    lambda _o: (PersistRehearsal(),),
    "rehearsed: the switchover could begin",
    api_seconds,
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
        ("ReleasePods", "ReleasePods", "rehearsed: deleting the counterpart of the pod"),
        ("BlankTargets", "BlankTargets", "rehearsed: resetting the targets"),
        ("EndSources", "EndSources", "rehearsed: ending the source sessions"),
        ("Unclaim", "Unclaim", "rehearsed: dropping the claims"),
    )
)
