"""The operator's part: what `vfio_operator.migration`, `execute`, `channel` and `janitor` do around `plan`.

A turn is one round of `MigrationTask.run`: observe -> plan -> every action of the plan. It is one step, since a leader
learns only by what is delivered to it, and a delivery can as well come later: so a request under way, also one of a
leader that has been deposed, is the same turn taken late. What an answer that was lost makes of it is `doubt`.
`Operator.plan` is asked once for each thing that a leader can know.
"""

from typing import Any, NamedTuple

from pure.model.rules import ALL, KEY, Rules, report_of
from pure.model.state import Cmd, Etcd, Lead, Part, Report, Seen, Sent, Shape, next_number
from vfio_api.device import DeviceState
from vfio_api.errors import Reason
from vfio_api.types import DeviceReport, Failure, Goal, Outcome, Role, SessionReport
from vfio_operator import plan as planning
from vfio_operator.actions import (
    AddFinalizer,
    Authorize,
    Claim,
    CreateSwitchover,
    Decide,
    Finish,
    Look,
    PersistFailure,
    PersistPairs,
    Plan,
    Send,
    Unclaim,
)
from vfio_operator.conditions import is_released
from vfio_operator.observed import DeviceRecord, Observed, Participant, Switchover, Wish

OPERATOR = "vfio-operator"


class Turn(NamedTuple):
    """What a turn makes of leader and store, and the commands that it sends, by participant."""

    step: str
    lead: Lead
    etcd: Etcd
    sends: tuple[tuple[int, Cmd], ...]
    effects: tuple[tuple[Any, ...], ...]


