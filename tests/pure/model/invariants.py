"""What must hold: I1 to I3 of the design and its rules of decision and epochs in every step, I4 at the end.

Devices are judged by their own history (what is in them, where their arcs led), not by what agents or operator say.
"""

from dataclasses import dataclass
from typing import Any

from pure.model.rules import CLOSE, DISCARD, TOOK
from pure.model.state import Content, Device, Etcd, S
from vfio_api.device import P2P_QUIESCENT, RUNS, DeviceState
from vfio_api.errors import Reason
from vfio_api.models_status import Phase
from vfio_api.types import Outcome, Role

HONEST = (Reason.SOURCE_STATE_LOST, Reason.TARGET_LOST_AFTER_COMMIT, Reason.ROLLBACK_INCOMPLETE)
# where two faults took the state of a target and of its source, one after the other: counted, not a breach
BOTH_GONE = "both copies of a state are gone"


@dataclass(frozen=True)
class View:
    """Every device, by pair."""

    sources: tuple[Device, ...]
    targets: tuple[Device, ...]

    def side(self, role: Role) -> tuple[Device, ...]:
        return self.sources if role is Role.SOURCE else self.targets


def check(before: View, after: View, stored: Etcd, etcd: Etcd, effects: tuple[tuple[Any, ...], ...]) -> str:
    """What the step breaks, "" if nothing. stored and etcd: the store before and after it."""
    for effect in effects:
        match effect:
            case ("arc", pair, role, device, arcs):
                found = _arcs(before, etcd, pair, role, device, arcs)
            case ("decides", outcome, earlier):
                found = _decision(before, outcome, earlier)
            case ("obeys", epoch, seen, goal):
                found = f"E: {goal} of epoch {epoch} is obeyed, and epoch {seen} was seen" if epoch < seen else ""
            case ("reset", pair, device):
                found = _reset(before, pair, device)
            case ("again", pair, device):
                counts = device.content in (Content.LOADED, Content.FALLEN, Content.DIED)
                found = (
                    f"I2: target gpu{pair} is made ready again in {device.state.name}, {device.content.name}"
                    if counts
                    else ""
                )
            case ("finishes", phase, reason):
                found = _finish(before, etcd, phase, reason)
            case (kind, pair, device) if kind == CLOSE:
                found = _close(before, etcd, pair, device)
            case (kind, pair, device) if kind == DISCARD:
                found = ""
                if device.content is Content.LOADED and etcd.decision is not Outcome.ABORT:
                    found = (
                        f"I2: target gpu{pair} is blanked, it has loaded its state, and the decision is {etcd.decision}"
                    )
            case _:
                found = ""
        if found:
            return found
    if stored.decision is not None and etcd.decision is not stored.decision:
        return f"D: the decision was {stored.decision} and is {etcd.decision}"
    return state(after)


def state(view: View) -> str:
    """What is broken whatever led there."""
    for pair, (source, target) in enumerate(zip(view.sources, view.targets, strict=True)):
        live = source.content is Content.LIVE and target.content is Content.LOADED
        if live and source.state in RUNS and target.state in RUNS:
            return f"I1: both devices of gpu{pair} run"
        if source.content is Content.BLANK and target.content is Content.BLANK:
            return f"I2: the state of gpu{pair} is nowhere, and no fault took it"
    return ""


def _arcs(view: View, etcd: Etcd, pair: int, role: Role, device: Device, arcs: tuple[DeviceState, ...]) -> str:
    others = [d for n, d in enumerate(view.side(role)) if n != pair and d.open]
    before = device.state
    for new in arcs:
        what = f"{role} gpu{pair}: {before.name} -> {new.name}"
        if new is S.STOP_COPY:
            loud = [d.state.name for d in others if d.state not in P2P_QUIESCENT and d.state is not S.ERROR]
            if loud:
                return f"I3: {what} while another is in {loud[0]}, not quiescent"
        counts = role is Role.SOURCE or device.content is Content.LOADED
        if counts and new is S.RUNNING and before in P2P_QUIESCENT:
            late = [d.state.name for d in others if d.state in P2P_QUIESCENT and d.state is not S.RUNNING_P2P]
            if late:
                return f"I3: {what} while another is in {late[0]}, not in RUNNING_P2P"
        starts = role is Role.TARGET and device.content is Content.LOADED and new in RUNS
        if starts and etcd.decision is not Outcome.COMMIT:
            return f"I1: {what}: it is loaded, and the decision is {etcd.decision}"
        if role is Role.SOURCE and device.content is Content.LIVE and new in RUNS:
            if etcd.decision is Outcome.COMMIT:
                return f"I1: {what} after Commit"
            back = before in (S.STOP, S.STOP_COPY) and device.state in (S.STOP, S.STOP_COPY)
            back = back or (new is S.RUNNING and before in P2P_QUIESCENT)
            if back and etcd.exists and etcd.decision is None:
                return f"I1: {what}: the switchover has begun, and nobody has decided Abort"
        before = new
    return ""


