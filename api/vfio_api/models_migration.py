"""VFIOMigration: what a user asks for; how far it has come is in `models_status`."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from vfio_api.models_common import (
    INT32_MAX,
    MAX_PAIRS,
    Column,
    CrdInfo,
    DeviceRef,
    DnsLabel,
    DnsSubdomain,
    Model,
    NodeName,
    Resource,
    immutable,
    list_map,
    rule,
    rules,
    told,
    whole_number,
)
from vfio_api.models_status import MigrationStatus
from vfio_api.models_strategy import NO_POST_COPY, Strategy
from vfio_api.types import PauseMethod

_AGAIN = "create a new VFIOMigration"
_FIXED = ("devices", "source", "target", "workload", "strategy", "mode", "priority")


class Mode(StrEnum):
    """How far a migration goes."""

    MIGRATE = "Migrate"
    PLAN = "Plan"
    REHEARSE = "Rehearse"


class Pair(Model):
    """A source device and the target device that takes its state."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.source.nodeName != self.target.nodeName || self.source.device != self.target.device",
                "source and target are the same device: name another device or another node as the target",
                path=".target",
            )
        )
    )

    name: DnsLabel
    """Name of the pair, unique in the migration; status, messages and logs use it."""
    source: DeviceRef
    """The device that has the state."""
    target: DeviceRef
    """The device that gets the state. It must be free: nobody has it open and no other migration claims
    it."""


class SourceSelector(Model):
    """Devices chosen by where they are."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.nodeName) != has(self.podName)",
                "give either nodeName or podName, not both",
                found="(has(self.nodeName) ? 'both' : 'neither')",
            )
        )
    )

    node_name: NodeName | None = None
    """Move all migratable devices that are in use on this node."""
    pod_name: DnsSubdomain | None = None
    """Move all migratable devices of this pod of the migration's namespace."""


class TargetSelector(Model):
    """Where devices go."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.nodeName) != has(self.podName)",
                "give either nodeName or podName, not both",
                found="(has(self.nodeName) ? 'both' : 'neither')",
            )
        )
    )

    node_name: NodeName | None = None
    """Node whose free compatible devices take the state; of a pod's devices, the node of its counterpart."""
    pod_name: DnsSubdomain | None = None
    """A pod of the migration's namespace that was made to take a pod's devices over, on its node. Without it, the
    operator makes the counterpart. Only with spec.source.podName."""


class Hook(Model):
    """How a pod is asked: by POST to PATH/pause, PATH/save, PATH/load and PATH/resume at its own address."""

    port: Annotated[int, Field(ge=1, le=65_535)]
    """Port at the pod's address, plain HTTP."""
    path: Annotated[str, Field(max_length=128, pattern="^(/[A-Za-z0-9._~-]+)*$")] = ""
    """What the four steps follow, such as /vfio for /vfio/pause."""
    timeout_seconds: Annotated[int, whole_number(1, 60, "seconds")] = 5
    """Longest time for one answer, in seconds."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """How often a step is asked for again after an error or no answer."""


class Pause(Model):
    """How the user of the devices is paused for the switchover, and resumed after it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "(has(self.method) && self.method == 'Hook') == has(self.hook)",
                "hook belongs to method Hook: give both or neither",
                path=".hook",
            )
        )
    )

    method: PauseMethod = PauseMethod.NONE
    """None: it is not paused. Freeze: its pods are frozen by their cgroups, and notice nothing. Hook: its pods are
    asked to pause, save, load and resume by themselves."""
    timeout_seconds: Annotated[int, whole_number(1, 60, "seconds")] = 5
    """Longest time in which it must be paused, in seconds. Then the migration fails, and no device was touched."""
    hook: Hook | None = None
    """How it is asked, for method Hook."""


class Workload(Model):
    """The user of the devices."""

    pause: Pause
    """How it is paused for the switchover, and resumed after it."""


