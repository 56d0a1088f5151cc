"""What goes wrong: processes, links, disks, users; each with how it is undone, and how it is known that it happened."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from devtools.faults.arena import stop_process, wake_process
from devtools.faults.points import Situation
from devtools.faults.story import End, Violation

SEEN_SECONDS = 0.4
OUTAGE_SECONDS = 4.5  # longer than the switchover timeout of a cell
Act = Callable[[Situation], None]
Check = Callable[[Situation], bool]


def _nothing(_situation: Situation) -> None:
    """Nothing to be undone."""


def _sure(_situation: Situation) -> bool:
    """It cannot but have happened."""
    return True


@dataclass(frozen=True)
class Kind:
    """fire: while time is stopped. heal: after it goes on; when it returns, the fault has ended.

    happened: asked at the end. alone: it concerns the operator or the API server, so that nothing else may run beside
    it. closes: the devices that it closes by itself.
    """

    name: str
    fire: Act
    heal: Act = _nothing
    happened: Check = _sure
    alone: bool = False
    closes: str = ""
    judge: Callable[[Situation], tuple[Violation, ...]] = lambda _situation: ()

    def closed(self, situation: Situation) -> tuple[End, ...]:
        """Devices that the fault itself closed: those of the first node of a side."""
        if not self.closes:
            return ()
        name = situation.nodes(self.closes)[0].name
        return tuple(end for end in (*situation.sources, *situation.targets) if end[0] == name)


def _pass_time(situation: Situation, seconds: float) -> None:
    """How long an outage lasts, unless the migration ends before."""
    situation.lane.arena.witness.wait_for_phase(situation.uid, TERMINAL, seconds)


TERMINAL = frozenset({"Succeeded", "Failed", "Cancelled", "Deleted"})


def _kill_operator(situation: Situation) -> None:
    arena = situation.lane.arena
    child = arena.leader()
    situation.notes["old"] = frozenset({arena.api.leader()[0]})
    child.kill()


def _await_other(situation: Situation) -> None:
    old = situation.notes["old"]
    assert isinstance(old, frozenset)
    situation.lane.arena.await_leader(old)


def _stop_operator(situation: Situation) -> None:
    arena = situation.lane.arena
    situation.notes["stopped"] = name = arena.api.leader()[0]
    situation.notes["old"] = frozenset({name})
    stop_process(arena.operators[name])


def _wake_operator(situation: Situation) -> None:
    _await_other(situation)
    arena, name = situation.lane.arena, str(situation.notes["stopped"])
    situation.notes["woken"] = datetime.now(UTC)
    wake_process(arena.operators[name])
    situation.lane.wait(lambda: not arena.operators[name].running, "the operator that was stopped ends", 20)


def _judge_woken(situation: Situation) -> tuple[Violation, ...]:
    woken, name = situation.notes.get("woken"), str(situation.notes["stopped"])
    if not isinstance(woken, datetime):
        return ()
    changed = situation.lane.arena.changed_by(name, woken)
    return tuple(Violation("Rest", f"{name} was replaced, and changed something after it woke: {c}") for c in changed)


def _kill_api(situation: Situation) -> None:
    situation.lane.arena.away.set()
    situation.lane.arena.stack.plane.kill()


def _restart_api(situation: Situation) -> None:
    situation.lane.arena.stopping.wait(1.0)
    situation.lane.arena.stack.plane.restart()
    situation.lane.arena.away.clear()


def _kill_agent(side: str) -> Act:
    def kill(situation: Situation) -> None:
        agent = situation.nodes(side)[0].node.agent
        assert agent is not None
        agent.kill()

    return kill


def _kill_keeper(side: str) -> Act:
    return lambda situation: situation.nodes(side)[0].node.keeper.kill()


def _kill_both(side: str) -> Act:
    def kill(situation: Situation) -> None:
        _kill_agent(side)(situation)
        _kill_keeper(side)(situation)

    return kill


def _revive(side: str) -> Act:
    return lambda situation: situation.nodes(side)[0].revive()


def _cut_control(side: str) -> Act:
    return lambda situation: situation.nodes(side)[0].operator_link.refuse()


def _freeze_control(side: str) -> Act:
    return lambda situation: situation.nodes(side)[0].operator_link.freeze()


def _mend_control(side: str) -> Act:
    def mend(situation: Situation) -> None:
        _pass_time(situation, OUTAGE_SECONDS)
        situation.nodes(side)[0].operator_link.clear()

    return mend


def _slow_control(situation: Situation) -> None:
    for side in ("source", "target"):
        situation.nodes(side)[0].operator_link.delay(0.4)


def _mend_slow_control(situation: Situation) -> None:
    _pass_time(situation, 2 * OUTAGE_SECONDS)
    for side in ("source", "target"):
        situation.nodes(side)[0].operator_link.clear()


def _cut_data(situation: Situation) -> None:
    link = situation.nodes("target")[0].data_link
    situation.notes["connections"] = link.connections
    link.cut()


def _stall_data(situation: Situation) -> None:
    link = situation.nodes("target")[0].data_link
    situation.notes["connections"] = link.connections
    link.freeze()


def _mend_data(situation: Situation) -> None:
    _pass_time(situation, 2 * OUTAGE_SECONDS)
    situation.nodes("target")[0].data_link.clear()


def _there_was_a_stream(situation: Situation) -> bool:
    return bool(situation.notes.get("connections"))


def _corrupt_data(situation: Situation) -> None:
    link = situation.nodes("target")[0].data_link
    situation.notes["corrupted"] = link.corrupted
    link.corrupt()


def _corrupted(situation: Situation) -> bool:
    before = situation.notes["corrupted"]
    assert isinstance(before, int)
    return situation.nodes("target")[0].data_link.corrupted > before


def _fill_disk(side: str) -> Act:
    return lambda situation: situation.nodes(side)[0].full_disk.touch()


def _free_disk(side: str) -> Act:
    def free(situation: Situation) -> None:
        _pass_time(situation, OUTAGE_SECONDS)
        node = situation.nodes(side)[0]
        situation.notes["hits"] = node.full_disk_hits
        node.full_disk.unlink()

    return free


def _was_full(situation: Situation) -> bool:
    return bool(situation.notes.get("hits"))


def _cancel(situation: Situation) -> None:
    situation.lane.arena.api.cancel(situation.lane.name, situation.name)
    _be_seen(situation)


def _delete(situation: Situation) -> None:
    situation.lane.arena.api.delete(situation.lane.name, situation.name)
    _be_seen(situation)


def _be_seen(situation: Situation) -> None:
    """Time stands still for long enough that the operator's watch sees it: else the migration may be faster."""
    situation.lane.arena.stopping.wait(SEEN_SECONDS)


