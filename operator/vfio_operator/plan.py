"""What to do next: a pure function from one Observed to the next actions and one sentence for people.

Two ladders, read top-down: the first step that is not done is the one we are at. FORWARD is taken until something
fails or the user cancels before a decision; then ROLLBACK. The decision, once it is there, rules alone. Each step
states when it is done, so a plan can be made from any interruption: nothing is remembered but facts.
"""

import itertools

from vfio_api.errors import Reason
from vfio_api.models_migration import Mode
from vfio_api.models_status import Phase
from vfio_api.names import AGENT_PREFIX
from vfio_api.types import Failure, Goal, Outcome, Role
from vfio_operator.actions import AskTurn, Authorize, FindPod, Finish, Look, Plan, Step
from vfio_operator.conditions import all_reached, pods_failure, sources_run, target_lost
from vfio_operator.forecast import forecast, not_acknowledged, planned
from vfio_operator.observed import Observed, Pair
from vfio_operator.resolve import resolve
from vfio_operator.steps import FORWARD, LOST, REHEARSAL, REHEARSAL_BACK, ROLLBACK
from vfio_operator.turns import Turn

# Right after an election agents have not dialled yet; right after another migration the inventory may still show who
# held a device before: these refusals may be premature.
_MAY_CONNECT = (Reason.AGENT_NOT_CONNECTED, Reason.UNKNOWN_NODE)
_MAY_CHANGE = (
    Reason.UNKNOWN_DEVICE,
    Reason.SOURCE_NOT_HELD,
    Reason.TARGET_HAS_HOLDER,
    Reason.DEVICE_NOT_MIGRATABLE,
    Reason.NOTHING_TO_MIGRATE,
    Reason.NO_COMPATIBLE_TARGET,
    Reason.DEVICE_CLAIMED,
    Reason.POD_DEVICES_SPLIT,
)


def plan(observed: Observed) -> Plan:
    """The next actions for `observed`. Total: every picture has a plan, and a finished one ends in Finish."""
    # once it has begun, or has failed to, the inventory rules no longer
    begun = bool(observed.pairs or observed.claims) or observed.failure is not None
    early = None if begun else _validate(observed)
    if early is not None:
        return early
    if observed.exhausted:
        return _pods_first(observed) or _give_up(observed)
    for step in ladder(observed):
        if not step.done(observed):
            return Plan(
                step.name,
                step.phase,
                step.actions(observed),
                _sentence(step, observed),
                step.timeout(observed),
            )
    lost = target_lost(observed)
    if lost is not None and not rolls_back(observed):
        return Plan("Finish", Phase.FAILED, (Finish(Phase.FAILED, lost),), lost.message)
    if not rolls_back(observed):
        return Plan("Finish", Phase.SUCCEEDED, (Finish(Phase.SUCCEEDED),), _success(observed))
    end = Phase.CANCELLED if _cancelled(observed) else Phase.FAILED
    failure = first_failure(observed)
    return Plan("Finish", end, (Finish(end, failure),), failure.message if failure else "rolled back")


def _validate(observed: Observed) -> Plan | None:
    """What is to be done before the first effect: refuse, ask for rights, or only tell what would happen."""
    if observed.wish.cancel or observed.wish.deleted:
        return None
    named = observed.wish.pairs
    if named and observed.authorized != named and not observed.wish.unsupported:
        # first of all: who may not use a device is not told who else uses it
        return _authorize(observed, named)
    if named and observed.forbidden is not None:
        return _refused(named, observed.forbidden)
    if observed.authorized is None and not observed.wish.unsupported:
        return _authorize(observed, ())
    if observed.wish.moves_pod and observed.forbidden is not None:
        # who may not move the pod is not told what there is of it
        return _refused((), observed.forbidden)
    if observed.wish.moves_pod and not observed.move.looked and not observed.wish.unsupported:
        return Plan("FindPod", Phase.PENDING, (FindPod(),), "looking for the pod", observed.limits.api_seconds)
    found = resolve(observed)
    refused = found.failure
    waits = _await_agents(observed, refused)
    if waits is not None:
        return waits
    waits = _await_inventory(observed, refused)
    if waits is not None:
        return waits
    if refused is None and observed.authorized != found.pairs:
        return _authorize(observed, found.pairs)
    refused = refused or observed.forbidden
    if refused is not None:
        # what a shorthand stands for is not told to who may not use it
        return _refused(found.pairs if found.failure or named else (), refused, *found.failures[1:])
    if observed.wish.mode is Mode.PLAN:
        count = f"{len(found.pairs)} pair{'s' if len(found.pairs) != 1 else ''}"
        sentence = f"{count} can migrate; forecast downtime {planned(observed, found.pairs)}"
        return Plan("Planned", Phase.SUCCEEDED, (Finish(Phase.SUCCEEDED),), sentence, pairs=found.pairs)
    if observed.turn.position:
        return Plan("AwaitTurn", Phase.PENDING, (AskTurn(found.pairs),), _queued(observed.turn))
    return None


