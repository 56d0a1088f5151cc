"""The counterpart of a pod on its target node, and why a pod can have none. Pure: from Pods as the API server has them.

The counterpart has the source's spec, a name that follows from the migration (so that there is never a second one), and
none of the source's labels until the decision: neither a Service nor a ReplicaSet takes it before.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vfio_api.errors import Reason
from vfio_api.names import (
    BASE_NAME_ANNOTATION,
    COST_ANNOTATION,
    HERITAGE_ANNOTATION,
    INCOMING_ANNOTATION,
    INCOMING_ENV,
    MIGRATION_LABEL,
)
from vfio_api.types import Failure, MigrationKey
from vfio_operator.observed import PodRecord

Json = dict[str, Any]
MAX_NAME = 63  # of a pod that is a hostname, too
HASH_DIGITS = 8
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
LOWEST_COST, HIGHEST_COST = "-2147483647", "2147483647"
MOVABLE_OWNERS = ("ReplicaSet",)
# Of the cluster that the source lives in now, or of who made it: not of its counterpart.
_OWN_ANNOTATIONS = (
    "kubectl.kubernetes.io/last-applied-configuration",
    "k8s.v1.cni.cncf.io/network-status",
    "k8s.v1.cni.cncf.io/networks-status",
    "kubernetes.io/config.hash",
    "kubernetes.io/config.seen",
    "kubernetes.io/config.source",
    DELETION_COST,
    COST_ANNOTATION,
    HERITAGE_ANNOTATION,
)
# What network plugins note of a pod: its counterpart would have the same address.
_OWN_PREFIXES = ("cni.projectcalico.org/", "k8s.ovn.org/", "ovn.kubernetes.io/")
_OWN_SPEC = ("nodeName", "priority", "preemptionPolicy", "schedulingGates", "ephemeralContainers")
_HOSTNAME = "kubernetes.io/hostname"


@dataclass(frozen=True, slots=True)
class Claim:
    """A PersistentVolumeClaim of a pod. modes: its access modes, none if it does not exist."""

    name: str
    modes: tuple[str, ...]


def record_of(body: Mapping[str, Any]) -> PodRecord:
    """A Pod as the plan looks at it."""
    metadata, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    states = [s.get("state", {}) for s in status.get("containerStatuses", ())]
    nothing: Json = {}
    scheduled = next((c for c in status.get("conditions", ()) if c["type"] == "PodScheduled"), nothing)
    owner = next((o for o in metadata.get("ownerReferences", ()) if o.get("controller")), nothing)
    return PodRecord(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        node=spec.get("nodeName", ""),
        address=status.get("podIP", ""),
        phase=status.get("phase", "Pending"),
        deleted=bool(metadata.get("deletionTimestamp")),
        ready=any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ())),
        running=bool(states) and all("running" in state for state in states),
        trouble=_trouble(status, states),
        unscheduled=scheduled.get("message", "") if scheduled.get("status") == "False" else "",
        owner=f"{owner['kind']} {owner['name']}" if owner else "",
        migration=metadata.get("labels", {}).get(MIGRATION_LABEL, ""),
        grace_seconds=spec.get("terminationGracePeriodSeconds") or 0,
    )


def _trouble(status: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> str:
    """Why a pod does not run, in the kubelet's words; "" if nothing is wrong."""
    for state in states:
        waiting, ended = state.get("waiting", {}), state.get("terminated")
        if ended is not None:
            return f"a container ended: {ended.get('reason', '')} (exit code {ended.get('exitCode')})".strip()
        if waiting.get("reason", "ContainerCreating") not in ("ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}"[:300]
    return status.get("message", "") or status.get("reason", "") if status.get("phase") == "Failed" else ""


def refusals(body: Mapping[str, Any], claims: Sequence[Claim], target_node: str) -> Iterator[Failure]:
    """Why this pod cannot be moved to that node: nothing is touched then."""
    metadata, spec = body["metadata"], body["spec"]
    pod = f"pod {metadata['namespace']}/{metadata['name']}"
    if metadata.get("annotations", {}).get("kubernetes.io/config.mirror"):
        yield _refused(f"{pod} is a static pod, made by a file on its node; move that file")
    for owner in metadata.get("ownerReferences", ()):
        if owner.get("controller") and owner["kind"] not in MOVABLE_OWNERS:
            yield _refused(
                f"{pod} belongs to {owner['kind']} {owner['name']}, which would make another in its place or delete "
                f"the counterpart; pods of {' and '.join(MOVABLE_OWNERS)}s and pods of their own can be moved"
            )
    elsewhere = spec.get("nodeName") != target_node
    for claim in claims:
        if not claim.modes:
            yield _refused(f"{pod} mounts PersistentVolumeClaim {claim.name}, which does not exist")
        elif claim.modes == ("ReadWriteOncePod",):
            yield _refused(
                f"{pod} mounts PersistentVolumeClaim {claim.name}, which is ReadWriteOncePod: its counterpart could "
                "not mount it beside it; use another access mode, or move the devices only (spec.devices)"
            )
        elif elsewhere and set(claim.modes) <= {"ReadWriteOnce", "ReadWriteOncePod"}:
            yield _refused(
                f"{pod} mounts PersistentVolumeClaim {claim.name}, which is ReadWriteOnce: it cannot be on node "
                f"{target_node} while it is on {spec.get('nodeName')}; use ReadWriteMany, or move the devices only "
                "(spec.devices)"
            )


def _refused(message: str) -> Failure:
    return Failure(Reason.POD_NOT_MOVABLE, message)


def claims_of(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the PersistentVolumeClaims that a pod mounts; one that was made for it has its name in its own."""
    pod = body["metadata"]["name"]
    found = []
    for volume in body["spec"].get("volumes", ()):
        if "persistentVolumeClaim" in volume:
            found.append(volume["persistentVolumeClaim"]["claimName"])
        elif "ephemeral" in volume:
            found.append(f"{pod}-{volume['name']}")
    return tuple(found)


def counterpart_name(body: Mapping[str, Any], key: MigrationKey) -> str:
    """The name of a pod's counterpart in this migration: always the same, and not longer with every move."""
    metadata = body["metadata"]
    base = metadata.get("annotations", {}).get(BASE_NAME_ANNOTATION) or metadata["name"]
    digest = hashlib.sha256(key.uid.encode()).hexdigest()[:HASH_DIGITS]
    return f"{base[: MAX_NAME - HASH_DIGITS - 1].rstrip('-.')}-{digest}"


def is_counterpart(body: Mapping[str, Any], key: MigrationKey) -> bool:
    """Whether a pod was made for this migration; it stays so when it has its owner's marks."""
    found: str = body["metadata"].get("annotations", {}).get(INCOMING_ANNOTATION, "")
    return found == str(key)


def own_cost(body: Mapping[str, Any]) -> str | None:
    """The pod-deletion-cost that a pod has but for its move; None if it has none."""
    annotations = body["metadata"].get("annotations", {})
    marked = MIGRATION_LABEL in body["metadata"].get("labels", {}) and annotations.get(DELETION_COST) == LOWEST_COST
    found: str | None = annotations.get(COST_ANNOTATION if marked else DELETION_COST)
    return found


def counterpart(body: Mapping[str, Any], key: MigrationKey, target_node: str) -> Json:
    """The Pod to create. It is the migration's, and ends with it, until `adoption` makes it its owner's."""
    metadata = body["metadata"]
    annotations = {
        name: value
        for name, value in metadata.get("annotations", {}).items()
        if name not in _OWN_ANNOTATIONS and not name.startswith(_OWN_PREFIXES)
    }
    if (cost := own_cost(body)) is not None:
        annotations[COST_ANNOTATION] = cost
    base = annotations.get(BASE_NAME_ANNOTATION) or metadata["name"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": counterpart_name(body, key),
            "namespace": metadata["namespace"],
            "labels": {MIGRATION_LABEL: key.uid},
            "annotations": annotations
            | {
                INCOMING_ANNOTATION: str(key),
                BASE_NAME_ANNOTATION: base,
                HERITAGE_ANNOTATION: heritage(metadata),
            },
            "ownerReferences": [
                {
                    "apiVersion": "vfiomigration.io/v1alpha1",
                    "kind": "VFIOMigration",
                    "name": key.name,
                    "uid": key.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": _spec(body["spec"], key, target_node, base),
    }


def heritage(metadata: Mapping[str, Any]) -> str:
    """What of a source's the counterpart is to have once it is the only one; on itself, so that no crash loses it."""
    labels = {name: value for name, value in metadata.get("labels", {}).items() if name != MIGRATION_LABEL}
    return json.dumps({"labels": labels, "ownerReferences": metadata.get("ownerReferences", [])})


def _spec(source: Mapping[str, Any], key: MigrationKey, target_node: str, base: str) -> Json:
    spec = copy.deepcopy({name: value for name, value in source.items() if name not in _OWN_SPEC})
    if not spec.get("hostNetwork"):
        spec.setdefault("hostname", base[:MAX_NAME].rstrip("-.").replace(".", "-"))
    selector = {name: value for name, value in spec.get("nodeSelector", {}).items() if name != _HOSTNAME}
    spec["nodeSelector"] = selector
    spec["affinity"] = _pinned(spec.get("affinity", {}), target_node)
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        others = [each for each in container.get("env", ()) if each["name"] != INCOMING_ENV]
        container["env"] = [*others, {"name": INCOMING_ENV, "value": str(key)}]
    return spec


def _pinned(affinity: Mapping[str, Any], node: str) -> Json:
    """To one node, by the scheduler: it looks whether the pod's resources and ports are free there."""
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    nodes = dict(affinity.get("nodeAffinity", {}))
    required = nodes.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms") or [{}]
    # an earlier move has pinned it, too
    terms = [
        {
            **term,
            "matchFields": [*(f for f in term.get("matchFields", ()) if f["key"] != "metadata.name"), field],
        }
        for term in required
    ]
    nodes["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    return {**affinity, "nodeAffinity": nodes}


def adoption(target: Mapping[str, Any], latest: str | None = None) -> Json:
    """The merge patch that makes the counterpart what the source was: its labels, and its owner's.

    latest: the source's `heritage` as it was read last; None: what is on the counterpart.
    """
    metadata = target["metadata"]
    left = json.loads(latest or metadata["annotations"][HERITAGE_ANNOTATION])
    gone = {name: None for name in metadata.get("labels", {}) if name not in left["labels"]}
    return {
        "metadata": {
            "uid": metadata["uid"],
            "labels": {**gone, **left["labels"]},
            # for as long as its owner has two
            "annotations": {HERITAGE_ANNOTATION: None, DELETION_COST: HIGHEST_COST},
            "ownerReferences": left["ownerReferences"],
        }
    }