def _decision(view: View, outcome: Outcome, earlier: Outcome | None) -> str:
    if earlier is not None:
        return f"D: {outcome} is written over {earlier}"
    if outcome is Outcome.COMMIT:
        for pair, target in enumerate(view.targets):
            voted = target.content is Content.LOADED and target.state is S.STOP
            if not voted and target.content not in (Content.LOST, Content.FALLEN, Content.DIED):
                return f"I1: Commit is written, and target gpu{pair} is in {target.state.name} and has not voted"
        for pair, source in enumerate(view.sources):
            if source.content is Content.LIVE and source.state in RUNS:
                return f"I1: Commit is written, and source gpu{pair} is in {source.state.name}"
    return ""


def _reset(view: View, pair: int, device: Device) -> str:
    if device.content is Content.LIVE:
        return f"I2: source gpu{pair} is reset in {device.state.name}"
    stopped = (S.STOP, S.STOP_COPY, S.PRE_COPY_P2P)
    late = [d.state.name for n, d in enumerate(view.sources) if n != pair and d.open and d.state in stopped]
    return f"I3: source gpu{pair} is reset while a peer is in {late[0]}" if late else ""


def _close(view: View, etcd: Etcd, pair: int, device: Device) -> str:
    if device.content is not Content.LIVE:
        return ""
    # a target whose state was taken is past help: no copy of before may run again
    behind = [d.state.name for d in view.targets if not runs(d) and d.content not in TOOK]
    if behind or etcd.decision is not Outcome.COMMIT:
        return f"I2: source gpu{pair} is closed, the decision is {etcd.decision}, and a target is in {behind[:1]}"
    return ""


def runs(target: Device) -> bool:
    """It has come to run with what it loaded."""
    return (target.content is Content.LOADED and target.state is S.RUNNING) or target.content is Content.DIED


def fallen(target: Device) -> bool:
    """Its state was lost before it was RUNNING."""
    return target.content in (Content.LOST, Content.FALLEN)


def _finish(view: View, etcd: Etcd, phase: Phase, reason: Reason | None) -> str:
    if phase is Phase.SUCCEEDED and not (etcd.decision is Outcome.COMMIT and all(map(runs, view.targets))):
        return f"I4: Succeeded, and the targets are {[(d.state.name, d.content.name) for d in view.targets]}"
    if phase is not Phase.SUCCEEDED and etcd.decision is Outcome.COMMIT and reason not in HONEST:
        return f"I4: {phase} ({reason}) after Commit"
    return ""


def end(view: View, etcd: Etcd, sessions: int) -> str:
    """What is wrong with how it ended, "" if nothing: nothing is under way any more, also not by the janitor.

    Whatever was lost, no session and no claim is left, but where faults took both copies of a state after Commit: there
    the operator goes on asking for the one that the other is to be made of.
    """
    if etcd.terminal is None:
        return "I4: it never ends"
    phase, reason = etcd.terminal
    told = f"{phase}{f' ({reason})' if reason else ''}"
    pairs = zip(view.sources, view.targets, strict=True)
    nothing = etcd.decision is Outcome.COMMIT and any(
        s.content is Content.LOST and not runs(t) and t.content is not Content.LOADED for s, t in pairs
    )
    given_up = nothing and reason is Reason.TARGET_LOST_AFTER_COMMIT
    if (sessions or etcd.claims) and not given_up:
        return f"I4: {told}: {sessions} sessions and claims {etcd.claims:b} are left behind"
    lost = any(d.content is Content.LOST for d in view.sources)
    if etcd.decision is Outcome.COMMIT:
        gone = any(map(fallen, view.targets))
        if gone and reason is not Reason.TARGET_LOST_AFTER_COMMIT:
            return f"I4: {told}, and a target's state is lost"
        if not gone and not all(map(runs, view.targets)):
            if given_up:
                return BOTH_GONE
            return f"I4: {told}: the workload runs nowhere, targets are {[d.state.name for d in view.targets]}"
        return ""
    if phase is Phase.SUCCEEDED:
        return f"I4: {told}, and the decision is {etcd.decision}"
    if lost and reason not in (Reason.SOURCE_STATE_LOST, Reason.ROLLBACK_INCOMPLETE):
        return f"I4: {told}, and a source's state is lost"
    left = [d for d in view.sources if d.content is Content.LIVE and not (d.open and d.state is S.RUNNING)]
    if left:
        return f"I4: {told}: a source is left in {left[0].state.name}"
    if any(d.open or d.content is Content.LOADED for d in view.targets):
        return f"I4: {told}: a target is left in {[(d.state.name, d.content.name) for d in view.targets]}"
    return ""
