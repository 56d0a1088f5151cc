"""When a rung of a ladder is done, and who is to be told what: predicates and commands over one Observed. Pure."""

from collections.abc import Callable

from vfio_api.device import MigrationFlags
from vfio_api.errors import Reason
from vfio_api.types import Failure, Goal, Outcome, Role
from vfio_operator.actions import Action, Send
from vfio_operator.forecast import converged, not_acknowledged, within_limit
from vfio_operator.observed import Observed, Participant, ends_of, has_reached


def all_reached(role: Role, goal: Goal) -> Callable[[Observed], bool]:
    """Whether every participant of a side is at `goal` or further."""

    def done(observed: Observed) -> bool:
        side = observed.side(role)
        passed = _may_be_missing(observed, role)
        return bool(side) and all(has_reached(p, goal) or (passed and (is_released(p) or _absent(p))) for p in side)

    return done


def tell(role: Role, goal: Goal) -> Callable[[Observed], tuple[Action, ...]]:
    """Tell every participant of a side that is not there yet to be in `goal`."""

    def actions(observed: Observed) -> tuple[Action, ...]:
        return tuple(
            Send(p.node, role, goal, observed.switchover.decision)
            for p in observed.side(role)
            if not has_reached(p, goal) and not is_released(p) and not (_absent(p) and _perhaps_passed(observed, role))
        )

    return actions


def tell_touched(role: Role, goal: Goal) -> Callable[[Observed], tuple[Action, ...]]:
    """Tell every participant of a side that may hold anything to be in `goal`."""

    def actions(observed: Observed) -> tuple[Action, ...]:
        return tuple(
            Send(p.node, role, goal, observed.switchover.decision)
            for p in observed.side(role)
            if _may_hold(observed, p) and not has_reached(p, goal) and not is_released(p)
        )

    return actions


def all_touched(role: Role, goal: Goal) -> Callable[[Observed], bool]:
    """Whether every participant of a side that may hold anything is at `goal` or released."""

    def done(observed: Observed) -> bool:
        return all(has_reached(p, goal) or is_released(p) for p in observed.side(role) if _may_hold(observed, p))

    return done


def sources_run(observed: Observed) -> bool:
    """Whether every source that may hold anything is RUNNING again, or released after that."""
    return bool(observed.side(Role.SOURCE)) and all_touched(Role.SOURCE, Goal.RUNNING)(observed)


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


def rest_reached(goal: Goal) -> Callable[[Observed], bool]:
    """After a loss: whether every target that is still there is at `goal` or further. They are released first."""

    def done(observed: Observed) -> bool:
        side = observed.side(Role.TARGET)
        local = goal is Goal.RUNNING_P2P and len(side) == 1  # its agent runs the barrier itself
        return local or all(has_reached(p, goal) or is_released(p) or _absent(p) for p in side)

    return done


def tell_rest(goal: Goal) -> Callable[[Observed], tuple[Action, ...]]:
    """Tell the targets that are still there to be in `goal`."""

    def actions(observed: Observed) -> tuple[Action, ...]:
        return tuple(
            Send(p.node, Role.TARGET, goal, observed.switchover.decision)
            for p in observed.side(Role.TARGET)
            if not has_reached(p, goal) and not is_released(p) and not _absent(p)
        )

    return actions


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


def targets_blank(observed: Observed) -> bool:
    """Whether every target that may hold anything is released."""
    # a target that cannot be reached keeps its claim; it is blanked when it comes back
    return all(has_reached(p, Goal.RELEASED) or not p.connected for p in observed.side(Role.TARGET) if p.touched)


def no_session_left(observed: Observed) -> bool:
    """Whether no agent can still have a session of this migration, which might have to ask for the decision."""
    return all(is_released(p) or _absent(p) for p in observed.participants if _may_hold(observed, p))


def one_node(observed: Observed, role: Role) -> bool:
    """Whether a side lies on one node, whose agent then runs its barriers locally in one command."""
    return len(observed.side(role)) == 1


