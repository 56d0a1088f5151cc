"""Whether the promises of the design were kept in one story: a table of small rules. Pure.

The rules know neither agents nor operators nor what they say, only what devices did, what was decided, and how it
ended. They do not ask whether something was reasonable, only whether it was allowed.
"""

from collections.abc import Callable, Iterator

from devtools.faults.history import Event
from devtools.faults.story import (
    CLOCK_SECONDS,
    QUIESCENT,
    RUNS,
    SOURCE_LOST,
    STOPPED,
    TARGET_LOST,
    TERMINAL,
    Decision,
    End,
    EndState,
    Pair,
    Story,
    View,
    Violation,
)

__all__ = ["RULES", "Decision", "EndState", "Story", "Violation", "check"]


def never_both(view: View) -> Iterator[str]:
    """From the first STOP_COPY on, at most one device of an identity is in a running state."""
    for pair in view.pairs:
        began: float | None = None
        running: dict[End, Event] = {}
        for event in view.of_all((pair.source, pair.target)):
            if began is None and event.end == pair.source and event.new == "STOP_COPY" and not event.errno:
                began = event.t
            if event.after in RUNS and event.port is not None:
                running[event.end] = event
            else:
                running.pop(event.end, None)
            if began is not None and len({e.port for e in running.values()}) < len(running):
                yield f"pair {pair.name}: port {event.port} runs twice: {' and '.join(map(str, running.values()))}"


def target_starts_after_commit(view: View) -> Iterator[str]:
    """A loaded target leaves STOP for a running state only once the decision is Commit."""
    for target in view.targets:
        for life in view.lives(target):
            for arc in life.entered(RUNS):
                if not view.committed_by(arc.began):
                    yield f"a loaded target left STOP without Commit: {arc} ({_decided(view)})"


def source_stays_after_commit(view: View) -> Iterator[str]:
    """A source never enters a running state after Commit."""
    for source in view.sources:
        for event in view.of(source):
            if event.kind in ("close", "open", "reset") and not event.errno:
                break  # blank from here on
            if _enters(event, RUNS) and view.commit is not None and event.t > view.commit:
                yield f"a source runs again after Commit: {event} ({_decided(view)})"


def source_returns_after_abort(view: View) -> Iterator[str]:
    """A source that was stopped begins its way back only after Abort."""
    for source in view.sources:
        stopped = False
        for event in view.of(source):
            if _enters(event, frozenset({"STOP_COPY"})):
                stopped = True
            elif stopped and _enters(event, RUNS):
                stopped = False
                if not view.aborted_by(event.began) and not view.committed_by(event.t):
                    yield f"a stopped source runs again without Abort: {event} ({_decided(view)})"


def one_identity(view: View) -> Iterator[str]:
    """A target is loaded with the state of its own source, and one that has run is never loaded again."""
    for pair in view.pairs:
        ran = None
        for life in view.lives(pair.target):
            wanted = view.port(pair.source)
            if life.loaded.port != wanted:
                yield f"pair {pair.name}: loaded as port {life.loaded.port}, not {wanted}: {life.loaded}"
            if ran is not None:
                yield f"pair {pair.name}: loaded again after it had run ({ran}): {life.loaded}"
            ran = next(life.entered(RUNS), ran)


def decided_once(view: View) -> Iterator[str]:
    """There is one decision."""
    outcomes = {decision.outcome for decision in view.story.decisions}
    if len(outcomes) > 1:
        yield f"it was decided twice: {', '.join(f'{d.outcome} by {d.by}' for d in view.story.decisions)}"


def commit_after_every_load(view: View) -> Iterator[str]:
    """When Commit is made, every target holds the whole state."""
    if view.commit is None:
        return
    for pair in view.pairs:
        lives = view.lives(pair.target)
        if not any(life.loaded.t <= view.commit + CLOCK_SECONDS for life in lives):
            loaded = str(lives[0].loaded) if lives else "never loaded"
            yield f"pair {pair.name}: {_decided(view)} before its target had loaded: {loaded}"


def source_is_kept(view: View) -> Iterator[str]:
    """A source is not closed or reset before every target runs, unless its state was lost, and that is said."""
    for event in view.of_all(view.sources):
        if event.kind not in ("close", "reset", "open") or event.errno or view.ran_all(event.t):
            continue
        if event.old == "ERROR" or event.end in view.story.closed_by_fault or view.honest():
            continue
        yield f"a source was given up before every target ran: {event}"


