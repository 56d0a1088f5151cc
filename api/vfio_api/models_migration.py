"""VFIOMigration: what a user asks for; how far it has come is in `models_status`."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field

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
from vfio_api.quantity import MAX_BYTES, MAX_LENGTH, PATTERN, parse_quantity

_AGAIN = "create a new VFIOMigration"
_NO_POST_COPY = "VFIO has no post-copy"


class Mode(StrEnum):
    """How far a migration goes."""

    MIGRATE = "Migrate"
    PLAN = "Plan"
    REHEARSE = "Rehearse"


class PreCopy(StrEnum):
    """Whether state is copied while devices run."""

    AUTO = "Auto"
    REQUIRED = "Required"
    DISABLED = "Disabled"


class OnConvergenceTimeout(StrEnum):
    """What happens if pre-copy does not converge in time."""

    ABORT = "Abort"
    SWITCHOVER = "Switchover"


class PauseMethod(StrEnum):
    """How a workload is paused."""

    NONE = "None"
    FREEZE = "Freeze"
    HOOK = "Hook"


def _quantity(value: int | str) -> int | str:
    """Check a quantity, but keep it as the user wrote it."""
    parse_quantity(value)
    return value


BytesQuantity = Annotated[
    int | str,
    AfterValidator(_quantity),
    Field(
        json_schema_extra={
            "maxLength": MAX_LENGTH,
            "x-kubernetes-validations": [
                rule(
                    # the tests before quantity() keep from it what it cannot read: an error of its own
                    f"type(self) == int ? self >= 1 && self <= {MAX_BYTES} : "
                    f"self.matches(r'{PATTERN}') && isQuantity(self) && "
                    "quantity(self).isGreaterThan(quantity('0')) && "
                    f"!quantity(self).isGreaterThan(quantity('{MAX_BYTES}'))",
                    "must be a number of bytes, more than 0 and at most 1Ei, such as 1024, 500M or 1.5Gi; units are "
                    "k, M, G, T, P, E or Ki to Ei, without a space, B or bit",
                )
            ],
        }
    ),
]


def _never(value: bool) -> bool:
    """Refuse what VFIO does not have."""
    if value:
        raise ValueError(f"{_NO_POST_COPY}: leave it out, and use preCopy")
    return value


PostCopy = Annotated[
    bool,
    AfterValidator(_never),
    Field(
        json_schema_extra=rules(
            rule(
                "!self",
                f"{_NO_POST_COPY}: a device cannot run at the target before all of its state is there; leave postCopy "
                "out, and use preCopy to copy while the device runs at the source",
                forbidden=True,
            )
        )
    ),
]


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

    node_name: NodeName
    """Node whose free compatible devices take the state."""


class Pause(Model):
    """How the user of the devices is paused for the switchover, and resumed after it."""

    method: PauseMethod = PauseMethod.NONE
    """None: it is not paused. Freeze: its containers are frozen. Hook: it is asked to pause and to resume by
    itself."""


class Workload(Model):
    """The user of the devices."""

    pause: Pause
    """How it is paused for the switchover, and resumed after it."""


class Strategy(Model):
    """Limits, and what to do when they are reached."""

    downtime_limit_milliseconds: Annotated[int, whole_number(1, 3_600_000, "milliseconds")] = 300
    """Longest downtime to plan for, in milliseconds: the switchover begins once the forecast is within it."""
    pre_copy: Annotated[
        PreCopy, Field(json_schema_extra=told(f"must be Auto, Required or Disabled; {_NO_POST_COPY}"))
    ] = PreCopy.AUTO
    """Whether state is copied while devices run. Auto: with devices that can. Required: a device that cannot
    is refused. Disabled: never, so that all of the state is copied within the downtime. There is no
    post-copy: VFIO has none."""
    post_copy: PostCopy | None = None
    """Cannot be true, since VFIO has no post-copy; the field is here so that who asks for it is told."""
    convergence_timeout_seconds: Annotated[int, whole_number(1, 604_800, "seconds")] = 300
    """Longest time that pre-copy may take to bring the forecast within the downtime limit, in seconds."""
    on_convergence_timeout: OnConvergenceTimeout = OnConvergenceTimeout.ABORT
    """What happens after convergenceTimeoutSeconds. Abort: the migration fails and the sources run on.
    Switchover: it goes on, with a longer downtime than asked for."""
    switchover_ack: bool = True
    """Whether no source is stopped before its initial bytes are loaded at the target."""
    switchover_timeout_seconds: Annotated[int, whole_number(1, 3_600, "seconds")] = 30
    """Longest time from the beginning of the switchover to the decision, in seconds. After it, a source node
    that hears nothing asks for Abort by itself."""
    bandwidth_limit_bytes_per_second: BytesQuantity | None = None
    """Most bytes per second that one source node sends for this migration, as a quantity such as 5Gi or 500M.
    Without it there is no limit."""

    def bandwidth_limit(self) -> int | None:
        """The bandwidth limit in bytes per second; None if there is none."""
        limit = self.bandwidth_limit_bytes_per_second
        return None if limit is None else parse_quantity(limit)


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
            )
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
    """The user of the devices, to be paused for the switchover. Without it, only devices are dealt with."""
    strategy: Strategy = Strategy()
    """Limits, and what to do when they are reached."""
    mode: Annotated[
        Mode,
        Field(
            json_schema_extra=told(
                f"must be Migrate, Plan or Rehearse; how to copy is strategy.preCopy, {_NO_POST_COPY}"
            )
        ),
    ] = Mode.MIGRATE
    """Migrate: move the state. Plan: check and predict, touch nothing. Rehearse: all up to convergence with
    the real target, then the sources run on; it measures rates and predicts the downtime."""
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
            *(immutable(field, _AGAIN) for field in ("devices", "source", "target", "workload", "strategy", "mode")),
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
