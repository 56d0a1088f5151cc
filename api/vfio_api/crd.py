"""Turns the models into CustomResourceDefinitions: `python -m vfio_api.crd OUTDIR` writes one file for each
kind.

pydantic emits JSON Schema 2020-12; the API server takes a structural schema, a stricter OpenAPI v3 subset.
What the models say beyond both (list types, CEL rules) passes through as it is. Source:
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vfio_api import API_GROUP, API_VERSION
from vfio_api.models import RESOURCES, Column, Resource
from vfio_api.models_common import TOLD, rule

Schema = dict[str, Any]

_HEADER = "# Generated from api/vfio_api/models.py by `python -m vfio_api.crd crds`. Do not edit.\n"
# What pydantic emits and a structural schema has no use for; exclusive bounds and unions are converted.
_DROPPED = frozenset(
    {"title", "additionalProperties", "$defs", "anyOf", "const", "exclusiveMinimum", "exclusiveMaximum"}
)
_INTEGER_OR_STRING = {"integer", "string"}
# of a value of an enum, where a CEL rule stands for it and has to know what it may cost
_ENUM_LENGTH = 64


def structural(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """Return the structural form of one JSON schema node, with everything it refers to inlined.

    Raises ValueError for what has none, such as a union of two objects.
    """
    if "$ref" in schema:
        siblings = {key: value for key, value in schema.items() if key != "$ref"}
        return structural(definitions[schema["$ref"].removeprefix("#/$defs/")] | siblings, definitions)
    if "anyOf" in schema:
        return _union(schema, definitions)
    out = {key: value for key, value in schema.items() if key not in _DROPPED}
    for bound in ("Minimum", "Maximum"):
        # a number in JSON Schema 2020-12, a flag beside the bound in OpenAPI v3
        if f"exclusive{bound}" in schema:
            out |= {bound.lower(): schema[f"exclusive{bound}"], f"exclusive{bound}": True}
    if "const" in schema:
        out["enum"] = [schema["const"]]
    if isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = structural(schema["additionalProperties"], definitions)
    if "items" in schema:
        out["items"] = structural(schema["items"], definitions)
    if "properties" in schema:
        out["properties"] = {name: structural(field, definitions) for name, field in schema["properties"].items()}
    if schema.get("type") == "integer":
        out.setdefault("format", "int64")
    if "description" in schema:
        out["description"] = _paragraphs(schema["description"])
    if isinstance(schema.get("default"), dict):
        out["default"] = {}  # each field brings its own
    return {key: out[key] for key in sorted(out, key=_place)}


def _place(key: str) -> tuple[bool, bool, str]:
    """Sort key: the description first, then the type, then the rest by name."""
    return key != "description", key != "type", key


def _union(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """Return the structural form of `X | None` (a field that may be left out) or of `int | str`."""
    branches = [branch for branch in schema["anyOf"] if branch.get("type") != "null"]
    outer = {key: value for key, value in schema.items() if key != "anyOf" and not (key == "default" and value is None)}
    if len(branches) == 1:
        return structural(branches[0] | outer, definitions)
    if {branch.get("type") for branch in branches} != _INTEGER_OR_STRING:
        raise ValueError(f"a structural schema has no such union: {schema['anyOf']}")
    return structural(outer, definitions) | {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "x-kubernetes-int-or-string": True,
    }


def _paragraphs(text: str) -> str:
    """Return `text` with each paragraph on one line, however the source wraps it."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text))


def _said(schema: Schema) -> Schema:
    """Return the schema with a CEL rule, which can have a message of ours, for each pattern, enum or bounds that has
    one."""
    out = dict(schema)
    if message := out.pop(TOLD, ""):
        low, high = out.pop("minimum", None), out.pop("maximum", None)
        tests = [f"self >= {low}"] if low is not None else []
        tests += [f"self <= {high}"] if high is not None else []
        if pattern := out.pop("pattern", ""):
            tests.append(f"self.matches(r'{pattern}')")
        if values := out.pop("enum", ()):
            tests.append(f"self in {list(values)}")
            out["maxLength"] = _ENUM_LENGTH
        out["x-kubernetes-validations"] = [*out.get("x-kubernetes-validations", ()), rule(" && ".join(tests), message)]
    return _each(_said, out)


def _plain(schema: Schema) -> Schema:
    """Return the schema without such messages: only programs write a status, and theirs is checked often."""
    return _each(_plain, {key: value for key, value in schema.items() if key != TOLD})


def _each(change: Callable[[Schema], Schema], schema: Schema) -> Schema:
    """Return the schema with the change made to everything right below it."""
    out = dict(schema)
    if "items" in out:
        out["items"] = change(out["items"])
    if "properties" in out:
        out["properties"] = {name: change(field) for name, field in out["properties"].items()}
    return out


def _without_defaults(schema: Schema) -> Schema:
    """Return the schema without defaults: what nobody reported must not show up in a status."""
    return _each(_without_defaults, {key: value for key, value in schema.items() if key != "default"})


def _root_schema(model: type[Resource]) -> Schema:
    """Return the openAPIV3Schema of a kind."""
    schema = model.model_json_schema(by_alias=True)
    root = structural(schema, schema.get("$defs", {}))
    fields = root["properties"]
    # The API server defines these three and takes no other constraints on them.
    fields["apiVersion"] = {"type": "string", "description": f"{API_GROUP}/{API_VERSION}"}
    fields["kind"] = {"type": "string", "description": model.__name__}
    fields["metadata"] = {"type": "object"}
    fields["spec"] = _said(fields["spec"])
    if "status" in fields:
        fields["status"] = _plain(_without_defaults(fields["status"]))
    root["required"] = ["spec"]
    return root


def _column(column: Column) -> dict[str, Any]:
    """Return one entry of additionalPrinterColumns."""
    out: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.description:
        out["description"] = column.description
    if column.wide:
        out["priority"] = 1
    return out


def custom_resource_definition(model: type[Resource]) -> dict[str, Any]:
    """Return the CRD of a kind as the API server takes it."""
    info = model.crd
    version: dict[str, Any] = {
        "name": API_VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _root_schema(model)},
    }
    if "status" in model.model_fields:
        version["subresources"] = {"status": {}}
    version["additionalPrinterColumns"] = [_column(column) for column in info.columns]
    if info.selectable_fields:
        version["selectableFields"] = [{"jsonPath": path} for path in info.selectable_fields]
    names = {
        "kind": model.__name__,
        "listKind": f"{model.__name__}List",
        "plural": info.plural,
        "singular": info.singular,
        "shortNames": list(info.short_names),
        "categories": ["vfio"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": info.name},
        "spec": {
            "group": API_GROUP,
            "names": names,
            "scope": "Namespaced" if info.namespaced else "Cluster",
            "versions": [version],
        },
    }


def render(models: Iterable[type[Resource]] = RESOURCES) -> dict[str, str]:
    """Return the text of each CRD file by its name, for instance "vfiodevices.yaml"."""
    import yaml  # at run time nobody needs it

    files = {}
    for model in models:
        # The copy shares nothing with itself, or YAML would say so with anchors.
        copy = json.loads(json.dumps(custom_resource_definition(model)))
        text = yaml.safe_dump(copy, sort_keys=False, width=110, allow_unicode=True)
        files[f"{model.crd.plural}.yaml"] = _HEADER + text
    return files


def main(arguments: list[str]) -> int:
    """Write the CRD files into the directory named by the only argument; return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m vfio_api.crd OUTDIR", file=sys.stderr)
        return 2
    target = Path(arguments[0])
    target.mkdir(parents=True, exist_ok=True)
    for name, text in render().items():
        (target / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