def loaded_target_is_kept(view: View) -> Iterator[str]:
    """What a target has loaded is not taken away before Abort; after Commit only while the source still holds it."""
    for pair in view.pairs:
        lives = view.lives(pair.target)
        for number, life in enumerate(lives):
            gone = life.ended
            if gone is None or gone.after == "ERROR" or pair.target in view.story.closed_by_fault:
                continue
            if view.aborted_by(gone.t):
                continue
            ran = next(life.entered(RUNS), None)
            held = view.committed_by(gone.t) and view.state(pair.source, gone.t) in STOPPED and number + 1 < len(lives)
            if ran is not None or not held:
                yield f"pair {pair.name}: what was loaded was taken away: {gone} ({_decided(view)})"


def barrier_a(view: View) -> Iterator[str]:
    """No source is stopped before all sources are quiescent."""
    quiescent: set[End] = set()
    for event, before in _in_order(view, view.sources):
        if before:
            waited = set(view.sources) - quiescent
            if event.new in STOPPED and event.old not in STOPPED and len(view.pairs) > 1 and waited:
                yield f"barrier A: {event} began at {event.began:.6f}, before {_names(waited)} was quiescent"
        elif _enters(event, QUIESCENT | STOPPED):
            quiescent.add(event.end)
        elif not event.errno and event.end not in view.story.closed_by_fault:
            quiescent.discard(event.end)


def barrier_d(view: View) -> Iterator[str]:
    """No loaded target enters RUNNING before all targets have come to RUNNING_P2P."""
    passed: set[End] = set()
    loaded: set[End] = set()
    for event, before in _in_order(view, view.targets):
        if event.kind != "arc":
            loaded.discard(event.end)  # a blank device goes through these states, too
            continue
        if before:
            waited = set(view.targets) - passed
            if view.story.reason == TARGET_LOST and view.honest():
                waited = {end for end in waited if not view.excused(end)}  # those that are left start without it
            if event.new == "RUNNING" and event.end in loaded and len(view.pairs) > 1 and waited:
                yield f"barrier D: {event} began at {event.began:.6f}, before {_names(waited)} was in RUNNING_P2P"
        elif event.errno:
            continue
        elif event.new == "RESUMING":
            loaded.discard(event.end)
            passed.discard(event.end)
        elif (event.old, event.new) == ("RESUMING", "STOP"):
            loaded.add(event.end)
        elif event.new == "RUNNING_P2P" and event.end in loaded:
            passed.add(event.end)


def barrier_back(view: View) -> Iterator[str]:
    """On the way back no source enters RUNNING before all are in RUNNING_P2P, or never left, or are in ERROR."""
    states = {source: view.state(source, float("-inf")) for source in view.sources}
    for event, before in _in_order(view, view.sources):
        if not before:
            states[event.end] = event.after
            continue
        if event.kind != "arc" or (event.old, event.new) != ("RUNNING_P2P", "RUNNING"):
            continue
        waited = {
            end
            for end, state in states.items()
            if state in STOPPED | {"PRE_COPY_P2P"} and end not in view.story.closed_by_fault
        }
        if waited:
            yield f"barrier back: {event} began at {event.began:.6f}, while {_names(waited)} was not in RUNNING_P2P"


def it_ends(view: View) -> Iterator[str]:
    """The migration is in a terminal phase."""
    if view.story.phase not in TERMINAL:
        yield f"it has not ended: phase {view.story.phase or 'none'}"


def decision_and_phase(view: View) -> Iterator[str]:
    """What succeeded was committed; what was committed succeeded, or says what was lost."""
    story = view.story
    if story.phase == "Succeeded" and view.commit is None:
        yield f"it succeeded, and {_decided(view)}"
    if story.phase in ("Failed", "Cancelled") and view.commit is not None and not view.honest():
        yield f"it {story.phase} with {story.reason or 'no reason'}, and {_decided(view)}"


def losses_are_said(view: View) -> Iterator[str]:
    """A reason that says that a state was lost is true; and a state that was lost is not passed over."""
    story = view.story
    if story.reason in (SOURCE_LOST, TARGET_LOST) and not view.honest():
        yield f"reason {story.reason}, but no device was lost: nothing fell into ERROR or was closed"
    if story.phase in ("Failed", "Cancelled") and view.commit is None and story.reason != SOURCE_LOST:
        for source in view.sources:
            if view.excused(source):
                yield f"the state of {_names({source})} was lost, but the reason is {story.reason or 'none'}"


