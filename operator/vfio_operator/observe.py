"""From objects as the API server has them to the frozen picture that the plan looks at. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from vfio_api.device import MigrationFlags
from vfio_api.errors import Reason
from vfio_api.models import MigrationSpec, OnConvergenceTimeout, PauseMethod, parse_quantity
from vfio_api.names import FINALIZER
from vfio_api.reasons import ConditionReason
from vfio_api.types import Failure, MigrationKey, Outcome
from vfio_operator.observed import DeviceRecord, Pair, Shorthand, Strategy, Switchover, Wish

Body = Mapping[str, Any]


def key_of(body: Body) -> MigrationKey:
    """Which migration an object is."""
    metadata = body["metadata"]
    return MigrationKey(metadata["uid"], metadata["namespace"], metadata["name"])


def wish_of(body: Body) -> Wish:
    """What the user asks for. A spec that does not fit the model becomes an unsupported wish, never an error."""
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
    chosen = spec.strategy
    limit = chosen.bandwidth_limit_bytes_per_second
    strategy = Strategy(
        downtime_limit_milliseconds=chosen.downtime_limit_milliseconds,
        pre_copy=chosen.pre_copy.value,
        convergence_timeout_seconds=chosen.convergence_timeout_seconds,
        switch_over_on_timeout=chosen.on_convergence_timeout is OnConvergenceTimeout.SWITCHOVER,
        switchover_ack=chosen.switchover_ack,
        switchover_timeout_seconds=chosen.switchover_timeout_seconds,
        bandwidth_limit_bytes_per_second=parse_quantity(limit) if limit is not None else 0,
    )
    shorthand = None
    if spec.source is not None and spec.target is not None and spec.source.node_name is not None:
        shorthand = Shorthand(spec.source.node_name, spec.target.node_name)
    return Wish(pairs, strategy, spec.cancel, deleted, _unsupported(spec), spec.mode, shorthand)


def _unsupported(spec: MigrationSpec) -> str:
    if spec.source is not None and spec.source.pod_name is not None:
        return (
            "spec.source.podName: this version does not know which devices a pod has; use spec.source.nodeName or name "
            "the pairs in spec.devices"
        )
    if not spec.devices and (spec.source is None or spec.target is None):
        return "spec.devices is absent; name the pairs there, or give both spec.source and spec.target"
    if spec.workload is not None and spec.workload.pause.method is not PauseMethod.NONE:
        return f"spec.workload.pause.method is {spec.workload.pause.method.value}; this version does None only"
    return ""


def has_finalizer(body: Body) -> bool:
    """Whether our finalizer is on the object."""
    return FINALIZER in body["metadata"].get("finalizers", ())


def is_finished(body: Body) -> bool:
    """Whether the terminal status was written."""
    conditions = body.get("status", {}).get("conditions", ())
    return any(c["type"] == "Finished" and c["status"] == "True" for c in conditions)


def body_of_what_is_left(key: MigrationKey, body: Body | None) -> dict[str, Any]:
    """What stands in for an object that is finished, or gone (None): deleted, and what it failed of, if known."""
    metadata = {"uid": key.uid, "namespace": key.namespace, "name": key.name, "deletionTimestamp": "unknown"}
    failure = (body or {}).get("status", {}).get("failure")
    return {"metadata": metadata, "spec": {}, "status": {"failure": failure} if failure else {}}


def is_expired(body: Body, moment: datetime) -> bool:
    """Whether a finished object has been kept for its ttlSecondsAfterFinished; `moment` is aware."""
    ttl = body["spec"].get("ttlSecondsAfterFinished")
    if ttl is None or body["metadata"].get("deletionTimestamp") or not is_finished(body):
        return False
    since = next(
        (c["lastTransitionTime"] for c in body.get("status", {}).get("conditions", ()) if c["type"] == "Finished"),
        None,
    )
    return since is not None and (moment - datetime.fromisoformat(since)).total_seconds() >= ttl


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
    claim = spec.get("claimRef") or {}
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
    )


def switchover_of(body: Body | None) -> Switchover:
    """A VFIOSwitchover, or the absence of one."""
    if body is None:
        return Switchover()
    decision = body.get("status", {}).get("decision", {})
    outcome = decision.get("outcome")
    return Switchover(True, Outcome(outcome) if outcome else None, decision.get("by", ""))
