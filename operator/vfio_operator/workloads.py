"""Which pods a session has to do with: those that use its devices at the source, and who takes them over. Pure."""

from vfio_api.types import PauseMethod, Role, Workload
from vfio_operator.observed import Observed, Pair, Pausing, PodRecord


def pod_of(observed: Observed, pair: Pair) -> str:
    """UID of the pod that has a pair's source device open; "" if none is known to."""
    if observed.wish.moves_pod and observed.move.source is not None:
        return observed.move.source.uid
    record = observed.inventory.get((pair.source_node, pair.source_device))
    return record.pod_uid if record is not None else ""


def workloads(observed: Observed, node: str, role: Role) -> tuple[Workload, ...]:
    """The pods on a node that are paused (source) or that take over (target), in the order of their UIDs."""
    pausing = observed.wish.pausing
    if role is Role.TARGET:
        target = observed.move.target
        return (_workload(target, pausing, moved=True),) if observed.wish.moves_pod and target is not None else ()
    if observed.wish.moves_pod:
        source = observed.move.source
        return (_workload(source, pausing, moved=True),) if source is not None else ()
    if pausing.method is PauseMethod.NONE:
        return ()
    found = {}
    for pair in observed.pairs:
        record = observed.inventory.get((pair.source_node, pair.source_device))
        if pair.source_node == node and record is not None and record.pod_uid:
            namespace, _, name = record.pod.partition("/")
            found[record.pod_uid] = _workload(PodRecord(namespace, name, record.pod_uid), pausing)
    return tuple(found[uid] for uid in sorted(found))


def _workload(pod: PodRecord, pausing: Pausing, *, moved: bool = False) -> Workload:
    hook = pausing.hook(pod.address)
    return Workload(pod.uid, pod.namespace, pod.name, pausing.method, pausing.timeout_milliseconds, hook, moved)
