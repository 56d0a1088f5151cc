"""The status of a VFIOMigration: how far it has come."""

from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, Field

from vfio_api.models_common import (
    LIST_ATOMIC,
    MAX_PAIRS,
    Condition,
    Count,
    Decision,
    DeviceRef,
    DnsLabel,
    DnsSubdomain,
    Message,
    Model,
    NodeName,
    StateName,
    Uid,
    list_map,
)
from vfio_api.models_strategy import Strategy
from vfio_api.reasons import Word


class Phase(StrEnum):
    """Where a migration is; derived from conditions, for people."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    PRE_COPY = "PreCopy"
    SWITCHOVER = "Switchover"
    STARTING = "Starting"
    ROLLING_BACK = "RollingBack"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class ConditionType(Word):
    """The conditions of a migration."""

    VALIDATED = (
        "Validated",
        "Everything was checked, and nothing was touched yet.",
        "If False, correct what is named.",
    )
    PREPARED = ("Prepared", "Sources are held and targets wait for state.", "If it lasts, look at the agents' logs.")
    CONVERGED = (
        "Converged",
        "The targets have the initial bytes and the forecast is within the downtime limit.",
        "If it lasts, look at the forecast in its message.",
    )
    QUIESCED = ("Quiesced", "Barrier A has passed: no source device starts a P2P transaction.", "Nothing.")
    COMMITTED = (
        "Committed",
        "The decision is Commit: the targets start and the sources never run again.",
        "Nothing; it cannot be cancelled any more.",
    )
    FINISHED = (
        "Finished",
        "It has ended, one way or the other.",
        "Wait for it: kubectl wait --for=condition=Finished.",
    )
    SUCCEEDED = (
        "Succeeded",
        "Whether it did what was asked for; Unknown until it is finished.",
        "If False, its reason and message say why and what to do.",
    )


class PairStatus(Model):
    """A pair as resolved when the migration was prepared."""

    name: DnsLabel
    """Name of the pair."""
    source: DeviceRef
    """The device that has the state."""
    target: DeviceRef
    """The device that gets the state."""


class DeviceProgress(Model):
    """How far one pair has come."""

    name: DnsLabel
    """Name of the pair."""
    source_state: StateName | None = None
    """Migration state of the source device, as the VFIO uAPI names it; absent if unknown."""
    target_state: StateName | None = None
    """Migration state of the target device, as the VFIO uAPI names it; absent if unknown."""
    bytes: Count = 0
    """Bytes of state loaded at the target so far."""


class PairFeasibility(Model):
    """Whether one pair could be migrated; of mode Plan."""

    name: DnsLabel
    """Name of the pair."""
    feasible: bool
    """Whether nothing speaks against it."""
    reason: Annotated[str, Field(min_length=1, max_length=64, pattern="^[A-Za-z][A-Za-z0-9]*$")] | None = None
    """What speaks against it, in one CamelCase word for programs; absent if nothing does."""
    message: Annotated[str, Field(max_length=1024)] | None = None
    """What speaks against it, for people; absent if nothing does."""


class StepTiming(Model):
    """How long one step took."""

    step: Annotated[str, Field(min_length=1, max_length=64)]
    """Name of the step."""
    start_time: AwareDatetime | None = None
    """When it began, by the operator's clock; for people only."""
    duration_microseconds: Count
    """How long it took, in microseconds, measured on one clock."""


class PodStatus(Model):
    """One of the two pods of a move, in the migration's namespace."""

    name: DnsSubdomain
    """Name of the pod."""
    uid: Uid | None = None
    """UID of the pod; absent before it is created."""
    node_name: NodeName | None = None
    """Node that it runs on; absent before it is scheduled."""


class WorkloadStatus(Model):
    """The pod that is moved, and who takes its place."""

    source_pod: PodStatus
    """The pod that has the devices; after Commit it is deleted."""
    target_pod: PodStatus | None = None
    """Its counterpart; if the migration fails, it is deleted unless the user made it."""


