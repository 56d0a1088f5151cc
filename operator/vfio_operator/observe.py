"""From objects as the API server has them to the frozen picture that the plan looks at. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from vfio_api.device import MigrationFlags
from vfio_api.errors import Reason
from vfio_api.models import MigrationSpec
from vfio_api.models_strategy import Strategy as Said
from vfio_api.names import FINALIZER
from vfio_api.reasons import ConditionReason
from vfio_api.types import Failure, MigrationKey, Outcome, PauseMethod
from vfio_operator.observed import DeviceRecord, Pair, Pausing, Shorthand, Switchover, Wish
from vfio_operator.policies import Policy, resolve_strategy
from vfio_operator.turns import Ticket

Body = Mapping[str, Any]
AT_ONCE = datetime.min.replace(tzinfo=UTC)


def key_of(body: Body) -> MigrationKey:
    """Which migration an object is."""
    metadata = body["metadata"]
    return MigrationKey(metadata["uid"], metadata["namespace"], metadata["name"])


def wish_of(body: Body, policy: Policy | None = None) -> Wish:
    """What the user asks for, and what the policy says of the rest.

    A spec that does not fit the model becomes an unsupported wish, never an error.
    """
    deleted = bool(body["metadata"].get("deletionTimestamp"))
    try:
        spec = MigrationSpec.model_validate(dict(body["spec"]))
    except ValidationError as error:
        found = [(".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
        problems = "; ".join(f"spec.{where}: {what}" for where, what in found)
        return Wish((), deleted=deleted, unsupported=f"the spec is not valid: {problems}")
    pairs = tuple(
        Pair(d.name, d.source.node_name, d.source.device, d.target.node_name, d.target.device)
        for d in spec.devices or ()
    )
    stored = body.get("status", {}).get("strategy")
    # what it began with it goes on with, whatever becomes of the policy
    said = Said.model_validate(stored) if stored else spec.strategy
    strategy = resolve_strategy(said, None if stored else policy)
    shorthand = None
    if spec.source is not None and spec.target is not None:
        source, target = spec.source, spec.target
        shorthand = Shorthand(
            source.node_name or "", target.node_name or "", source.pod_name or "", target.pod_name or ""
        )
    pausing = _pausing(spec)
    unsupported = _unsupported(spec)
    priority = spec.priority if spec.priority is not None else policy.spec.priority or 0 if policy else 0
    return Wish(pairs, strategy, spec.cancel, deleted, unsupported, spec.mode, shorthand, pausing, priority)


class Reading:
    """`wish_of` of the same object again and again: 256 pairs are validated once, not with every report."""

    def __init__(self) -> None:
        self._last: tuple[Body, Policy | None, Wish] | None = None

    def wish(self, body: Body, policy: Policy | None = None) -> Wish:
        """See `wish_of`. An object that has changed is another one, as the watch brings it."""
        last = self._last
        if last is None or last[0] is not body or last[1] is not policy:
            self._last = last = body, policy, wish_of(body, policy)
        return last[2]


def _pausing(spec: MigrationSpec) -> Pausing:
    """How the pods are paused; a pod that is moved is frozen unless the spec says otherwise."""
    if spec.workload is None:
        moved = spec.source is not None and spec.source.pod_name is not None
        return Pausing(PauseMethod.FREEZE if moved else PauseMethod.NONE)
    pause, hook = spec.workload.pause, spec.workload.pause.hook
    if hook is None:
        return Pausing(pause.method, pause.timeout_seconds * 1000)
    return Pausing(
        pause.method,
        pause.timeout_seconds * 1000,
        hook.port,
        hook.path,
        hook.timeout_seconds * 1000,
        hook.retries,
    )


def _unsupported(spec: MigrationSpec) -> str:
    moved = spec.source is not None and spec.source.pod_name is not None
    if spec.workload is not None and spec.workload.pause.method is PauseMethod.HOOK and not moved:
        return (
            "spec.workload.pause.method is Hook: it is for a pod that is moved, whose counterpart takes what it saves; "
            "give spec.source.podName, or use Freeze"
        )
    if not spec.devices and (spec.source is None or spec.target is None):
        return "spec.devices is absent; name the pairs there, or give both spec.source and spec.target"
    return ""


def ticket_of(body: Body, pairs: tuple[Pair, ...], priority: int) -> Ticket:
    """What a migration shows to be let through."""
    metadata = body["metadata"]
    return Ticket(
        metadata["uid"],
        metadata["namespace"],
        priority,
        (metadata.get("creationTimestamp", ""), metadata["uid"]),
        frozenset(pair.source_node for pair in pairs),
        frozenset(pair.target_node for pair in pairs),
    )


def has_finalizer(body: Body) -> bool:
    """Whether our finalizer is on the object."""
    return FINALIZER in body["metadata"].get("finalizers", ())


def is_untouched(body: Body) -> bool:
    """Whether it was seen as its user made it: no operator has written to it, up to that version."""
    return not has_finalizer(body) and not body.get("status") and "deletionTimestamp" not in body["metadata"]


def is_finished(body: Body) -> bool:
    """Whether the terminal status was written."""
    conditions = body.get("status", {}).get("conditions", ())
    return any(c["type"] == "Finished" and c["status"] == "True" for c in conditions)


def body_of_what_is_left(key: MigrationKey, body: Body | None) -> dict[str, Any]:
    """What stands in for an object that is finished, or gone (None): deleted, and what it failed of, if known."""
    metadata = {"uid": key.uid, "namespace": key.namespace, "name": key.name, "deletionTimestamp": "unknown"}
    failure = (body or {}).get("status", {}).get("failure")
    return {"metadata": metadata, "spec": {}, "status": {"failure": failure} if failure else {}}


def expires_at(body: Body) -> datetime | None:
    """When a finished object will have been kept for its ttlSecondsAfterFinished, aware; None: it is to be kept."""
    ttl = body["spec"].get("ttlSecondsAfterFinished")
    if ttl is None or body["metadata"].get("deletionTimestamp") or not is_finished(body):
        return None
    since = next((c["lastTransitionTime"] for c in body["status"]["conditions"] if c["type"] == "Finished"), None)
    return datetime.fromisoformat(since) + timedelta(seconds=ttl) if since is not None else None


def is_expired(body: Body, moment: datetime) -> bool:
    """Whether a finished object has been kept for its ttlSecondsAfterFinished; `moment` is aware."""
    expires = expires_at(body)
    return expires is not None and expires <= moment


def due_of(body: Body) -> datetime | None:
    """When an object with the label of finished ones is to be looked at, aware: at once, when it expires, or never."""
    if not is_finished(body) or is_outdated(body):
        return AT_ONCE
    return expires_at(body)


def is_outdated(body: Body) -> bool:
    """Whether a finished object's status was made for an older generation of it."""
    return is_finished(body) and body["status"].get("observedGeneration") != body["metadata"].get("generation")


