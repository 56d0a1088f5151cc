"""VFIOSwitchover: that a switchover was begun, and the one decision that ends it."""

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from vfio_api.models_common import (
    LIST_SET,
    MAX_PAIRS,
    Column,
    CrdInfo,
    Decision,
    DnsSubdomain,
    Model,
    NodeName,
    Resource,
    Uid,
    rule,
    rules,
)

Nodes = Annotated[tuple[NodeName, ...], Field(min_length=1, max_length=MAX_PAIRS, json_schema_extra=LIST_SET)]


class SwitchoverSpec(Model):
    """Who takes part in the switchover; it cannot be changed."""

    migration_name: DnsSubdomain
    """Name of the VFIOMigration, in the same namespace."""
    migration_uid: Annotated[Uid, Field(alias="migrationUID")]
    """UID of the VFIOMigration, and the name of this object: a migration created anew inherits no
    decision."""
    epoch: Annotated[int, Field(ge=1)]
    """Fencing number of the operator that began the switchover."""
    source_nodes: Nodes
    """Nodes that have source devices. Their agents may write Abort."""
    target_nodes: Nodes
    """Nodes that have target devices."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3_600)]
    """Seconds after which a source node that hears nothing asks for Abort by itself."""


class SwitchoverStatus(Model):
    """How the switchover ends."""

    decision: Decision | None = None
    """The decision. Written once, by the operator or by the agent of a source node; whoever is first decides
    for all."""


class VFIOSwitchover(Resource):
    """A switchover. Its creation is the intent to switch over and status.decision is its outcome; the
    operator and the agents write it, people only read it."""

    crd: ClassVar[CrdInfo] = CrdInfo(
        plural="vfioswitchovers",
        singular="vfioswitchover",
        short_names=("vfs",),
        namespaced=True,
        columns=(
            Column("Migration", ".spec.migrationName", description="Name of the VFIOMigration"),
            Column("Decision", ".status.decision.outcome", description="Commit or Abort"),
            Column("By", ".status.decision.by", description="Who decided"),
            Column("Epoch", ".spec.epoch", "integer", wide=True, description="Fencing number of the operator"),
            Column("Sources", ".spec.sourceNodes", wide=True, description="Nodes that have source devices"),
            Column("Targets", ".spec.targetNodes", wide=True, description="Nodes that have target devices"),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
        selectable_fields=(".spec.migrationName", ".status.decision.outcome"),
    )
    # At the root: a rule below `status` does not run when status itself is removed.
    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(oldSelf.status) || !has(oldSelf.status.decision) || (has(self.status) && "
                "has(self.status.decision) && self.status.decision == oldSelf.status.decision)",
                "status.decision is written once: read it back and obey it",
                path=".status.decision",
                forbidden=True,
                found="oldSelf.status.decision.outcome",
            ),
            rule(
                "self.spec == oldSelf.spec",
                "spec cannot be changed after creation: every switchover has an object of its own",
                path=".spec",
                forbidden=True,
            ),
            rule(
                "self.metadata.name == self.spec.migrationUID",
                "metadata.name must be the UID of the migration, as in spec.migrationUID",
                path=".spec.migrationUID",
            ),
        )
    )

    kind: Literal["VFIOSwitchover"] = "VFIOSwitchover"
    spec: SwitchoverSpec
    """Who takes part in the switchover; it cannot be changed."""
    status: SwitchoverStatus | None = None
    """How the switchover ends."""