def _queued(turn: Turn) -> str:
    if not turn.waiting:
        return "asking whether there is room to run"
    return f"queued: number {turn.position} of {turn.waiting}: {turn.why}"


def _await_agents(observed: Observed, refused: Failure | None) -> Plan | None:
    """Whether to wait for the next agents of nodes whose present ones are to end; a mere Plan needs none any more."""
    leaving = observed.leaving
    if refused is None:
        leaving = frozenset() if observed.wish.mode is Mode.PLAN else leaving
    elif refused.reason is Reason.AGENT_NOT_CONNECTED:
        leaving = leaving - observed.connected
    else:
        return None
    ending = ", ".join(sorted(observed.named_nodes & leaving))
    sentence = f"waiting for the next vfio-agent of {ending}: the present one is being replaced"
    return Plan("AwaitAgents", Phase.PENDING, (), sentence) if ending else None


def _await_inventory(observed: Observed, refused: Failure | None) -> Plan | None:
    """Whether to let agents look first: what is refused may come yet, and what a pod opens by itself tells nobody."""
    if refused is not None and _premature(observed, refused):
        sentence = f"waiting for the inventory: {refused.message}"
    elif refused is None and observed.wish.moves_pod and not observed.inventory_settled:
        sentence = "looking at what the pod has open"
    else:
        return None
    return Plan("AwaitInventory", Phase.PENDING, (Look(observed.named_nodes & observed.connected),), sentence)


def _authorize(observed: Observed, pairs: tuple[Pair, ...]) -> Plan:
    sentence = "asking what the requester may use"
    return Plan("Authorize", Phase.PENDING, (Authorize(pairs),), sentence, observed.limits.api_seconds)


def _refused(pairs: tuple[Pair, ...], *why: Failure) -> Plan:
    return Plan("Refused", Phase.FAILED, (Finish(Phase.FAILED, why[0]),), why[0].message, pairs=pairs, findings=why)


def _success(observed: Observed) -> str:
    if observed.wish.mode is Mode.REHEARSE:
        return "rehearsed; every source runs on and no target has kept anything"
    return "every device runs at its target"


def _premature(observed: Observed, refused: Failure) -> bool:
    if refused.reason in _MAY_CONNECT:
        return not observed.settled
    return refused.reason in _MAY_CHANGE and not observed.inventory_settled


def ladder(observed: Observed) -> tuple[Step, ...]:
    """The steps that count now. After Commit nothing above the decision is looked at again."""
    if rolls_back(observed):
        return ROLLBACK
    if target_lost(observed) is not None:
        return LOST
    if observed.wish.mode is Mode.REHEARSE:
        return REHEARSAL_BACK if observed.rehearsed else REHEARSAL
    if observed.switchover.decision is Outcome.COMMIT:
        return tuple(itertools.dropwhile(lambda step: step.name != "Decide", FORWARD))
    return FORWARD


def rolls_back(observed: Observed) -> bool:
    """Whether the way is back. A decision rules alone; without one, any failure, cancellation or turned source."""
    if observed.switchover.decision is not None:
        return observed.switchover.decision is Outcome.ABORT
    return first_failure(observed) is not None


_ECHOES = (Reason.STREAM_BROKEN, Reason.FRAME_INVALID)
_RANK = {Reason.SOURCE_STATE_LOST: 0, Reason.OPERATOR_RESTARTED: 3} | dict.fromkeys(_ECHOES, 2)


def first_failure(observed: Observed) -> Failure | None:
    """What went wrong first, or that the user cancelled.

    A broken stream is the echo of what happened at its other end, so anything else outranks it; that a state was lost
    outranks everything. What fails on the way back is not what it began with.
    """
    found = [observed.failure] if observed.failure is not None else []
    if observed.switchover.decision is None and (ended := pods_failure(observed)) is not None:
        found.append(ended)
    for participant in observed.participants:
        report = participant.report
        if report is None or report.failure is None:
            continue
        if observed.rehearsed and participant.role is Role.TARGET and report.failure.reason in _ECHOES:
            continue  # the sources have closed their streams, as they were told
        if not report.backward or report.failure.reason is Reason.SOURCE_STATE_LOST or not found:
            found.append(report.failure)
    if (asked := _abort_of_an_agent(observed)) is not None:
        found.append(asked)
    if found:
        return min(found, key=lambda failure: _RANK.get(failure.reason, 1))
    if observed.wish.cancel or observed.wish.deleted:
        what = "spec.cancel was set" if observed.wish.cancel else "the VFIOMigration was deleted"
        return Failure(Reason.CANCELLED, f"{what} before the decision; every source runs on")
    turned = any(p.report is not None and p.report.backward for p in observed.participants)
    if turned and not observed.rehearsed:
        return Failure(
            Reason.OPERATOR_RESTARTED,
            "an earlier leader was rolling this migration back when it ended; its log and the Events say why",
        )
    return None