KINDS: tuple[Kind, ...] = (
    Kind("operator killed", _kill_operator, _await_other, alone=True),
    Kind("operator stopped", _stop_operator, _wake_operator, alone=True, judge=_judge_woken),
    Kind("API server killed", _kill_api, _restart_api, alone=True),
    Kind("source agent killed", _kill_agent("source"), _revive("source")),
    Kind("target agent killed", _kill_agent("target"), _revive("target")),
    Kind("source keeper killed", _kill_keeper("source"), _revive("source")),
    Kind("target keeper killed", _kill_keeper("target"), _revive("target")),
    Kind("source agent and keeper killed", _kill_both("source"), _revive("source"), closes="source"),
    Kind("target agent and keeper killed", _kill_both("target"), _revive("target"), closes="target"),
    Kind("source control link cut", _cut_control("source"), _mend_control("source")),
    Kind("target control link cut", _cut_control("target"), _mend_control("target")),
    Kind("source control link half-open", _freeze_control("source"), _mend_control("source")),
    Kind("target control link half-open", _freeze_control("target"), _mend_control("target")),
    Kind("control links slow", _slow_control, _mend_slow_control),
    Kind("data link cut", _cut_data, happened=_there_was_a_stream),
    Kind("data link stalled", _stall_data, _mend_data, happened=_there_was_a_stream),
    Kind("data link corrupted", _corrupt_data, happened=_corrupted),
    Kind("source disk full", _fill_disk("source"), _free_disk("source"), happened=_was_full),
    Kind("target disk full", _fill_disk("target"), _free_disk("target"), happened=_was_full),
    Kind("cancelled", _cancel),
    Kind("deleted", _delete),
)
