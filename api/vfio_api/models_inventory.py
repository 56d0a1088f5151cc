"""VFIODevice: the inventory of devices, and which migration has reserved them."""

import hashlib
import re
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from vfio_api.models_common import (
    LIST_SET,
    Column,
    Count,
    CrdInfo,
    DeviceAddress,
    DnsLabel,
    DnsSubdomain,
    FlagName,
    Message,
    Model,
    NodeName,
    Resource,
    ShortText,
    StateName,
    Uid,
    immutable,
    rule,
    rules,
)

_HASH_DIGITS = 12
_NODE_LENGTH = 100
_ADDRESS_LENGTH = 64


def device_object_name(node: str, address: str) -> str:
    """Return the name of the VFIODevice for a device of a node: a DNS-1123 label of at most 178 characters.

    The readable part may be the same for two devices ("a-b" and "c", "a" and "b-c"); the hash makes it
    unique.
    """
    digest = hashlib.sha256(f"{node}\0{address}".encode()).hexdigest()[:_HASH_DIGITS]
    return "-".join(part for part in (_slug(node, _NODE_LENGTH), _slug(address, _ADDRESS_LENGTH), digest) if part)


def _slug(text: str, length: int) -> str:
    """Return `text` in lower case with dashes for all that is neither a letter nor a digit, none at its
    ends."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:length].strip("-")


class Backend(StrEnum):
    """What drives a device."""

    KERNEL = "Kernel"
    SIMULATED = "Simulated"


class ClaimRef(Model):
    """The migration that has reserved the device."""

    namespace: DnsLabel
    """Namespace of the VFIOMigration."""
    name: DnsSubdomain
    """Name of the VFIOMigration."""
    uid: Uid
    """UID of the VFIOMigration: the claim belongs to this very object, not to a later one of the same
    name."""


class DeviceSpec(Model):
    """Which device it is, and who has reserved it."""

    node_name: NodeName
    """Node that the device is plugged into."""
    address: DeviceAddress
    """The device as its bus names it, in lower case: a PCI address ("0000:3b:00.2"), an mdev UUID or a simple
    name."""
    backend: Backend
    """What drives it. Kernel: a real device, by the kernel's VFIO. Simulated: a device that only the agent
    makes up."""
    claim_ref: ClaimRef | None = None
    """The migration that has reserved the device; no other can until it is removed."""


class HolderPod(Model):
    """A pod of the device's node."""

    uid: Uid
    """UID of the pod, as the node's cgroups name it."""
    namespace: Annotated[str, Field(max_length=63)] = ""
    """Namespace of the pod; empty if the node does not tell."""
    name: Annotated[str, Field(max_length=253)] = ""
    """Name of the pod; empty if the node does not tell."""


class DeviceStatus(Model):
    """What the agent of the node knows of the device; written by that agent only."""

    driver: ShortText | None = None
    """Kernel driver that the device is bound to, such as mlx5_vfio_pci."""
    model: ShortText | None = None
    """Kind of device: PCI vendor and device ID ("15b3:101e") or mdev type. Source and target must have the
    same."""
    migration_flags: Annotated[tuple[FlagName, ...], Field(max_length=3, json_schema_extra=LIST_SET)] | None = None
    """What the device can: STOP_COPY (it can migrate), P2P (it can migrate with others), PRE_COPY (its state
    can be copied while it runs). Absent if unknown: flags are not read from devices that are in use."""
    migratable: bool | None = None
    """Whether the device can migrate; absent if unknown."""
    state: StateName | None = None
    """Migration state, as the VFIO uAPI names it; absent if nobody has the device open or if it is
    unknown."""
    incarnation: ShortText | None = None
    """Identifies this life of the device, from its opening on: what is known of one incarnation is not true
    of others."""
    holder: Annotated[str, Field(max_length=512)] | None = None
    """Who has live state in the device; absent if nobody has. A target must have no holder, a source must
    have one."""
    pod: HolderPod | None = None
    """The pod that has live state in it; absent if no pod has. Its devices move together or not at all."""
    stop_copy_bytes: Count | None = None
    """About how many bytes the device would give if it were stopped now, as its driver estimates; to two digits.
    Absent unless an agent has it open."""
    message: Message | None = None
    """What is wrong with the device or why it cannot migrate, in one sentence for people."""


class VFIODevice(Resource):
    """A VFIO device of a node, and which migration has reserved it. Agents create it and report on it."""

    crd: ClassVar[CrdInfo] = CrdInfo(
        plural="vfiodevices",
        singular="vfiodevice",
        short_names=("vfd",),
        namespaced=False,
        columns=(
            Column("Node", ".spec.nodeName", description="Node that the device is plugged into"),
            Column("Device", ".spec.address", description="The device as its bus names it"),
            Column("Driver", ".status.driver", description="Kernel driver"),
            Column("State", ".status.state", description="Migration state"),
            Column("Holder", ".status.holder", description="Who has live state in it"),
            Column("Claim", ".spec.claimRef.name", description="Migration that has reserved it"),
            Column("Model", ".status.model", wide=True, description="Kind of device"),
            Column("Flags", ".status.migrationFlags", wide=True, description="What the device can"),
            Column("Message", ".status.message", wide=True, description="What is wrong with it"),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
        selectable_fields=(".spec.nodeName", ".spec.claimRef.uid", ".status.migratable"),
    )
    model_config = ConfigDict(
        json_schema_extra=rules(
            *(
                immutable(field, "another device is another VFIODevice", optional=False)
                for field in ("nodeName", "address", "backend")
            ),
            # Claims are taken by a patch: this makes it a compare-and-set even without a resourceVersion.
            rule(
                "!has(oldSelf.spec.claimRef) || !has(self.spec.claimRef) || "
                "self.spec.claimRef == oldSelf.spec.claimRef",
                "the device is claimed by another migration; wait for it to finish, or cancel it",
                path=".spec.claimRef",
                forbidden=True,
                found="oldSelf.spec.claimRef.name",
            ),
        )
    )

    kind: Literal["VFIODevice"] = "VFIODevice"
    spec: DeviceSpec
    """Which device it is, and who has reserved it."""
    status: DeviceStatus | None = None
    """What the agent of the node knows of the device; written by that agent only."""