def stopped(observed: Observed) -> bool:
    """Whether every source is in STOP_COPY and sent to its end."""
    # a full set of votes proves that every source was stopped and sent to its end
    return all_reached(Role.SOURCE, Goal.STOP_COPY)(observed) or all_reached(Role.TARGET, Goal.LOADED)(observed)


def quiescent(observed: Observed) -> bool:
    """Barrier A: whether every source is quiescent."""
    return one_node(observed, Role.SOURCE) or all_reached(Role.SOURCE, Goal.QUIESCED)(observed) or stopped(observed)


def target_lost(observed: Observed) -> Failure | None:
    """After Commit: that a target's state is gone for good, by its agent's own word or as it was written down."""
    if observed.switchover.decision is not Outcome.COMMIT:
        return None
    said = (p.report.failure for p in observed.side(Role.TARGET) if p.report is not None)
    found = (f for f in (observed.recorded, *said) if f is not None and f.reason is Reason.TARGET_LOST_AFTER_COMMIT)
    return next(found, None)


def lost_pairs(observed: Observed) -> frozenset[str]:
    """Pairs whose targets lost their state after Commit without having left STOP."""
    return frozenset(name for p in observed.side(Role.TARGET) if p.report is not None for name in p.report.lost)


def _is_ready_again(participant: Participant) -> bool:
    report = participant.report
    return report is None or not report.lost or (report.reached is Goal.PREPARED and report.failure is None)


def ready_again(observed: Observed) -> bool:
    """Whether every target is ready to load once more what it lost."""
    return all(_is_ready_again(p) for p in observed.side(Role.TARGET))


def reload(observed: Observed) -> tuple[Action, ...]:
    """Prepare targets for what they lost."""
    return tuple(
        Send(p.node, Role.TARGET, Goal.PREPARED, Outcome.COMMIT, p.report.attempt + 1, p.report.lost)
        for p in observed.side(Role.TARGET)
        if p.report is not None and not _is_ready_again(p)
    )


def resend(observed: Observed) -> tuple[Action, ...]:
    """Have sources send once more what targets lost."""
    # grows with every attempt of any target: a source that knows a number has sent for it
    attempt = sum(p.report.attempt for p in observed.side(Role.TARGET) if p.report is not None)
    lost = lost_pairs(observed)
    wanted = {
        p.node: tuple(sorted(pair.name for pair in observed.pairs if pair.source_node == p.node and pair.name in lost))
        for p in observed.side(Role.SOURCE)
    }
    return tuple(
        Send(node, Role.SOURCE, Goal.STOP_COPY, Outcome.COMMIT, attempt, again)
        for node, again in wanted.items()
        if again
    )


def p2p_started(observed: Observed) -> bool:
    """Barrier C: whether every target is in RUNNING_P2P."""
    return one_node(observed, Role.TARGET) or all_reached(Role.TARGET, Goal.RUNNING_P2P)(observed)


def p2p_restored(observed: Observed) -> bool:
    """The rollback barrier: whether every source is in RUNNING_P2P."""
    if not observed.switchover.exists:
        return True  # the intent comes before the first quiesce: nothing has left RUNNING and PRE_COPY
    touched = [p for p in observed.side(Role.SOURCE) if _may_hold(observed, p)]
    return len(touched) < 2 or all_touched(Role.SOURCE, Goal.RUNNING_P2P)(observed)


def recorded(observed: Observed) -> bool:
    """Whether what the migration failed of is stored, or known otherwise."""
    # a cancellation is in the spec, and one that was turned around by an earlier leader is known by that
    known = (Reason.CANCELLED, Reason.OPERATOR_RESTARTED)
    failure, stored = observed.failure, observed.recorded
    if failure is None or not observed.pairs or failure.reason in known:
        return True
    # that a state was lost may be found out later than what it was lost of, and is never left out
    lost = failure.reason is Reason.SOURCE_STATE_LOST and stored != failure
    return stored is not None and not lost


def may_switch_over(observed: Observed) -> bool:
    """Whether pre-copy has come to its end."""
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


