"""Why a migration is where it is, in sentences, with the next step: from what the API server holds of it. Pure."""

import errno as errors
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from vfio_api.errors import Reason
from vfio_api.models_migration import Mode
from vfio_api.models_status import ConditionType, Phase
from vfio_api.reasons import ConditionReason
from vfio_cli.fields import (
    Json,
    age_text,
    condition_of,
    counterpart_of,
    downtime_limit,
    ended_at,
    full_name,
    has_succeeded,
    is_committed,
    is_finished,
    moment,
    moved_pod,
    pairs_of,
    phase_of,
    queue_position,
    route_of,
    size_text,
    word_of,
)
from vfio_cli.outcome import at_worst, end_text, pod_text
from vfio_cli.remedies import remedies
from vfio_cli.waterfall import DOWN_STEPS, WORDS, duration_text, operator_steps

# After these the sources do not simply run on as before.
_LOST = (Reason.SOURCE_STATE_LOST, Reason.TARGET_LOST_AFTER_COMMIT, Reason.ROLLBACK_INCOMPLETE)
_MILESTONES = (
    ConditionType.VALIDATED,
    ConditionType.PREPARED,
    ConditionType.CONVERGED,
    ConditionType.QUIESCED,
    ConditionType.COMMITTED,
)
_UNSEEN_SECONDS = 10
_EVENTS = 8


@dataclass(frozen=True, slots=True)
class Case:
    """All that is known of one migration, and when it was asked. devices and events may be those of others, too."""

    body: Json
    switchover: Json | None
    devices: Sequence[Json]
    events: Sequence[Json]
    now: datetime


@dataclass(frozen=True, slots=True)
class Story:
    """headline: where it is; sentences: why; events: what happened; next_steps: what to do, the most telling first."""

    headline: str
    sentences: tuple[str, ...]
    events: tuple[str, ...]
    next_steps: tuple[str, ...]


def explain(case: Case) -> Story:
    """The story of a migration."""
    body = case.body
    ended = ended_at(body)
    since = case.now - (ended or moment(body["metadata"]["creationTimestamp"]))
    age = age_text(since.total_seconds())
    when = f"ended {age} ago" if ended else f"created {age} ago"
    headline = f"VFIOMigration {full_name(body)}: {phase_of(body)}, {when}"
    sentences = [_what(body), *_around(body)]
    sentences += _ended(case) if is_finished(body) else _under_way(case)
    sentences += [*_decision(case), *_figures(body), *_of_devices(case)]
    return Story(headline, tuple(sentences), tuple(_happened(case)), tuple(dict.fromkeys(_next_steps(case))))


def _what(body: Json) -> str:
    pairs, mode = pairs_of(body), body["spec"].get("mode", Mode.MIGRATE)
    what = f"{len(pairs)} device{'s' if len(pairs) != 1 else ''}" if pairs else "every migratable device in use"
    if moved_pod(body):
        what = f"pod {moved_pod(body)} with {what if pairs else 'its devices'}"
    names = f" ({', '.join(p['name'] for p in pairs[:6])}{', ...' if len(pairs) > 6 else ''})" if pairs else ""
    verb = {Mode.MIGRATE: "moves", Mode.PLAN: "checks, without touching anything, whether it can move"}
    return f"It {verb.get(mode, 'rehearses to move')} {what}{names}, {route_of(body)}."


