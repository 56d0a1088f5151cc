"""VFIOEvacuation: empties a node of its migratable devices and of the pods that use them."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from vfio_api.models_common import (
    INT32_MAX,
    LIST_ATOMIC,
    LIST_SET,
    Column,
    Condition,
    Count,
    CrdInfo,
    DnsLabel,
    DnsSubdomain,
    Message,
    Model,
    NodeName,
    Resource,
    immutable,
    list_map,
    rule,
    rules,
    whole_number,
)
from vfio_api.models_strategy import Strategy

MAX_TARGETS = 256
MAX_ITEMS = 512
_AGAIN = "create a new VFIOEvacuation"


class EvacuationPhase(StrEnum):
    """Where an evacuation is; for people."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class ItemPhase(StrEnum):
    """Where one item is."""

    WAITING = "Waiting"
    MOVING = "Moving"
    MOVED = "Moved"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class EvacuationSpec(Model):
    """Which node, and where to. Only cancel and ttlSecondsAfterFinished can be changed after creation."""

    node_name: NodeName
    """Node to empty. While it is being emptied, nothing is migrated to it."""
    target_nodes: Annotated[tuple[NodeName, ...], Field(max_length=MAX_TARGETS, json_schema_extra=LIST_SET)] = ()
    """Nodes that may take what is there. Empty: any node that is schedulable and has free compatible devices."""
    device_namespace: DnsLabel | None = None
    """Namespace in which the migrations of devices are made that no pod uses. Without it, the operator's."""
    strategy: Strategy | None = None
    """The knobs of its migrations. What is not said here is as policies say, else the default."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    """Of its migrations among those that wait for others to end."""
    cancel: bool = False
    """Set it to true to stop what has not started; what moves already is moved. It cannot be taken back."""
    ttl_seconds_after_finished: Annotated[int, whole_number(0, INT32_MAX, "seconds")] | None = None
    """Seconds after which the finished evacuation is deleted, with its migrations. Without it, it is kept."""


class EvacuationItem(Model):
    """A pod with its devices, or devices that somebody without a pod has open: what moves as one."""

    key: Annotated[str, Field(min_length=1, max_length=512)]
    """What tells it from others for good: the pod's UID, or who holds the devices."""
    name: Annotated[str, Field(min_length=1, max_length=320)]
    """pod NAMESPACE/NAME, or device ADDRESS (of several, the first)."""
    phase: ItemPhase
    """Where it is."""
    devices: Count
    """How many devices it has."""
    target_node: NodeName | None = None
    """Where it goes; absent before that is chosen."""
    migration: DnsSubdomain | None = None
    """Its newest VFIOMigration."""
    namespace: DnsLabel | None = None
    """The namespace of that."""
    attempts: Count = 0
    """How many migrations were made for it."""
    message: Annotated[str, Field(max_length=1024)] | None = None
    """Why it waits, or failed."""


class EvacuationStatus(Model):
    """How far the evacuation has come; written by the operator only."""

    observed_generation: Count | None = None
    """The metadata.generation that this status was made for."""
    phase: EvacuationPhase | None = None
    """Where it is, in one word for people."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8, json_schema_extra=list_map("type"))] = ()
    """Finished, True however it ends, and Succeeded, Unknown until then."""
    items: Annotated[tuple[EvacuationItem, ...], Field(max_length=MAX_ITEMS, json_schema_extra=LIST_ATOMIC)] = ()
    """What was on the node when it began, and what became of it."""
    total: Count = 0
    """How many items there are."""
    moved: Count = 0
    """How many are moved."""
    failed: Count = 0
    """How many could not be."""
    message: Message | None = None
    """What is going on, or how it ended, in one sentence for people."""


class VFIOEvacuation(Resource):
    """Moves everything migratable that is in use on a node to other nodes, within the limits on migrations at once."""

    crd: ClassVar[CrdInfo] = CrdInfo(
        plural="vfioevacuations",
        singular="vfioevacuation",
        short_names=("vfe",),
        namespaced=False,
        columns=(
            Column("Node", ".spec.nodeName", description="Node to empty"),
            Column("Phase", ".status.phase", description="Where it is"),
            Column("Total", ".status.total", "integer", description="Items"),
            Column("Moved", ".status.moved", "integer", description="Items that are moved"),
            Column("Failed", ".status.failed", "integer", description="Items that could not be"),
            Column("Message", ".status.message", wide=True, description="What is going on"),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
        selectable_fields=(".spec.nodeName", ".status.phase"),
    )
    model_config = ConfigDict(
        json_schema_extra=rules(
            immutable("nodeName", _AGAIN, optional=False),
            *(immutable(field, _AGAIN) for field in ("targetNodes", "deviceNamespace", "strategy", "priority")),
            rule(
                "!has(oldSelf.spec.cancel) || !oldSelf.spec.cancel || (has(self.spec.cancel) && self.spec.cancel)",
                "spec.cancel cannot be taken back: create a new VFIOEvacuation",
                path=".spec.cancel",
                forbidden=True,
            ),
            rule(
                "!has(self.spec.targetNodes) || !(self.spec.nodeName in self.spec.targetNodes)",
                "the node that is emptied cannot be a target: leave it out",
                path=".spec.targetNodes",
            ),
        )
    )

    kind: Literal["VFIOEvacuation"] = "VFIOEvacuation"
    spec: EvacuationSpec
    """Which node, and where to. Only cancel and ttlSecondsAfterFinished can be changed after creation."""
    status: EvacuationStatus | None = None
    """How far the evacuation has come; written by the operator only."""