class MigrationSpec(Model):
    """What is to be migrated, and how. Only cancel and ttlSecondsAfterFinished can be changed after
    creation."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.devices) ? !has(self.source) && !has(self.target) : has(self.source) && has(self.target)",
                "give either devices, or both source and target",
                found="(has(self.devices) ? "
                "(!has(self.source) ? 'devices and target' : !has(self.target) ? 'devices and source' "
                ": 'all three') "
                ": has(self.source) ? 'source only' : has(self.target) ? 'target only' "
                ": 'none of them')",
            ),
            rule(
                "!has(self.target) || !has(self.target.podName) || (has(self.source) && has(self.source.podName))",
                "a target pod takes over what a source pod has: give source.podName",
                path=".target.podName",
            ),
        )
    )

    devices: (
        Annotated[tuple[Pair, ...], Field(min_length=1, max_length=MAX_PAIRS, json_schema_extra=list_map("name"))]
        | None
    ) = None
    """The pairs of devices that migrate together, all or none. Leave it out to give source and target
    instead."""
    source: SourceSelector | None = None
    """Shorthand: all migratable devices of a node or a pod. Needs target, excludes devices."""
    target: TargetSelector | None = None
    """Shorthand: the node that takes them. Needs source, excludes devices."""
    workload: Workload | None = None
    """The user of the devices: the pods that have them open, to be paused for the switchover. Without it, a pod that is
    moved is frozen, and with other sources only devices are dealt with."""
    strategy: Strategy = Strategy()
    """Limits, and what to do when they are reached."""
    mode: Annotated[
        Mode,
        Field(
            json_schema_extra=told(
                f"must be Migrate, Plan or Rehearse; how to copy is strategy.preCopy, {NO_POST_COPY}"
            )
        ),
    ] = Mode.MIGRATE
    """Migrate: move the state. Plan: check and predict, touch nothing. Rehearse: all up to convergence with
    the real target, then the sources run on; it measures rates and predicts the downtime."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    """Of those that wait for others to end, the highest comes first; 0 unless the policy says it."""
    cancel: bool = False
    """Set it to true to cancel the migration, which works until the decision is Commit. It cannot be taken
    back."""
    ttl_seconds_after_finished: Annotated[int, whole_number(0, INT32_MAX, "seconds")] | None = None
    """Seconds after which the finished migration is deleted. Without it, it is kept."""


class VFIOMigration(Resource):
    """Moves the state of VFIO devices to other devices, of the same node or others, all together or not at
    all."""

    crd: ClassVar[CrdInfo] = CrdInfo(
        plural="vfiomigrations",
        singular="vfiomigration",
        short_names=("vfm",),
        namespaced=True,
        columns=(
            Column("Mode", ".spec.mode", description="Migrate, Plan or Rehearse"),
            Column("Phase", ".status.phase", description="Where the migration is"),
            Column("Percent", ".status.progress.percent", "integer", description="Percent of the state copied"),
            Column(
                "Downtime-us",
                ".status.downtimeMicroseconds",
                "integer",
                description="Downtime in microseconds",
            ),
            Column(
                "Source",
                ".status.pairs[0].source.nodeName",
                wide=True,
                description="Node of the first source",
            ),
            Column(
                "Target",
                ".status.pairs[0].target.nodeName",
                wide=True,
                description="Node of the first target",
            ),
            Column(
                "Predicted-us",
                ".status.predictedDowntimeMicroseconds",
                "integer",
                wide=True,
                description="Latest forecast of the downtime in microseconds",
            ),
            Column("Message", ".status.message", wide=True, description="What is going on"),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
        selectable_fields=(".spec.mode", ".status.phase"),
    )
    model_config = ConfigDict(
        json_schema_extra=rules(
            *(immutable(field, _AGAIN) for field in _FIXED),
            rule(
                "!has(oldSelf.spec.cancel) || !oldSelf.spec.cancel || (has(self.spec.cancel) && self.spec.cancel)",
                "spec.cancel cannot be taken back: create a new VFIOMigration",
                path=".spec.cancel",
                forbidden=True,
            ),
        )
    )

    kind: Literal["VFIOMigration"] = "VFIOMigration"
    spec: MigrationSpec
    """What is to be migrated, and how. Only cancel and ttlSecondsAfterFinished can be changed after
    creation."""
    status: MigrationStatus | None = None
    """How far the migration has come; written by the operator only."""
