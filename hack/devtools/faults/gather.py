"""Puts a story together from the simulators and the witness, and from nothing else."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from devtools.faults import history
from devtools.faults.checker import EndState, Story
from devtools.faults.story import End
from devtools.faults.witness import Record, wall_minus_monotonic
from devtools.stack import Node
from vfio_agent.devices.simulated import SimulatorControl


class Gatherer:
    """Everything that happens on `nodes` from now on: made when the workload has its devices, before a migration."""

    def __init__(self, nodes: Iterable[Node]):
        self._nodes = list(nodes)
        self._since = {node.name: history.count(node.trace) for node in self._nodes}
        self._began = {node.name: self._stats(node)["totals"] for node in self._nodes}

    @staticmethod
    def _stats(node: Node) -> Mapping[str, Any]:
        return SimulatorControl(node.simulator_socket).stats()

    def events(self) -> tuple[history.Event, ...]:
        """What has happened so far."""
        return history.merge(*(history.read(n.name, n.trace, self._since[n.name]) for n in self._nodes))

    def story(
        self,
        record: Record,
        uid: str,
        pairs: Iterable[tuple[str, str, str, str, str]],
        *,
        marks_ok: Callable[[End, End], bool],
        claims_left: int,
        closed_by_fault: Iterable[End] = (),
    ) -> Story:
        """The story of a migration, when all is over.

        marks_ok(pair's source, open device): whether the device has what the workload wrote into the source.
        """
        pairs = tuple(pairs)
        stats = {node.name: self._stats(node) for node in self._nodes}
        events = self.events()  # after the figures: whoever closes a device to blank it comes later
        end: dict[End, EndState] = {}
        for _, source_node, source, target_node, target in pairs:
            for node, device in ((source_node, source), (target_node, target)):
                found = stats[node]["devices"][device]
                marked = bool(found["open"]) and marks_ok((source_node, source), (node, device))
                end[node, device] = EndState(found["state"], found["open"], marked, found["port"])
        phases = record.phases(uid)
        return Story(
            pairs,
            events,
            record.decision(uid),
            phases[-1][1] if phases else "",
            record.reason(uid),
            wall_minus_monotonic(),
            end,
            lost=self._more(stats, "lost"),
            doubled=self._more(stats, "doubled"),
            missing=sum(int(stats[node.name]["totals"]["missing"]) for node in self._nodes),
            claims_left=claims_left,
            closed_by_fault=frozenset(closed_by_fault),
            decisions=record.decisions(uid),
        )

    def _more(self, stats: Mapping[str, Mapping[str, Any]], figure: str) -> int:
        return sum(
            int(stats[node.name]["totals"][figure]) - int(self._began[node.name][figure]) for node in self._nodes
        )
