"""Validation before anything is touched: a list of checks, read top-down, the first that fires refuses. Pure.

Each message names the pair or device, what was expected, what was found, and the next step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from vfio_api.device import MigrationFlags
from vfio_api.errors import Reason
from vfio_api.types import Failure
from vfio_operator.observed import DeviceRecord, Observed, Pair, Shorthand
from vfio_operator.pairing import pair_up


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a migration would move, and everything that speaks against it; the first of it refuses."""

    pairs: tuple[Pair, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def failure(self) -> Failure | None:
        """Why the migration cannot be done, or None."""
        return self.failures[0] if self.failures else None


def resolve(observed: Observed) -> Resolution:
    """The pairs, and why they cannot be migrated if so. Looks only at the inventory and the spec."""
    if observed.wish.unsupported:
        return Resolution((), (Failure(Reason.UNSUPPORTED_SPEC, observed.wish.unsupported),))
    if observed.policy_conflict is not None:
        return Resolution((), (observed.policy_conflict,))
    pairs, failure = observed.wish.pairs, None
    if observed.wish.shorthand is not None:
        pairs, failure = _short(observed, observed.wish.shorthand)
    if failure is not None:
        return Resolution(pairs, (failure,))
    named = replace(observed, wish=replace(observed.wish, pairs=pairs))
    return Resolution(pairs, tuple(failure for check in CHECKS for failure in check(named)))


def _short(observed: Observed, wanted: Shorthand) -> tuple[tuple[Pair, ...], Failure | None]:
    if wanted.pod:
        failure = _pod(observed, wanted.pod)
        if failure is not None or observed.move.source is None:
            return (), failure
        wanted = replace(wanted, source_node=observed.move.source.node)
    if wanted.target_pod:
        failure = _target_pod(observed, wanted.target_pod)
        if failure is not None or observed.move.target is None:
            return (), failure
        wanted = replace(wanted, target_node=observed.move.target.node)
    for end, node in (("source", wanted.source_node), ("target", wanted.target_node)):
        failure = _node(observed, f"spec.{end}", end, node, "")
        if failure is not None:
            return (), failure
    return pair_up(observed, wanted)


def _pod(observed: Observed, name: str) -> Failure | None:
    """Why the source pod cannot be moved."""
    pod, where = observed.move.source, f"spec.source: pod {observed.key.namespace}/{name}"
    if pod is None:
        return Failure(Reason.UNKNOWN_POD, f"{where} does not exist; `kubectl get pods -o wide` lists what there is")
    if pod.deleted or pod.phase != "Running" or not pod.node:
        found = "is being deleted" if pod.deleted else f"is {pod.phase} on node {pod.node or 'none'}"
        return Failure(Reason.UNKNOWN_POD, f"{where} {found}: only a pod that runs can be moved")
    # one that ended without having tidied up keeps nobody from moving it
    if pod.migration in observed.active - {observed.key.uid}:
        return Failure(
            Reason.POD_NOT_MOVABLE,
            f"{where} is part of another migration (UID {pod.migration}); wait for that to finish, or cancel it",
        )
    return observed.move.refused


def _target_pod(observed: Observed, name: str) -> Failure | None:
    """Why the pod that the user made cannot be the counterpart."""
    pod, where = observed.move.target, f"spec.target: pod {observed.key.namespace}/{name}"
    short = observed.wish.shorthand
    if short is not None and short.pod == name:
        return Failure(
            Reason.SOURCE_EQUALS_TARGET,
            f"{where} is the source as well; name another pod, or a node in target.nodeName",
        )
    if pod is not None and pod.migration and pod.migration != observed.key.uid:
        return Failure(
            Reason.TARGET_POD_FAILED,
            f"{where} is part of another migration (UID {pod.migration}); wait for that to finish, or name another pod",
        )
    if pod is None:
        return Failure(Reason.TARGET_POD_FAILED, f"{where} does not exist; `kubectl get pods` lists what there is")
    if pod.deleted or not pod.running:
        found = "is being deleted" if pod.deleted else f"does not run: {pod.trouble or pod.unscheduled or pod.phase}"
        return Failure(Reason.TARGET_POD_FAILED, f"{where} {found}; look at kubectl describe pod")
    return None


def _ends(observed: Observed) -> Iterator[tuple[str, str, str, str]]:
    """(pair, "source" or "target", node, address) of every end of every pair."""
    for pair in observed.wish.pairs:
        yield pair.name, "source", pair.source_node, pair.source_device
        yield pair.name, "target", pair.target_node, pair.target_device


def _distinct(observed: Observed) -> Iterator[Failure]:
    seen: dict[tuple[str, str], str] = {}
    for pair in observed.wish.pairs:
        if (pair.source_node, pair.source_device) == (pair.target_node, pair.target_device):
            yield Failure(
                Reason.SOURCE_EQUALS_TARGET,
                f"pair {pair.name}: source and target are both device {pair.source_device} on node "
                f"{pair.source_node}; name another device or node as its target",
                pair.name,
            )
    for name, end, node, address in _ends(observed):
        where = f"pair {name} {end}"
        if (node, address) in seen:
            yield Failure(
                Reason.DUPLICATE_DEVICE,
                f"device {address} on node {node} is both {seen[node, address]} and {where}; a device may appear "
                "once in a migration",
                name,
            )
        seen[node, address] = where


def _nodes(observed: Observed) -> Iterator[Failure]:
    for name, end, node, _ in _ends(observed):
        failure = _node(observed, f"pair {name}", end, node, name)
        if failure is not None:
            yield failure


def _node(observed: Observed, what: str, end: str, node: str, pair: str) -> Failure | None:
    if end == "target" and node in observed.emptied:
        return Failure(
            Reason.NODE_BEING_EMPTIED,
            f"{what}: target node {node} is being emptied by a VFIOEvacuation; choose another one, or wait for its end "
            "(kubectl get vfe)",
            pair,
        )
    if node in observed.connected:
        return None
    if node not in observed.nodes:
        return Failure(
            Reason.UNKNOWN_NODE,
            f"{what}: {end} node {node} does not exist; `kubectl get nodes` lists what there is",
            pair,
        )
    return Failure(
        Reason.AGENT_NOT_CONNECTED,
        f"{what}: {end} node {node} has no connected vfio-agent; look at its agent pod and its log",
        pair,
    )


def _devices(observed: Observed) -> Iterator[Failure]:
    for name, end, node, address in _ends(observed):
        device = observed.inventory.get((node, address))
        if device is None:
            yield Failure(
                Reason.UNKNOWN_DEVICE,
                f"pair {name}: {end} device {address} does not exist on node {node}; `kubectl get vfd` lists what "
                "there is",
                name,
            )
        elif not device.migratable:
            yield Failure(
                Reason.DEVICE_NOT_MIGRATABLE,
                f"pair {name}: {end} device {address} on node {node} (driver {device.driver or 'unknown'}) cannot "
                f"migrate: {device.message or 'it does not offer STOP_COPY'}",
                name,
            )
        elif device.claim_uid and device.claim_uid != observed.key.uid:
            yield Failure(
                Reason.DEVICE_CLAIMED,
                f"pair {name}: {end} device {address} on node {node} is claimed by migration {device.claim_name}; "
                "wait for it to finish or cancel it",
                name,
            )


def _both(observed: Observed) -> Iterator[tuple[Pair, DeviceRecord, DeviceRecord]]:
    for pair in observed.wish.pairs:
        source = observed.inventory.get((pair.source_node, pair.source_device))
        target = observed.inventory.get((pair.target_node, pair.target_device))
        if source is not None and target is not None:
            yield pair, source, target


def _holders(observed: Observed) -> Iterator[Failure]:
    for pair, source, target in _both(observed):
        if not source.holder:
            yield Failure(
                Reason.SOURCE_NOT_HELD,
                f"pair {pair.name}: source device {source.address} on node {source.node} is not open, so it carries "
                "no state to migrate; open it through the agent's socket first",
                pair.name,
            )
        if target.holder:
            yield Failure(
                Reason.TARGET_HAS_HOLDER,
                f"pair {pair.name}: target device {target.address} on node {target.node} is held by "
                f"{target.holder}; a target must be free, since loading overwrites it",
                pair.name,
            )


def _running(observed: Observed) -> Iterator[Failure]:
    """A source that was moved away stays as it was stopped: what it would give is older than what runs elsewhere."""
    for pair, source, _target in _both(observed):
        if source.pod_uid and source.state and source.state != "RUNNING":
            yield Failure(
                Reason.SOURCE_NOT_HELD,
                f"pair {pair.name}: source device {source.address} on node {source.node} is in {source.state}, not in "
                f"RUNNING: it was moved away, or its pod {source.pod} has stopped it; end that pod first",
                pair.name,
            )


def _whole_pods(observed: Observed) -> Iterator[Failure]:
    """The devices of a pod may do P2P among themselves: they move together or not at all."""
    named = {(pair.source_node, pair.source_device) for pair in observed.wish.pairs}
    for pair, source, _target in _both(observed):
        if not source.pod_uid:
            continue
        left = [
            record.address
            for (node, address), record in sorted(observed.inventory.items())
            if node == source.node and record.pod_uid == source.pod_uid and (node, address) not in named
        ]
        if left:
            yield Failure(
                Reason.POD_DEVICES_SPLIT,
                f"pair {pair.name}: device {source.address} on node {source.node} is used by pod {source.pod}, which "
                f"also has {', '.join(left)}: devices of one pod move together; name these, too, or use "
                "spec.source.podName",
                pair.name,
            )


def _compatible(observed: Observed) -> Iterator[Failure]:
    for pair, source, target in _both(observed):
        for attribute, ours, theirs in (
            ("driver", source.driver, target.driver),
            ("model", source.model, target.model),
            ("migration flags", _names(source.flags), _names(target.flags)),
        ):
            if ours != theirs:
                yield Failure(
                    Reason.INCOMPATIBLE_DEVICES,
                    f"pair {pair.name}: {attribute} differs: source {source.address} has {ours}, target "
                    f"{target.address} has {theirs}; choose a target of the same kind",
                    pair.name,
                )


def _p2p(observed: Observed) -> Iterator[Failure]:
    if len(observed.wish.pairs) < 2:
        return
    for pair, source, _target in _both(observed):
        if MigrationFlags.P2P not in source.flags:
            yield Failure(
                Reason.P2P_UNSUPPORTED,
                f"pair {pair.name}: device {source.address} on node {source.node} does not support P2P (flags "
                f"{_names(source.flags)}); {len(observed.wish.pairs)} devices migrate together only if every one "
                "does: migrate it alone",
                pair.name,
            )


def _pre_copy(observed: Observed) -> Iterator[Failure]:
    if observed.wish.strategy.pre_copy != "Required":
        return
    for pair, source, _target in _both(observed):
        if MigrationFlags.PRE_COPY not in source.flags:
            yield Failure(
                Reason.PRE_COPY_UNSUPPORTED,
                f"pair {pair.name}: strategy.preCopy is Required, device {source.address} on node {source.node} "
                f"has flags {_names(source.flags)}; use preCopy: Auto",
                pair.name,
            )


def _names(flags: MigrationFlags) -> str:
    return "|".join(flag.name or "" for flag in MigrationFlags if flag in flags) or "none"


CHECKS: tuple[Callable[[Observed], Iterator[Failure]], ...] = (
    _distinct,
    _nodes,
    _devices,
    _holders,
    _running,
    _whole_pods,
    _compatible,
    _p2p,
    _pre_copy,
)