def brought_up_to_date(body: Body) -> dict[str, Any]:
    """The status of a finished object for its present generation: nothing that can still be changed matters to it."""
    generation = body["metadata"].get("generation")
    status = body["status"]
    conditions = [{**condition, "observedGeneration": generation} for condition in status["conditions"]]
    return {**status, "observedGeneration": generation, "conditions": conditions}


def is_rehearsed(body: Body) -> bool:
    """Whether a rehearsal's turning point was written down: the reason of its condition Converged."""
    conditions = body.get("status", {}).get("conditions", ())
    return any(c["type"] == "Converged" and c["reason"] == ConditionReason.REHEARSED for c in conditions)


def persisted_failure(body: Body) -> Failure | None:
    """What an earlier leader wrote down that the migration failed of."""
    stored = body.get("status", {}).get("failure")
    if stored is None:
        return None
    try:
        reason = Reason(stored["reason"])
    except ValueError:  # of a newer version
        reason = Reason.OPERATOR_RESTARTED
    return Failure(reason, stored["message"], stored.get("device", ""), stored.get("arc", ""), stored.get("errno", 0))


def persisted_pairs(body: Body) -> tuple[Pair, ...]:
    """The resolved pairs that an earlier leader wrote down."""
    return tuple(
        Pair(
            p["name"],
            p["source"]["nodeName"],
            p["source"]["device"],
            p["target"]["nodeName"],
            p["target"]["device"],
        )
        for p in body.get("status", {}).get("pairs", ())
    )


def device_of(body: Body) -> DeviceRecord:
    """A VFIODevice."""
    spec, status = body["spec"], body.get("status", {})
    claim, pod = spec.get("claimRef") or {}, status.get("pod") or {}
    flags = MigrationFlags(0)
    for name in status.get("migrationFlags", ()):
        flags |= MigrationFlags[name]
    return DeviceRecord(
        object_name=body["metadata"]["name"],
        node=spec["nodeName"],
        address=spec["address"],
        driver=status.get("driver", ""),
        model=status.get("model", ""),
        flags=flags,
        migratable=status.get("migratable", False),
        holder=status.get("holder", ""),
        claim_uid=claim.get("uid", ""),
        claim_name=f"{claim['namespace']}/{claim['name']}" if claim else "",
        resource_version=body["metadata"].get("resourceVersion", ""),
        message=status.get("message", ""),
        stop_copy_bytes=status.get("stopCopyBytes", 0),
        state=status.get("state", ""),
        pod_uid=pod.get("uid", ""),
        pod=f"{pod.get('namespace', '')}/{pod.get('name', '')}" if pod.get("name") else pod.get("uid", ""),
    )


def moves(body: Body, namespace: str, pod: str) -> bool:
    """Whether a migration that is not finished moves this pod, or brings it."""
    brought = body.get("status", {}).get("workload", {}).get("targetPod", {}).get("name")
    ends = {body["spec"].get("source", {}).get("podName"), body["spec"].get("target", {}).get("podName"), brought}
    return body["metadata"]["namespace"] == namespace and pod in ends and not is_finished(body)


def switchover_of(body: Body | None) -> Switchover:
    """A VFIOSwitchover, or the absence of one."""
    if body is None:
        return Switchover()
    decision = body.get("status", {}).get("decision", {})
    outcome = decision.get("outcome")
    return Switchover(True, Outcome(outcome) if outcome else None, decision.get("by", ""))
