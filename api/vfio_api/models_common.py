"""What the models of all kinds share: their base, bounded types, and what a CRD says besides its schema.

A field's docstring is its description in the CRD, so it is written for the reader of `kubectl explain`.
Bounds are there for the reader too, and because the API server refuses CEL rules whose cost it cannot bound.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from vfio_api import API_GROUP, API_VERSION
from vfio_api.device import DeviceState, MigrationFlags
from vfio_api.types import Outcome

MAX_PAIRS = 256
INT32_MAX = 2**31 - 1

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"

# In a schema: what the user is told in place of the API server's own words for a pattern, an enum or bounds.
TOLD = "x-told"


def told(message: str) -> dict[str, Any]:
    """JSON schema of a field that is refused in these words; `crd` makes a CEL rule of it."""
    return {TOLD: message}


def whole_number(least: int, most: int, unit: str) -> Any:
    """Bounds of a number of `unit`, refused in words that have the unit and no float ("3.6e+06")."""
    words = f"must be a whole number of {unit}, greater than or equal to {least} and at most {most}"
    return Field(ge=least, le=most, json_schema_extra=told(words))


DnsLabel = Annotated[
    str,
    Field(
        min_length=1,
        max_length=63,
        pattern=f"^{_LABEL}$",
        json_schema_extra=told(
            "must be a name of lower-case letters, digits and '-', with a letter or digit at both ends, such as gpu0"
        ),
    ),
]
DnsSubdomain = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=rf"^{_LABEL}(\.{_LABEL})*$",
        json_schema_extra=told(
            "must be the name of an object as kubectl get shows it: lower-case letters, digits, '-' and '.', with a "
            "letter or digit at both ends"
        ),
    ),
]
NodeName = DnsSubdomain
# PCI address, mdev UUID or a simple name: as sysfs spells them, so lower case, and never a path.
DeviceAddress = Annotated[
    str,
    Field(
        min_length=1,
        max_length=64,
        pattern="^[a-z0-9]+([:._-][a-z0-9]+)*$",
        json_schema_extra=told(
            "must be a device as kubectl get vfd shows it, in lower case and without a path: a PCI address such as "
            "0000:3b:00.2, an mdev UUID or a simple name"
        ),
    ),
]
Uid = Annotated[str, Field(min_length=1, max_length=63, pattern=f"^{_LABEL}$")]
ShortText = Annotated[str, Field(max_length=253)]
Message = Annotated[str, Field(max_length=4096)]
Count = Annotated[int, Field(ge=0)]
StateName = Annotated[str, Field(json_schema_extra={"enum": [state.name for state in DeviceState]})]
FlagName = Annotated[str, Field(json_schema_extra={"enum": [str(flag.name) for flag in MigrationFlags]})]


def list_map(key: str) -> dict[str, Any]:
    """JSON schema of a list whose items the API server tells apart by `key`: merged, and refused if
    doubled."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


LIST_SET: dict[str, Any] = {"x-kubernetes-list-type": "set"}
LIST_ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}


def rule(cel: str, message: str, *, path: str = "", forbidden: bool = False, found: str = "") -> dict[str, str]:
    """One x-kubernetes-validations entry.

    `path` (".spec.mode") is the field that the user's error names; `forbidden` makes it read "Forbidden"
    instead of "Invalid value", which would print the object. `found` is a CEL expression for what stands behind the
    message; no sum, since the API server thinks that the size of one has no bound.
    """
    entry = {"rule": cel, "message": message}
    if found:
        entry["messageExpression"] = f"'{message}; found ' + {found}"
    if path:
        entry["fieldPath"] = path
    if forbidden:
        entry["reason"] = "FieldValueForbidden"
    return entry


def rules(*entries: dict[str, str]) -> dict[str, Any]:
    """JSON schema of an object with CEL rules."""
    return {"x-kubernetes-validations": list(entries)}


def immutable(field: str, advice: str, *, optional: bool = True) -> dict[str, str]:
    """A rule for the ROOT of a kind: spec.`field` stays as it was created, absent if it was.

    At the root, because rules below it do not run when what holds them is removed.
    """
    same = f"self.spec.{field} == oldSelf.spec.{field}"
    if optional:
        both = f"has(self.spec.{field}) == has(oldSelf.spec.{field})"
        same = f"{both} && (!has(self.spec.{field}) || {same})"
    message = f"spec.{field} cannot be changed after creation: {advice}"
    return rule(same, message, path=f".spec.{field}", forbidden=True)


class Model(BaseModel):
    """Base of all models: frozen, camelCase outside and snake_case inside, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    def to_dict(self) -> dict[str, Any]:
        """As the API server takes it: camelCase, JSON types only, and no field that is None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `kubectl get`; those with `wide` are shown by -o wide only. `path` is a JSONPath."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False
    description: str = ""


@dataclass(frozen=True, slots=True)
class CrdInfo:
    """What a CRD says of a kind besides its schema."""

    plural: str
    singular: str
    short_names: tuple[str, ...]
    namespaced: bool
    columns: tuple[Column, ...]
    selectable_fields: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the CRD itself."""
        return f"{self.plural}.{API_GROUP}"


class Metadata(BaseModel):
    """The part of ObjectMeta that this project reads; the API server owns its schema, so the rest is passed
    over."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)

    name: str
    namespace: str | None = None
    uid: str | None = None
    generation: int | None = None
    resource_version: str | None = None
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()


class Resource(Model):
    """Base of the kinds; each adds kind, spec, status and `crd`."""

    crd: ClassVar[CrdInfo]

    api_version: str = f"{API_GROUP}/{API_VERSION}"
    metadata: Metadata


class DeviceRef(Model):
    """A device of a node."""

    node_name: NodeName
    """Node that the device is plugged into."""
    device: DeviceAddress
    """The device as its bus names it, in lower case: a PCI address ("0000:3b:00.2"), an mdev UUID or a simple
    name."""


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Model):
    """One aspect of the state, in the shape of metav1.Condition."""

    type: Annotated[str, Field(min_length=1, max_length=316, pattern="^[A-Z][A-Za-z0-9]*$")]
    """The aspect: Validated, Prepared, Converged, Quiesced, Committed, Finished or Succeeded."""
    status: ConditionStatus
    """Whether it holds: True, False or Unknown."""
    reason: Annotated[str, Field(min_length=1, max_length=1024, pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """Why, in one CamelCase word for programs, such as DeviceClaimed or ConvergenceTimeout."""
    message: Annotated[str, Field(max_length=32768)]
    """Why, for people; empty if there is nothing to add."""
    last_transition_time: AwareDatetime
    """When `status` last changed."""
    observed_generation: Count | None = None
    """The metadata.generation that the condition was made for; if that is older than the object's, it is out
    of date."""


class Decision(Model):
    """The outcome of a switchover, its author and its time."""

    outcome: Outcome
    """Commit: the targets start and the sources never run again. Abort: the sources run on, the targets are
    reset."""
    by: Annotated[str, Field(min_length=1, max_length=512)]
    """Who decided: the operator that leads, or the agent of a source node that had to decide by itself."""
    time: AwareDatetime
    """When it was decided, by the clock of whoever decided; for people only."""