def _around(body: Json) -> Iterator[str]:
    """Its pods, its policy, and whom it waits for."""
    status = body.get("status", {})
    if moved_pod(body) and status.get("workload"):
        yield f"The pods: {pod_text(body)}."
    if status.get("policy"):
        yield f"What its spec does not say is as VFIOMigrationPolicy {status['policy']} says."
    if queue_position(status):
        yield f"It waits for others to end: it is number {queue_position(status)} of those that wait."


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) or not text else f"{text}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _under_way(case: Case) -> Iterator[str]:
    status = case.body.get("status", {})
    if not status:
        if _unseen(case):
            yield "No operator has taken it up, and one that leads takes moments: it seems that none leads."
        else:
            yield "No operator has taken it up yet: it has no status."
        return
    phase = word_of(phase_of(case.body))
    if phase is not None:
        yield phase.meaning
    if status.get("message"):
        yield f"Just now: {_sentence(status['message'])}"
    passed = [kind for kind in _MILESTONES if condition_of(case.body, kind)["status"] == "True"]
    waits = next((kind for kind in _MILESTONES if kind not in passed), None)
    if passed:
        yield f"It has passed {', '.join(passed)}."
    if waits is not None and phase_of(case.body) != Phase.ROLLING_BACK:
        found = condition_of(case.body, waits)
        word = word_of(str(found["reason"]))
        why = word.meaning if word is not None and found["reason"] != ConditionReason.NOT_REACHED else ""
        said = found["message"] if found["message"] not in (status.get("message"), "") else ""
        yield " ".join(part for part in (f"It is not {waits} yet.", why, _sentence(str(said))) if part)


def _unseen(case: Case) -> bool:
    """Whether an operator that leads would have written a status by now."""
    age = (case.now - moment(case.body["metadata"]["creationTimestamp"])).total_seconds()
    return age >= _UNSEEN_SECONDS


def _ended(case: Case) -> Iterator[str]:
    body, found = case.body, condition_of(case.body, ConditionType.SUCCEEDED)
    word = word_of(str(found["reason"]))
    if has_succeeded(body):
        yield _capital(_sentence(str(body["status"].get("message", "")) or "it did what was asked for"))
        return
    if word is not None:
        yield f"{found['reason']}: {word.meaning}"
    yield f"Found: {_sentence(str(found['message']))}"
    failure = body["status"].get("failure", {})
    if failure.get("device"):
        pair = next((p for p in pairs_of(body) if p["name"] == failure["device"]), None)
        where = f", {end_text(pair['source'])} to {end_text(pair['target'])}" if pair else ""
        code = failure.get("errno")
        number = f" with errno {code} ({errors.errorcode.get(code, 'unknown')})" if code else ""
        arc = f" refused the arc {failure['arc']}{number}" if failure.get("arc") else f" is the one{number}"
        yield f"Pair {failure['device']}{where},{arc}."
    reached = [kind for kind in _MILESTONES if condition_of(body, kind)["status"] == "True"]
    if case.switchover is not None:
        yield "It had come as far as the switchover."
    else:
        yield f"It had come as far as {reached[-1]}." if reached else "It had not come as far as Validated."
    if found["reason"] == Reason.RESUME_FAILED and not is_committed(body):
        yield "No device has lost anything: every source is as it was before. Whoever uses them may be paused still."
    elif found["reason"] not in _LOST and not is_committed(body):
        yield "Nothing is lost: every source is as it was before, and no target has kept anything."


def _decision(case: Case) -> Iterator[str]:
    if case.switchover is None:
        return
    decision = (case.switchover.get("status") or {}).get("decision")
    epoch = case.switchover["spec"]["epoch"]
    if decision is None:
        yield (
            f"The switchover has begun (epoch {epoch}) and nobody has decided yet: sources that hear nothing for "
            f"{case.switchover['spec']['timeoutSeconds']} s ask for Abort by themselves."
        )
    else:
        yield f"The decision of the switchover is {decision['outcome']}, by {decision['by']} at {decision['time']}."


def _figures(body: Json) -> Iterator[str]:
    status = body.get("status", {})
    was, predicted = status.get("downtimeMicroseconds"), status.get("predictedDowntimeMicroseconds")
    limit = downtime_limit(body)
    if was is not None:
        forecast = f"; {duration_text(predicted)} was predicted" if predicted is not None else ""
        yield f"The downtime was {duration_text(was)}{forecast}."
    elif predicted is not None and phase_of(body) != Phase.CANCELLED:
        over = limit is not None and predicted > 1000 * limit
        bound = "" if limit is None else f", {'over' if over else 'within'} the limit of {limit} ms"
        yield f"The forecast of the downtime is {duration_text(predicted)}{bound}{at_worst(body) if over else ''}."
    progress = status.get("progress", {})
    if progress.get("bytes"):
        rate = progress.get("bytesPerSecond")
        speed = f" at {size_text(rate)}/s" if rate and not is_finished(body) else ""
        are = "were" if is_finished(body) else "are"
        yield f"{size_text(progress['bytes'])} of state {are} copied{speed} ({progress.get('percent', 0)}%)."
    steps = operator_steps(status.get("timings", []))
    if steps:
        longest = max(steps, key=lambda step: step.duration)
        label = longest.label
        name = f"the switchover's {label}" if label in DOWN_STEPS else WORDS.get(label, label)
        yield f"Most of its time went into: {name} ({duration_text(longest.duration)})."


