"""The CRDs as data: they are what the models say, and say it to people; names and quantities."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from vfio_api.crd import custom_resource_definition, main, render, structural
from vfio_api.device import DeviceState
from vfio_api.models import (
    RESOURCES,
    Mode,
    Resource,
    VFIODevice,
    VFIOMigration,
    VFIOSwitchover,
    device_object_name,
    parse_quantity,
)
from vfio_api.models_strategy import PreCopy, Strategy
from vfio_api.quantity import PATTERN
from vfio_operator.observed import Strategy as Resolved
from vfio_operator.policies import resolve_strategy

REPOSITORY = Path(__file__).resolve().parents[2]
CRDS = REPOSITORY / "crds"

LABEL = re.compile("[a-z0-9]([-a-z0-9]*[a-z0-9])?")
KINDS = pytest.mark.parametrize("kind", RESOURCES, ids=lambda kind: kind.__name__)


def schema_of(kind: type[Resource]) -> dict[str, Any]:
    schema = custom_resource_definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert isinstance(schema, dict)
    return schema


def fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field below a schema with its path."""
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}")
    if "items" in schema:
        yield from fields(schema["items"], f"{path}[]")


# the files


def test_checked_in_files_are_the_generated_ones() -> None:
    on_disk = {path.name: path.read_text(encoding="utf-8") for path in CRDS.iterdir()}
    assert on_disk == render(), "run: python -m vfio_api.crd crds"


def test_generation_is_stable() -> None:
    assert render() == render()


def test_cli_writes_into_a_new_directory(tmp_path: Path) -> None:
    assert main([str(tmp_path / "new")]) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "vfiodevices.yaml",
        "vfioevacuations.yaml",
        "vfiomigrationpolicies.yaml",
        "vfiomigrations.yaml",
        "vfioswitchovers.yaml",
    }


def test_cli_wants_one_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err


def test_chart_links_to_the_only_copy() -> None:
    link = REPOSITORY / "charts" / "vfio-migration" / "crd-files"
    assert link.is_symlink()
    assert link.resolve() == CRDS


# the schemas


@KINDS
def test_every_field_has_a_description(kind: type[Resource]) -> None:
    assert schema_of(kind)["description"]
    silent = [path for path, field in fields(schema_of(kind)) if path != ".metadata" and not field.get("description")]
    assert silent == []


@KINDS
def test_schema_is_structural(kind: type[Resource]) -> None:
    for path, field in [("", schema_of(kind)), *fields(schema_of(kind))]:
        assert "type" in field or field.get("x-kubernetes-int-or-string"), path
        assert not {"$ref", "$defs", "title", "const", "oneOf"} & field.keys(), path
        assert not isinstance(field.get("additionalProperties"), bool), path
        if field.get("type") == "array":
            assert "maxItems" in field, f"{path}: the API server cannot bound the cost of rules"
            assert "x-kubernetes-list-type" in field, path
        if field.get("type") == "string" and "enum" not in field and "format" not in field:
            assert "maxLength" in field or path in {".apiVersion", ".kind"}, path


@KINDS
def test_status_has_no_defaults(kind: type[Resource]) -> None:
    properties = schema_of(kind)["properties"]
    assert ("status" in properties) == ("status" in kind.model_fields)
    status = properties.get("status", {})  # a policy has none
    assert [path for path, field in fields(status) if "default" in field] == []


@KINDS
def test_rules_for_transitions_are_at_the_root_only(kind: type[Resource]) -> None:
    """Below the root they do not run when their parent is removed."""
    below = [
        rule["rule"]
        for _, field in fields(schema_of(kind))
        for rule in [
            *field.get("x-kubernetes-validations", []),
            *field.get("items", {}).get("x-kubernetes-validations", []),
        ]
        if "oldSelf" in rule["rule"]
    ]
    assert below == []


def test_union_without_structural_form_is_refused() -> None:
    with pytest.raises(ValueError, match="no such union"):
        structural({"anyOf": [{"type": "object"}, {"type": "string"}]}, {})


def test_bounds_and_constants_are_converted() -> None:
    schema = {"type": "integer", "exclusiveMinimum": 0, "title": "X", "const": 3}
    expected = {"type": "integer", "format": "int64", "minimum": 0, "exclusiveMinimum": True, "enum": [3]}
    assert structural(schema, {}) == expected


def test_mapping_is_converted() -> None:
    schema = {"type": "object", "additionalProperties": {"$ref": "#/$defs/V"}}
    expected = {"type": "object", "additionalProperties": {"type": "string"}}
    assert structural(schema, {"V": {"type": "string", "title": "V"}}) == expected


def test_states_are_those_of_the_table() -> None:
    states = schema_of(VFIODevice)["properties"]["status"]["properties"]["state"]["enum"]
    assert states == [state.name for state in DeviceState]


# the models

MIGRATION = {
    "apiVersion": "vfiomigration.io/v1alpha1",
    "kind": "VFIOMigration",
    "metadata": {"name": "m", "namespace": "default", "uid": "u", "generation": 1, "managedFields": []},
    "spec": {
        "devices": [
            {
                "name": "gpu0",
                "source": {"nodeName": "node-a", "device": "0000:3b:00.2"},
                "target": {"nodeName": "node-b", "device": "0000:5e:00.2"},
            }
        ],
        "strategy": {"bandwidthLimitBytesPerSecond": "5Gi"},
    },
}