def one_side_runs(view: View) -> Iterator[str]:
    """The workload runs on exactly one side, marks intact; what was lost is excused if that is said."""
    if view.story.phase not in TERMINAL:
        return
    for pair in view.pairs:
        source, target = view.story.end.get(pair.source), view.story.end.get(pair.target)
        on = [end for end, found in ((pair.source, source), (pair.target, target)) if _works(found)]
        if _works(source, RUNS) and _works(target, RUNS):
            yield f"pair {pair.name}: both sides run: source {source}, target {target}"
        wanted = pair.target if view.commit is not None else pair.source
        if on != [wanted] and not _is_loss(view, pair):
            yield f"pair {pair.name}: {_names({wanted})} should run: source {source}, target {target}"
        for end in on:
            if not view.story.end[end].marks_ok:
                yield f"pair {pair.name}: {_names({end})} runs without what was written into it"


def no_write_is_lost(view: View) -> Iterator[str]:
    """Every P2P write arrives once, unless a device that should have answered was lost."""
    story = view.story
    excused = bool(story.closed_by_fault) or bool(view.fell((*view.sources, *view.targets)))
    if (story.lost or story.missing) and not excused:
        yield f"P2P writes lost {story.lost}, missing {story.missing}"
    if story.doubled:
        yield f"P2P writes answered twice: {story.doubled}"


def nothing_is_claimed(view: View) -> Iterator[str]:
    """No device is reserved any more."""
    if view.story.claims_left and view.story.phase in TERMINAL:
        yield f"{view.story.claims_left} claims are left"


def idle_side_is_blank(view: View) -> Iterator[str]:
    """The side that does not run is closed and blank."""
    story = view.story
    if story.phase not in TERMINAL:
        return
    for pair in view.pairs:
        idle = pair.source if view.commit is not None else pair.target
        found = story.end.get(idle)
        if found is not None and (found.open or found.port is not None):
            yield f"pair {pair.name}: {_names({idle})} should be closed and blank: {found}"


def target_stays_blank(view: View) -> Iterator[str]:
    """A target that was blanked and closed on the way back is not opened again."""
    for target in view.targets:
        kinds: list[str] = []
        for event in view.of(target):
            if event.kind == "arc" or event.errno:
                continue
            given_back = kinds[-2:] == ["reset", "close"] and target not in view.story.closed_by_fault
            if event.kind == "open" and given_back and view.commit is None:
                yield f"a target that was given back is taken again: {event}"
            kinds.append(event.kind)


Rule = Callable[[View], Iterator[str]]

RULES: tuple[tuple[str, Rule], ...] = (
    ("I1", never_both),
    ("I1", target_starts_after_commit),
    ("I1", source_stays_after_commit),
    ("I1", source_returns_after_abort),
    ("I1", one_identity),
    ("I1", decided_once),
    ("I2", commit_after_every_load),
    ("I2", source_is_kept),
    ("I2", loaded_target_is_kept),
    ("I3", barrier_a),
    ("I3", barrier_d),
    ("I3", barrier_back),
    ("I4", it_ends),
    ("I4", decision_and_phase),
    ("I4", losses_are_said),
    ("I4", one_side_runs),
    ("I4", idle_side_is_blank),
    ("I4", target_stays_blank),
    ("P2P", no_write_is_lost),
    ("Rest", nothing_is_claimed),
)


def check(story: Story) -> tuple[Violation, ...]:
    """Every promise that was broken in the story, in the order of RULES."""
    view = View(story)
    return tuple(Violation(invariant, message) for invariant, rule in RULES for message in rule(view))


def _enters(event: Event, states: frozenset[str]) -> bool:
    return event.kind == "arc" and not event.errno and event.new in states


def _in_order(view: View, ends: tuple[End, ...]) -> Iterator[tuple[Event, bool]]:
    """Every event twice: where it began (True) and where it ended (False); of the same moment, the end first."""
    events = view.of_all(ends)
    moments = [(event.began, 1, n, event) for n, event in enumerate(events)]
    moments += [(event.t, 0, n, event) for n, event in enumerate(events)]
    for _, begins, _, event in sorted(moments, key=lambda moment: moment[:3]):
        yield event, bool(begins)


def _decided(view: View) -> str:
    decision = view.story.decision
    if decision is None:
        return "nothing was decided"
    at = decision.time - view.story.wall_minus_monotonic
    return f"{decision.outcome} by {decision.by} at {at:.6f}"


def _names(ends: set[End]) -> str:
    return ", ".join(f"{node}/{device}" for node, device in sorted(ends))


def _works(found: EndState | None, states: frozenset[str] = frozenset({"RUNNING"})) -> bool:
    return found is not None and found.open and found.state in states and found.port is not None


def _is_loss(view: View, pair: Pair) -> bool:
    if not view.honest():
        return False
    return view.excused(pair.target if view.story.reason == TARGET_LOST else pair.source)