def _of_devices(case: Case) -> Iterator[str]:
    """What the inventory says of its devices that matters."""
    known = {(d["spec"]["nodeName"], d["spec"]["address"]): d for d in case.devices}
    uid = case.body["metadata"]["uid"]
    for pair in pairs_of(case.body):
        for side in ("source", "target"):
            end = pair[side]
            found = known.get((end["nodeName"], end["device"]))
            called = f"The {side} of {pair['name']}, {end_text(end)},"
            if found is None:
                if case.devices:
                    yield f"{called} is not in the inventory."
                continue
            claim, status = found["spec"].get("claimRef"), found.get("status") or {}
            if claim and claim["uid"] != uid:
                yield f"{called} is reserved by {claim['namespace']}/{claim['name']}."
            elif claim and is_finished(case.body):
                yield f"{called} is still reserved by this migration."
            if status.get("state") == "ERROR":
                yield f"{called} is in ERROR: only a reset leads out, which erases its state."
            if status.get("message"):
                yield f"{called} reports: {_sentence(status['message'])}"


def _happened(case: Case) -> Iterator[str]:
    """The newest Events of this very object, in their order."""
    uid = case.body["metadata"]["uid"]
    own = [e for e in case.events if e.get("regarding", {}).get("uid") == uid]
    stamped = sorted(((_stamp(event), event) for event in own), key=lambda pair: pair[0])
    for stamp, event in stamped[-_EVENTS:]:
        ago = age_text((case.now - moment(stamp)).total_seconds()) if stamp else "?"
        yield f"{ago} ago  {event.get('type', '')} {event.get('reason', '')}: {event.get('note', '')}"


def _stamp(event: Json) -> str:
    return str(event.get("eventTime") or event.get("deprecatedLastTimestamp") or event["metadata"]["creationTimestamp"])


def _next_steps(case: Case) -> Iterator[str]:
    body, found = case.body, condition_of(case.body, ConditionType.SUCCEEDED)
    name, space = body["metadata"]["name"], body["metadata"]["namespace"]
    if is_finished(body):
        word = word_of(str(found["reason"] if not has_succeeded(body) else phase_of(body)))
        if has_succeeded(body) and body["spec"].get("mode") != Mode.MIGRATE:
            word = word_of(str(found["reason"]))
        if word is not None:
            yield word.next_step
        if not has_succeeded(body):
            yield from remedies(str(found["reason"]), namespace=space, pod=moved_pod(body), other=counterpart_of(body))
        if case.switchover is not None or has_succeeded(body):
            yield f"To see where the time went: kubectl vfio timeline {name} -n {space}"
        return
    if not body.get("status"):
        if _unseen(case):
            yield "See whether an operator leads: kubectl vfio doctor"
            yield "What to do then: docs/runbooks/VFIONoLeader.md of the project"
        else:
            yield f"Wait a moment, then again: kubectl vfio explain {name} -n {space}"
        return
    waits = next((k for k in _MILESTONES if condition_of(body, k)["status"] != "True"), None)
    if waits is not None and phase_of(body) != Phase.ROLLING_BACK:
        reason = condition_of(body, waits)["reason"]
        word = word_of(str(reason))
        yield word.next_step if word is not None and reason != ConditionReason.NOT_REACHED else waits.next_step
    phase = word_of(phase_of(body))
    if phase is not None:
        yield phase.next_step
    yield f"Watch it: kubectl vfio watch {name} -n {space}"
    if not is_committed(body):
        yield f"To give up: kubectl vfio cancel {name} -n {space}"