class Progress(Model):
    """How far the copy of the state has come."""

    percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Part of the state that is copied, in percent; it can fall while devices change their state."""
    bytes: Count = 0
    """Bytes of state copied so far, for all devices."""
    bytes_per_second: Count = 0
    """Bytes per second that are being copied, for all devices."""
    eta_seconds: Count | None = None
    """Seconds until the migration is expected to finish; absent if it cannot be told."""


class RecordedFailure(Model):
    """What a migration failed of, as it was written down on the way back."""

    reason: Annotated[str, Field(min_length=1, max_length=64, pattern="^[A-Za-z][A-Za-z0-9]*$")]
    """In one CamelCase word, for programs."""
    message: Message
    """For people."""
    device: Annotated[str, Field(max_length=63)] | None = None
    """Name of the pair it is about; absent if it is about none."""
    arc: Annotated[str, Field(max_length=64)] | None = None
    """The arc that failed, such as RUNNING -> PRE_COPY; absent if none did."""
    errno: Count | None = None
    """The kernel's error number; absent if there is none."""


TraceId = Annotated[str, Field(max_length=32, pattern="^[0-9a-f]{32}$")]


class MigrationStatus(Model):
    """How far the migration has come; written by the operator only."""

    observed_generation: Count | None = None
    """The metadata.generation that this status was made for."""
    phase: Phase | None = None
    """Where the migration is, in one word for people. Programs should look at the conditions."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=32, json_schema_extra=list_map("type"))] = ()
    """Validated, Prepared, Converged, Quiesced, Committed, Finished and Succeeded. Finished turns True
    however it ends; Succeeded is Unknown until then."""
    failure: RecordedFailure | None = None
    """What it failed of, from when its sources are back: whoever leads next neither tries it again nor forgets why."""
    decision: Decision | None = None
    """A copy, for people, of the decision in the VFIOSwitchover that is named by this object's UID."""
    pairs: Annotated[tuple[PairStatus, ...], Field(max_length=MAX_PAIRS, json_schema_extra=LIST_ATOMIC)] = ()
    """The pairs as resolved when the migration was prepared."""
    workload: WorkloadStatus | None = None
    """The pods, if one is moved with its devices."""
    devices: Annotated[tuple[DeviceProgress, ...], Field(max_length=MAX_PAIRS, json_schema_extra=LIST_ATOMIC)] = ()
    """How far each pair has come."""
    feasibility: Annotated[tuple[PairFeasibility, ...], Field(max_length=MAX_PAIRS, json_schema_extra=LIST_ATOMIC)] = ()
    """Of mode Plan: whether each pair could be migrated, and why not."""
    timings: Annotated[tuple[StepTiming, ...], Field(max_length=64, json_schema_extra=LIST_ATOMIC)] = ()
    """How long each step took, in the order in which they happened."""
    downtime_microseconds: Count | None = None
    """How long the workload was down, in microseconds, on the operator's clock: from its pause, or the command to leave
    RUNNING, until the last target device was reported RUNNING and it was resumed. If the operator changed meanwhile, by
    what the agents say; absent if every source's agent was restarted as well."""
    predicted_downtime_microseconds: Count | None = None
    """The latest forecast of the downtime, in microseconds."""
    policy: DnsSubdomain | None = None
    """The VFIOMigrationPolicy that it follows; absent if none selects it."""
    strategy: Strategy | None = None
    """The knobs as they were resolved when it began: its own, its policy's, and the defaults."""
    queue_position: Annotated[int, Field(ge=1)] | None = None
    """How many migrations run before this one, of those that wait, counting itself; absent if it does not wait."""
    progress: Progress | None = None
    """How far the copy of the state has come."""
    message: Message | None = None
    """What is going on, or why it ended as it did, in one sentence for people."""
    trace_id: Annotated[TraceId | None, Field(alias="traceID")] = None
    """The OpenTelemetry trace of the migration, in hexadecimal digits; absent if it is not traced."""
