"""Who takes part in a migration, and what is known of each: from its agent's stream and from what it was told."""

from collections.abc import Mapping, Sequence

from vfio_api.types import Role
from vfio_operator.agent_stream import AgentStream
from vfio_operator.channel import Agents
from vfio_operator.execute import Sent
from vfio_operator.observed import Pair, Participant


class Participants:
    """Of one migration. Of a barrier among many agents each report changes one participant: only that is made anew."""

    def __init__(self, agents: Agents, uid: str):
        self._agents, self._uid = agents, uid
        self._pairs: Sequence[Pair] = ()
        self._places: tuple[tuple[str, Role], ...] = ()
        self._made: dict[tuple[str, Role], tuple[tuple[object, ...], Participant]] = {}

    def of(self, pairs: Sequence[Pair], sent: Mapping[tuple[str, Role], Sent]) -> tuple[Participant, ...]:
        """Every side of the pairs on every node, sources first. sent: what each was told last."""
        if pairs is not self._pairs:
            self._pairs, self._places = pairs, _places(pairs)
        return tuple(self._one(place, sent.get(place)) for place in self._places)

    def _one(self, place: tuple[str, Role], sent: Sent | None) -> Participant:
        node, role = place
        stream, report = self._agents.stream(node), self._agents.report(node, self._uid, role)
        known = self._made.get(place)
        if known is not None and known[0][0] is stream and known[0][1] is report and known[0][2] is sent:
            return known[1]
        made = Participant(
            node=node,
            role=role,
            connected=stream is not None,
            commanded=_delivered(sent, stream),
            data_address=stream.hello.data_address if stream else "",
            report=report,
            turned=stream.turned(self._uid, role) if stream else None,
        )
        self._made[place] = (stream, report, sent), made
        return made


def _places(pairs: Sequence[Pair]) -> tuple[tuple[str, Role], ...]:
    """(node, role) of every side of the pairs on every node, sources first; an end of which nothing is left is none."""
    sources, targets = {p.source_node for p in pairs}, {p.target_node for p in pairs}
    sides = ((Role.SOURCE, sources), (Role.TARGET, targets))
    return tuple((node, role) for role, nodes in sides for node in sorted(nodes - {""}))


def _delivered(sent: Sent | None, stream: AgentStream | None) -> bool:
    """Whether a command may have arrived: it was said, and not on a stream that has since been replaced."""
    return sent is not None and (stream is None or sent.stream == stream.number)