def test_defaults_of_the_model_are_those_of_the_design() -> None:
    migration = VFIOMigration.model_validate(MIGRATION)
    assert (migration.spec.mode, migration.spec.cancel) == (Mode.MIGRATE, False)
    assert (migration.spec.ttl_seconds_after_finished, migration.spec.priority) == (None, None)
    assert migration.spec.strategy.bandwidth_limit() == 5 * 2**30


def test_what_a_strategy_does_not_say_is_left_to_the_policy_and_then_to_the_design() -> None:
    """A default in the schema would outrank every policy."""
    assert Strategy().to_dict() == {}
    assert resolve_strategy(Strategy(), None) == Resolved(
        downtime_limit_milliseconds=300,
        pre_copy=PreCopy.AUTO,
        convergence_timeout_seconds=300,
        switch_over_on_timeout=False,
        switchover_ack=True,
        switchover_timeout_seconds=30,
        bandwidth_limit_bytes_per_second=0,
    )


def test_models_survive_a_round_trip() -> None:
    migration = VFIOMigration.model_validate(MIGRATION)
    assert VFIOMigration.model_validate(migration.to_dict()) == migration


def test_models_cannot_be_changed() -> None:
    migration = VFIOMigration.model_validate(MIGRATION)
    with pytest.raises(ValidationError, match="frozen"):
        migration.spec.cancel = True


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="postCopy"):
        VFIOMigration.model_validate(MIGRATION | {"spec": {"postCopy": True}})


def test_uid_keeps_its_kubernetes_spelling() -> None:
    spec = VFIOSwitchover.model_fields["spec"].annotation
    assert isinstance(spec, type)
    assert issubclass(spec, BaseModel)
    assert spec.model_fields["migration_uid"].alias == "migrationUID"


# quantities


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        ("1", 1),
        (2**60, 2**60),
        ("500M", 500_000_000),
        ("5Gi", 5 * 2**30),
        ("1k", 1000),
        ("1Ki", 1024),
        ("1.5Gi", 3 * 2**29),
        ("0.1", 1),
        ("1.0001Ki", 1025),
        ("1Ei", 2**60),
    ],
)
def test_quantity(value: int | str, expected: int) -> None:
    assert parse_quantity(value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "out of range"),
        (-1, "out of range"),
        (True, "not a quantity"),
        (1.5, "not a quantity"),
        ("", "not a quantity"),
        ("Gi", "not a quantity"),
        ("-5Gi", "not a quantity"),
        ("5 Gi", "not a quantity"),
        ("5Gi\n", "not a quantity"),
        ("٣Gi", "not a quantity"),
        ("1e9", "not a quantity"),
        ("0", "out of range"),
        ("0.0Gi", "out of range"),
        ("1.1Ei", "out of range"),
        ("9999Ei", "out of range"),
        (2**60 + 1, "out of range"),
        ("500m", "unknown unit 'm'"),
        ("5GB", "unknown unit 'GB'"),
        ("5K", "unknown unit 'K'"),
    ],
)
def test_bad_quantity_is_refused_with_a_reason(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_quantity(value)


@given(st.from_regex(PATTERN.replace("$", r"\Z"), fullmatch=True))
def test_pattern_and_parser_agree(value: str) -> None:
    """What the schema's pattern takes, the parser refuses for its size only."""
    try:
        assert 0 < parse_quantity(value) <= 2**60
    except ValueError as error:
        assert "out of range" in str(error)  # noqa: PT017


# names of VFIODevice objects

NODES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?){0,8}", fullmatch=True)
ADDRESSES = st.from_regex(r"[a-z0-9]+([:._-][a-z0-9]+){0,6}", fullmatch=True).filter(lambda text: len(text) <= 64)


@given(NODES, ADDRESSES)
def test_name_is_a_legal_one_and_always_the_same(node: str, address: str) -> None:
    name = device_object_name(node, address)
    assert LABEL.fullmatch(name)
    assert len(name) <= 253
    assert device_object_name(node, address) == name


@given(st.lists(st.tuples(NODES, ADDRESSES), min_size=2, max_size=20, unique=True))
def test_names_do_not_collide(devices: list[tuple[str, str]]) -> None:
    assert len({device_object_name(*device) for device in devices}) == len(devices)


@given(st.text("ab-.:_", min_size=2, max_size=8), st.data())
def test_names_of_devices_that_read_the_same_do_not_collide(text: str, data: st.DataObject) -> None:
    """One text cut in node and address at two places: the readable parts may be equal."""
    first, second = (data.draw(st.integers(0, len(text))) for _ in range(2))
    names = {device_object_name(text[:cut], text[cut:]) for cut in (first, second)}
    assert len(names) == len({first, second})


@pytest.mark.parametrize(
    ("node", "address", "readable"),
    [
        ("node-a", "0000:3b:00.2", "node-a-0000-3b-00-2-"),
        ("ip-10-0-0-1.example.com", "sim0", "ip-10-0-0-1-example-com-sim0-"),
        (
            "n" * 253,
            "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001",
            "n" * 100 + "-83b8f4f2-509f-382f-3c1e-e6bfe0fa1001-",
        ),
    ],
)
def test_name_can_be_read(node: str, address: str, readable: str) -> None:
    assert device_object_name(node, address).startswith(readable)


def test_name_never_changes() -> None:
    """Claims are kept under these names: another way to compute them would lose the claims."""
    assert device_object_name("node-a", "0000:3b:00.2") == "node-a-0000-3b-00-2-f1ccebf4396d"