def _abort_of_an_agent(observed: Observed) -> Failure | None:
    switchover = observed.switchover
    if switchover.decision is not Outcome.ABORT or not switchover.by.startswith(AGENT_PREFIX):
        return None
    node, seconds = switchover.by.removeprefix(AGENT_PREFIX), observed.wish.strategy.switchover_timeout_seconds
    return Failure(
        Reason.SWITCHOVER_TIMEOUT,
        f"the source on node {node} heard nothing of the switchover for {seconds} s and asked for Abort; look at "
        "the operator's pods and at the network between them and that node",
    )


def _cancelled(observed: Observed) -> bool:
    failure = first_failure(observed)
    return failure is not None and failure.reason is Reason.CANCELLED


def not_converged(observed: Observed) -> Failure:
    """Why pre-copy has not converged within its limit: which device, or which part of the forecast is too long."""
    strategy = observed.wish.strategy
    waiting = not_acknowledged(observed)
    if waiting:
        names = ", ".join(d.name for d in waiting[:5])
        return Failure(
            Reason.CONVERGENCE_TIMEOUT,
            f"pre-copy did not converge within {strategy.convergence_timeout_seconds} s: the initial bytes of {names} "
            "are not loaded at the target yet; raise strategy.convergenceTimeoutSeconds or the bandwidth limit",
            waiting[0].name,
        )
    return Failure(
        Reason.CONVERGENCE_TIMEOUT,
        f"pre-copy did not converge within {strategy.convergence_timeout_seconds} s: the forecast downtime is "
        f"{forecast(observed) or 'unknown'}, strategy.downtimeLimitMilliseconds is "
        f"{strategy.downtime_limit_milliseconds}: raise it, or set onConvergenceTimeout: Switchover",
    )


def _pods_first(observed: Observed) -> Plan | None:
    """What is to be done with the pods whatever else is given up: who has the workload's state must not end by it."""
    committed = observed.switchover.decision is Outcome.COMMIT
    names = ("KeepPod", "SwitchPods") if committed else ("ReleasePods",)
    steps = [step for step in (FORWARD if committed else ROLLBACK) if step.name in names]
    step = next((step for step in steps if not step.done(observed)), None)
    if step is None:
        return None
    return Plan(step.name, step.phase, step.actions(observed), _sentence(step, observed))


def _give_up(observed: Observed) -> Plan:
    gone = target_lost(observed)
    if gone is not None:  # that what is left of the targets runs is no success
        return Plan("GiveUp", Phase.FAILED, (Finish(Phase.FAILED, gone),), gone.message)
    there = all_reached(Role.TARGET, Goal.RUNNING)(observed) or (observed.rehearsed and sources_run(observed))
    if there and not rolls_back(observed):
        sentence = f"{_success(observed)}; what could not be released is released later"
        return Plan("GiveUp", Phase.SUCCEEDED, (Finish(Phase.SUCCEEDED),), sentence)
    committed = observed.switchover.decision is Outcome.COMMIT
    lost = Reason.TARGET_LOST_AFTER_COMMIT if committed else Reason.ROLLBACK_INCOMPLETE
    cause = first_failure(observed)
    if rolls_back(observed) and cause is not None and sources_run(observed):
        # the workload is where it was; what is left of the targets is blanked when their agents answer again
        end = Phase.CANCELLED if _cancelled(observed) else Phase.FAILED
        return Plan("GiveUp", end, (Finish(end, cause),), cause.message)
    failure = Failure(
        cause.reason if cause and cause.reason in (Reason.SOURCE_STATE_LOST, Reason.RESUME_FAILED) else lost,
        f"given up after repeated failures: {cause.message if cause else 'no report'}",
        cause.device if cause else "",
        cause.arc if cause else "",
        cause.errno if cause else 0,
    )
    return Plan("GiveUp", Phase.FAILED, (Finish(Phase.FAILED, failure),), failure.message)


def _sentence(step: Step, observed: Observed) -> str:
    failure = first_failure(observed)
    return step.sentence.format(
        pairs=len(observed.pairs),
        sources=", ".join(p.node for p in observed.side(Role.SOURCE)),
        targets=", ".join(p.node for p in observed.side(Role.TARGET)),
        failure=failure.message if failure else "",
    )
