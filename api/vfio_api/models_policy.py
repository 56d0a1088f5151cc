"""VFIOMigrationPolicy: how migrations of some namespaces, or with some labels, are done unless they say otherwise."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from vfio_api.models_common import Column, CrdInfo, Model, Resource, rule, rules
from vfio_api.models_strategy import Strategy

MAX_LABELS = 16
Labels = Annotated[
    dict[str, Annotated[str, Field(max_length=63)]],
    Field(max_length=MAX_LABELS, json_schema_extra={"maxProperties": MAX_LABELS}),
]


class PolicySpec(Model):
    """Which migrations, and how they are done."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.strategy) || has(self.priority)",
                "give strategy, priority or both: a policy that says neither changes nothing",
            )
        )
    )

    namespace_selector: Labels = Field(default_factory=dict)
    """Labels that the migration's namespace has; all of them. Empty: any namespace."""
    migration_selector: Labels = Field(default_factory=dict)
    """Labels that the migration has; all of them. Empty: any migration."""
    strategy: Strategy | None = None
    """The knobs, as in a migration's spec; what a migration says itself counts more."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    """Of migrations that wait for others to end, the highest comes first."""

    def selects(self, namespace: Mapping[str, str], migration: Mapping[str, str]) -> bool:
        """Whether it is for a migration with these labels, in a namespace with these."""
        return (
            self.namespace_selector.items() <= namespace.items()
            and self.migration_selector.items() <= migration.items()
        )

    @property
    def specificity(self) -> int:
        """How many labels it names: of those that select a migration, the one with the most counts."""
        return len(self.namespace_selector) + len(self.migration_selector)


class VFIOMigrationPolicy(Resource):
    """How migrations are done unless they say otherwise. Of the policies that select a migration, the one with the most
    labels counts, and nothing of the others; two with as many are a conflict, and the migration is refused."""

    crd: ClassVar[CrdInfo] = CrdInfo(
        plural="vfiomigrationpolicies",
        singular="vfiomigrationpolicy",
        short_names=("vfp",),
        namespaced=False,
        columns=(
            Column("Downtime-ms", ".spec.strategy.downtimeLimitMilliseconds", "integer", description="Downtime limit"),
            Column("Bandwidth", ".spec.strategy.bandwidthLimitBytesPerSecond", description="Bandwidth limit"),
            Column("Priority", ".spec.priority", "integer", description="Priority of those that wait"),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )

    kind: Literal["VFIOMigrationPolicy"] = "VFIOMigrationPolicy"
    spec: PolicySpec
    """Which migrations, and how they are done."""