def all_claimed(observed: Observed) -> bool:
    """Whether every device is reserved."""
    return observed.switchover.exists or len(observed.claims) == len(ends_of(observed.pairs))


def target_pod_runs(observed: Observed) -> bool:
    """Whether the counterpart of the pod runs where it is to; without a pod there is none to wait for."""
    if not observed.wish.moves_pod or observed.switchover.exists:
        return True
    move = observed.move
    return move.made and move.target is not None and move.target.running and not move.target.deleted


def pods_done(observed: Observed) -> bool:
    """Whether nothing is left to be done with the pods, either way."""
    return not observed.wish.moves_pod or observed.move.done


def pod_kept(observed: Observed) -> bool:
    """Whether the counterpart does not end with the migration's object, whoever deletes that, in whichever way."""
    target = observed.move.target
    return pods_done(observed) or target is None or not target.owner.startswith("VFIOMigration ")


def pods_failure(observed: Observed) -> Failure | None:
    """What became of the pods that ends the migration, before the decision."""
    move, begun = observed.move, bool(observed.pairs)
    if not observed.wish.moves_pod or not begun or not move.looked or move.done or observed.rehearsed:
        return None
    short = observed.wish.shorthand
    source, target = move.source, move.target
    name = f"{observed.key.namespace}/{short.pod if short else ''}"
    if source is None or source.deleted or source.phase in ("Succeeded", "Failed"):
        what = "is gone" if source is None else "is being deleted" if source.deleted else f"has ended ({source.phase})"
        return Failure(
            Reason.POD_GONE,
            f"pod {name} {what}: it was deleted or evicted during its migration; look at its Events, and at who "
            "deletes it",
        )
    if not move.made:
        return None
    if target is None or target.deleted:
        return Failure(
            Reason.TARGET_POD_FAILED,
            f"the counterpart of pod {name} was deleted; the source runs on; create the migration again",
        )
    if target.trouble or target.phase in ("Succeeded", "Failed"):
        return Failure(
            Reason.TARGET_POD_FAILED,
            f"pod {target}, the counterpart of {name}, does not run on node {target.node or 'none'}: "
            f"{target.trouble or target.phase}; the source runs on; look at kubectl describe pod",
        )
    return None


def target_pod_late(observed: Observed) -> Failure:
    """That the counterpart did not run in time, and what it waits for."""
    target, seconds = observed.move.target, observed.limits.target_pod_seconds
    if target is None:
        why = "it could not be created"
    elif target.unscheduled:
        why = f"it cannot be scheduled: {target.unscheduled}"
    elif not target.node:
        why = "it is not scheduled yet"
    else:
        why = f"its containers do not run on node {target.node} yet; look at kubectl describe pod and at image pulls"
    which = f"pod {target}" if target is not None else "the counterpart of the pod"
    return Failure(
        Reason.TARGET_POD_FAILED,
        f"{which} did not run within {seconds:g} s: {why}; the source runs on; free there what it needs, or choose "
        "another target node, and create the migration again",
    )


def prepare_seconds(observed: Observed) -> float:
    """Limits.prepare_seconds."""
    return observed.limits.prepare_seconds


def resume_seconds(observed: Observed) -> float:
    """What devices may take to run, and Limits.prepare_seconds; and then the pods that are told to by their hooks."""
    hook = observed.wish.pausing.hook("")  # of whichever pod
    return observed.limits.prepare_seconds + (hook.longest_seconds if hook is not None else 0)


def release_seconds(observed: Observed) -> float:
    """Limits.release_seconds."""
    return observed.limits.release_seconds


def source_ends_seconds(observed: Observed) -> float:
    """What the source pod may take to end by its own spec, and Limits.release_seconds more."""
    source = observed.move.source
    return (source.grace_seconds if source is not None else 0) + observed.limits.release_seconds


def api_seconds(observed: Observed) -> float:
    """Limits.api_seconds."""
    return observed.limits.api_seconds


def switchover_seconds(observed: Observed) -> float:
    """strategy.switchoverTimeoutSeconds."""
    return float(observed.wish.strategy.switchover_timeout_seconds)


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