class Operator:
    """Leaders of one shape; they differ only in what they know."""

    def __init__(self, shape: Shape, rules: Rules):
        self.shape, self.rules = shape, rules
        self._nodes = frozenset(p.node for p in shape.places)
        self._number = {(p.node, p.role): n for n, p in enumerate(shape.places)}
        self._all = (1 << len(shape.places)) - 1
        self._names = frozenset(f"{node}-{address}" for pair in shape.pairs for _, node, address in pair.ends)
        self._inventory = {
            (node, address): DeviceRecord(
                f"{node}-{address}", node, address, "sim", "sim:1", ALL, True, "workload" if role is Role.SOURCE else ""
            )
            for pair in shape.pairs
            for role, node, address in pair.ends
        }
        self._reports: dict[tuple[int, Report], SessionReport] = {}
        self._plans: dict[Lead, tuple[Observed, Plan]] = {}

    # -- what it knows

    def recall(self, lead: Lead, etcd: Etcd) -> Lead:
        """`MigrationTask.run` before its loop: everything that is stored."""
        return lead._replace(
            recalled=True,
            finalizer=etcd.finalizer,
            pairs=etcd.pairs,
            claims=bool(etcd.claims),
            exists=etcd.exists,
            decision=etcd.decision if etcd.pairs else None,
            by=etcd.by if etcd.pairs else "",
            failure=etcd.failure,
            recorded=etcd.failure,
            inherited=etcd.pairs,
            cancel=etcd.cancel,
            done=etcd.terminal is not None,
        )

    def hello(self, lead: Lead, number: int, said: Report | None) -> Lead:
        """`Agents.add`: what the agent says replaces what was known, but for an end that was reported."""
        seen = lead.seen[number]
        if said is None and seen.report is not None and seen.report.reached is Goal.RELEASED:
            said = seen.report
        return _with(lead, number, seen._replace(linked=True, sent=None, report=said))

    def reported(self, lead: Lead, number: int, report: Report) -> Lead:
        """`Agents.reported`."""
        if report.failure is Reason.STALE_EPOCH:
            report = report._replace(failure=None)
        return _with(lead, number, lead.seen[number]._replace(report=report))

    def observe(self, lead: Lead) -> Observed:
        pairs = self.shape.pairs
        places = self.shape.places if lead.pairs else ()
        return Observed(
            key=KEY,
            wish=Wish((), deleted=True) if lead.left else Wish(pairs, cancel=lead.cancel),
            nodes=self._nodes,
            connected=frozenset(p.node for p, seen in zip(self.shape.places, lead.seen, strict=True) if seen.linked),
            inventory=self._inventory,
            has_finalizer=lead.finalizer,
            pairs=pairs if lead.pairs else (),
            claims=self._names if lead.claims else frozenset(),
            participants=tuple(
                Participant(
                    place.node,
                    place.role,
                    connected=lead.seen[n].linked,
                    commanded=lead.seen[n].sent is not None,
                    data_address=place.node if lead.seen[n].linked else "",
                    report=self._session_report(n, lead.seen[n].report),
                )
                for n, place in enumerate(places)
            ),
            switchover=Switchover(lead.exists, lead.decision, lead.by),
            failure=_failure(lead.failure),
            recorded=_failure(lead.recorded),
            exhausted=lead.exhausted,
            inherited=lead.inherited,
            settled=all(seen.linked for seen in lead.seen),
            authorized=pairs if lead.authorized else None,
        )

    def _session_report(self, number: int, report: Report | None) -> SessionReport | None:
        if report is None:
            return None
        found = self._reports.get((number, report))
        if found is None:
            place = self.shape.places[number]
            found = self._reports[number, report] = SessionReport(
                KEY.uid,
                place.role,
                report.epoch,
                report.sequence,
                report.reached,
                report.backward,
                b"certificate",
                tuple(
                    DeviceReport(
                        f"gpu{n}", f"gpu{n}", DeviceState.RUNNING, ALL, initial_acknowledged=True, drained=True
                    )
                    for n in place.pairs
                ),
                _failure(report.failure),
                lost=report.lost,
                attempt=report.attempt,
            )
        return found

    def plan(self, lead: Lead) -> tuple[Observed, Plan]:
        found = self._plans.get(lead)
        if found is None:
            observed = self.observe(lead)
            found = self._plans[lead] = observed, planning.plan(observed)
        return found

    # -- what it does

    def turn(self, lead: Lead, etcd: Etcd) -> Turn | None:
        """One plan and its actions; None if they change nothing."""
        if not lead.recalled or lead.done:
            return None
        now = lead
        observed, planned = self.plan(lead)
        if planning.rolls_back(observed):
            failure = planning.first_failure(observed)
            now = now._replace(failure=failure.reason if failure else None)
            observed, planned = self.plan(now)
        stored, sends, effects = etcd, [], []
        for action in planned.actions:
            if isinstance(action, Send):
                now, cmd = self._send(now, self._number[action.node, action.role], action)
                if cmd is not None:
                    sends.append((self._number[action.node, action.role], cmd))
                continue
            now, stored, seen = self._write(observed, planned, now, stored, action)
            effects += seen
        if (now, stored) == (lead, etcd) and not sends:
            return None
        return Turn(planned.step, now, stored, tuple(sends), tuple(effects))

    def _write(
        self, observed: Observed, planned: Plan, now: Lead, etcd: Etcd, action: Any
    ) -> tuple[Lead, Etcd, list[tuple[Any, ...]]]:
        effects: list[tuple[Any, ...]] = []
        match action:
            case AddFinalizer():
                now, etcd = now._replace(finalizer=True), etcd._replace(finalizer=True)
            case Authorize():
                now = now._replace(authorized=True)
            case PersistPairs():
                now, etcd = now._replace(pairs=True), etcd._replace(pairs=True)
            case Look():
                pass  # the model's inventory is never late
            case Claim():
                now, etcd = now._replace(claims=True), etcd._replace(claims=self._all)
            case CreateSwitchover():
                etcd = etcd._replace(exists=True)
                now = now._replace(exists=True, decision=etcd.decision, by=etcd.by)
            case PersistFailure():
                now = now._replace(recorded=action.failure.reason)
                etcd = etcd if now.left else etcd._replace(failure=action.failure.reason)
            case Decide():
                now, etcd = self._decide(now, etcd, action.outcome, effects)
            case Unclaim():
                now, etcd = now._replace(claims=False), etcd._replace(claims=etcd.claims & self._away(observed))
            case Finish():
                now, etcd = self._finish(now, etcd, action, effects)
            case _:
                raise AssertionError(f"{planned.step}: {action} is not modelled")
        return now, etcd, effects

    def _decide(self, now: Lead, etcd: Etcd, outcome: Outcome, effects: list[tuple[Any, ...]]) -> tuple[Lead, Etcd]:
        etcd = decide(etcd, outcome, OPERATOR, effects, self.rules)
        return now._replace(exists=True, decision=etcd.decision, by=etcd.by), etcd

    def _away(self, observed: Observed) -> int:
        return sum(
            1 << self._number[p.node, p.role]
            for p in observed.participants
            if not p.connected and (p.touched or observed.inherited) and not is_released(p)
        )

    def _finish(self, now: Lead, etcd: Etcd, action: Finish, effects: list[tuple[Any, ...]]) -> tuple[Lead, Etcd]:
        if not now.left:
            terminal = action.phase, action.failure.reason if action.failure else None
            if etcd.terminal is None:
                effects.append(("finishes", *terminal))
            etcd = etcd._replace(terminal=terminal, finalizer=False)
        seen = tuple(
            s._replace(report=None) if s.report is not None and s.report.reached is Goal.RELEASED else s
            for s in now.seen
        )
        return now._replace(done=True, seen=seen), etcd

    def _send(self, lead: Lead, number: int, action: Send) -> tuple[Lead, Cmd | None]:
        """`Executor.send`: once per stream; again only after a failure that was reported after the last command."""
        seen = lead.seen[number]
        if not seen.linked:
            return lead, None
        attempts, last = 1, seen.sent
        if last is not None and last[:2] == (action.goal, action.decision) and last.attempt == action.attempt:
            report = seen.report
            if (
                report is None
                or report.failure is None
                or (report.epoch, report.sequence) < (last.epoch, last.sequence)
            ):
                return lead, None
            attempts = last.attempts + 1
            if attempts > self.rules.attempts:
                return lead._replace(exhausted=True), None
        if action.role is Role.TARGET and action.again and (last is None or last.attempt != action.attempt):
            if seen.reloads >= self.rules.reloads:
                return lead._replace(exhausted=True), None
            seen = seen._replace(reloads=seen.reloads + 1)
        sequence = next_number(seen.sequence, action.goal)
        sent = Sent(action.goal, action.decision, lead.epoch, sequence, action.attempt, attempts)
        cmd = Cmd(action.goal, action.decision, lead.epoch, sequence, action.attempt, action.again)
        return _with(lead, number, seen._replace(sent=sent, sequence=sequence)), cmd

    def expire(self, lead: Lead) -> Lead | None:
        """`_check_deadline`: the present step has lasted too long; None if it has no limit, or nothing follows."""
        if not lead.recalled or lead.done:
            return None
        observed, planned = self.plan(lead)
        if not planned.timeout_seconds:
            return None
        away = any(not p.connected and (p.touched or lead.inherited) for p in observed.participants)
        if not planning.rolls_back(observed) and lead.decision is None and lead.failure is None:
            return lead._replace(failure=Reason.AGENT_LOST if away else Reason.STEP_TIMEOUT)
        if away or lead.exhausted:
            return None
        return lead._replace(exhausted=True)

    # -- the janitor

    def undertake(self, lead: Lead, etcd: Etcd) -> Lead | None:
        """`Janitor._end`: a task for what is left of a finished migration; None if no connected agent has any of it."""
        orphans = any(s.linked and s.report is not None and s.report.reached is not Goal.RELEASED for s in lead.seen)
        if not lead.done or etcd.terminal is None or not orphans:
            return None
        if lead.left and any(s.reloads >= self.rules.reloads for s in lead.seen):
            return None  # it would ask for the same again and again
        seen = tuple(
            Seen(s.linked, None, s.report, s.report.sequence if s.report and s.report.epoch == lead.epoch else 0)
            for s in lead.seen
        )
        return Lead(
            lead.epoch,
            seen,
            recalled=True,
            pairs=True,
            claims=bool(etcd.claims),
            exists=etcd.exists,
            decision=etcd.decision,
            by=etcd.by,
            failure=etcd.failure,
            recorded=etcd.failure,
            inherited=True,
            left=True,
        )

    def free_claims(self, lead: Lead, etcd: Etcd) -> Etcd | None:
        """`Janitor._look`: claims of a finished migration whose agent is connected and reports no session of it."""
        if not lead.done or etcd.terminal is None or not etcd.claims:
            return None
        held = sum(
            1 << n
            for n, s in enumerate(lead.seen)
            if not s.linked or (s.report is not None and s.report.reached is not Goal.RELEASED)
        )
        return etcd._replace(claims=etcd.claims & held) if etcd.claims & ~held else None


def decide(etcd: Etcd, outcome: Outcome, by: str, effects: list[tuple[Any, ...]], rules: Rules) -> Etcd:
    """The store takes a decision if there is none: the CEL rule of the VFIOSwitchover."""
    if not etcd.exists or (etcd.decision is not None and rules.write_once):
        return etcd
    if etcd.decision is not outcome:
        effects.append(("decides", outcome, etcd.decision))
    return etcd._replace(decision=outcome, by=by)


def said(part: Part) -> Report | None:
    """What Hello tells of the session."""
    sess = part.sess
    if sess is None:
        return None
    return report_of(sess._replace(refused=None))


def _with(lead: Lead, number: int, seen: Seen) -> Lead:
    return lead._replace(seen=(*lead.seen[:number], seen, *lead.seen[number + 1 :]))


def _failure(reason: Reason | None) -> Failure | None:
    return Failure(reason, reason.value) if reason is not None else None
