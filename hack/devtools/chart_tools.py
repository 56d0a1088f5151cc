"""What checks the chart, got into the cache when it is missing: helm-docs, kubeconform, checkov, schemas.

Go programs are those of the modules in hack/gotools, packages those of checkov-requirements.txt, both pinned by hash.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from devtools.cache import build_once, content_key
from devtools.gobuild import GO_ENVIRONMENT
from devtools.tools import MissingToolError, go, kubernetes_schemas

Json = dict[str, Any]
MODULES = Path(__file__).resolve().parents[1] / "gotools"
CHECKOV_REQUIREMENTS = Path(__file__).with_name("checkov-requirements.txt")
CHECKOV_FLAGS = ("--framework=kubernetes", "--skip-download", "--compact", "--quiet", "--output=json")


@dataclass(frozen=True)
class CrdModule:
    """A Go module that holds CRDs: where in it, and the checksum that Go must find."""

    path: str
    version: str
    checksum: str
    files: tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: "=" is a string."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda _loader, node: str(node.value))

CRD_MODULES = (
    CrdModule(
        "github.com/prometheus-operator/prometheus-operator",
        "v0.85.0",
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        tuple(
            f"example/prometheus-operator-crd/monitoring.coreos.com_{kind}.yaml"
            for kind in ("podmonitors", "prometheusrules", "servicemonitors")
        ),
    ),
    CrdModule(
        "github.com/cert-manager/cert-manager",
        "v1.21.2",
        "h1:UWgoYM+KLNtRlqmoWOKjKBOBUPVHeepQ6/ac3ERJW68=",
        ("deploy/crds/cert-manager.io_certificates.yaml", "deploy/crds/cert-manager.io_issuers.yaml"),
    ),
)


def helm_docs() -> Path:
    """The helm-docs program. Raises MissingToolError if it cannot be built."""
    return _built("helm-docs", "github.com/norwoodj/helm-docs/cmd/helm-docs")


def kubeconform() -> Path:
    """The kubeconform program. Raises MissingToolError if it cannot be built."""
    return _built("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform")


def scan(objects: list[Json]) -> list[tuple[str, str]]:
    """What checkov finds against these objects: (check, "Kind.namespace.name"), each once.

    It runs with its own packages only. Raises MissingToolError if it cannot be installed.
    """
    key = content_key([CHECKOV_REQUIREMENTS], sys.version, platform.machine())
    packages = build_once("checkov", key, _install_checkov)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "chart.yaml").write_text(yaml.safe_dump_all(objects))
        done = subprocess.run(
            [sys.executable, "-S", "-m", "checkov.main", "--file=chart.yaml", *CHECKOV_FLAGS],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1", "LOG_LEVEL": "ERROR"},
            capture_output=True,
            text=True,
            check=False,
        )
    report = json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else {}
    if not report.get("summary", {}).get("passed"):
        raise RuntimeError(f"checkov has scanned nothing: {(done.stdout + done.stderr).strip()[-500:]}")
    return sorted({(each["check_id"], each["resource"]) for each in report["results"]["failed_checks"]})


def foreign_crds() -> list[Json]:
    """The CRDs of CRD_MODULES. Raises MissingToolError if Go cannot get them."""
    key = content_key([], *(repr(module) for module in CRD_MODULES))
    folder = build_once("foreign-crds", key, _fetch_crds)
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def conform(objects: list[Json], crds: list[Json]) -> list[str]:
    """What kubeconform says of each object that does not fit the schema of its kind; fields unknown to it do not.

    crds: CRDs of kinds that are not Kubernetes' own. A kind without a schema is a complaint, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        for crd in crds:
            for name, schema in _schemas_of(crd):
                (Path(folder) / name).write_text(json.dumps(schema))
        done = subprocess.run(
            [
                kubeconform(),
                "-strict",
                "-output=json",
                f"-schema-location={kubernetes_schemas()}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json",
                f"-schema-location={folder}/{{{{.ResourceKind}}}}_{{{{.Group}}}}_{{{{.ResourceAPIVersion}}}}.json",
            ],
            input=yaml.safe_dump_all(objects),
            capture_output=True,
            text=True,
            check=False,
        )
    found = json.loads(done.stdout)["resources"] if done.stdout else [{"msg": done.stderr}]
    return [f"{each.get('kind')} {each.get('name')}: {each['msg']}" for each in found]


def _schemas_of(crd: Json) -> Iterator[tuple[str, Json]]:
    spec = crd["spec"]
    for version in spec["versions"]:
        name = f"{spec['names']['kind'].lower()}_{spec['group']}_{version['name']}.json"
        yield name, _closed(version["schema"]["openAPIV3Schema"], root=True)


def _closed(schema: Any, *, root: bool = False) -> Any:
    """A structural schema as strict JSON schema: no other fields than those that it knows."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: _closed(value) for key, value in schema.items() if key not in ("properties", "default")}
    if isinstance(properties := schema.get("properties"), Mapping):
        made["properties"] = {name: _closed(value) for name, value in properties.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and schema.get("type") == "object":
            made.setdefault("additionalProperties", False)
    if root:
        made["properties"].setdefault("metadata", {"type": "object"})
    return made


def _built(name: str, package: str) -> Path:
    module = MODULES / name
    key = content_key([module / "go.mod", module / "go.sum"], *GO_ENVIRONMENT.values(), platform.machine())

    def build(target: Path) -> None:
        _go(["build", "-trimpath", "-ldflags=-s -w", "-o", str(target / name), package], module)

    return build_once(name, key, build) / name


def _go(arguments: list[str], folder: Path) -> str:
    environment = os.environ | GO_ENVIRONMENT
    done = subprocess.run([go(), *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MissingToolError(f"go {arguments[0]} failed in {folder.name} ({why}): check that Go reaches its modules")
    return done.stdout


def _fetch_crds(target: Path) -> None:
    for module in CRD_MODULES:
        answer = json.loads(_go(["mod", "download", "-json", f"{module.path}@{module.version}"], target))
        if answer["Sum"] != module.checksum:
            raise MissingToolError(
                f"{module.path} {module.version} is not what was pinned: expected {module.checksum}, found "
                f"{answer['Sum']}; look at what has changed, then pin it anew"
            )
        for file in module.files:
            path = Path(answer["Dir"]) / file
            crd = yaml.load(path.read_text(), _Loader)
            (target / f"{path.stem}.json").write_text(json.dumps(crd))


def _install_checkov(target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--require-hashes", "--target", str(target)]
    done = subprocess.run([*command, "-r", CHECKOV_REQUIREMENTS], capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MissingToolError(f"pip could not install checkov ({why}): check that pip reaches a package index")
