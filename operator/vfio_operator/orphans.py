"""What is left of a migration that nobody looks after any more, put together from what there still is. Pure."""

from collections.abc import Iterable

from vfio_api.types import Role, SessionReport
from vfio_operator.observed import Pair


def pairs_of(
    sessions: Iterable[tuple[str, SessionReport]], source_nodes: Iterable[str], target_nodes: Iterable[str]
) -> tuple[Pair, ...]:
    """Pairs from (node, report) of its sessions, and from the nodes that its VFIOSwitchover names, if there is one.

    An end that nobody reports is "". A node without a device in any pair has one of its own with that node as its only
    end: it takes part, so it is waited for.
    """
    ends: dict[str, dict[Role, tuple[str, str]]] = {}
    nodes: dict[Role, set[str]] = {Role.SOURCE: set(source_nodes), Role.TARGET: set(target_nodes)}
    for node, report in sessions:
        nodes[report.role].add(node)
        for device in report.devices:
            ends.setdefault(device.name, {})[report.role] = node, device.address
    nowhere = ("", "")
    pairs = [
        Pair(name, *found.get(Role.SOURCE, nowhere), *found.get(Role.TARGET, nowhere))
        for name, found in sorted(ends.items())
    ]
    sources = sorted(nodes[Role.SOURCE] - {p.source_node for p in pairs})
    targets = sorted(nodes[Role.TARGET] - {p.target_node for p in pairs})
    return (
        *pairs,
        *(Pair(f"source-on-{node}", node, "", *nowhere) for node in sources),
        *(Pair(f"target-on-{node}", *nowhere, node, "") for node in targets),
    )
