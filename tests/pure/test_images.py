"""The two ways to an image agree: what the Dockerfiles say, and what is built without an engine."""

import os
import re
import tomllib
from pathlib import Path

import pytest

from devtools.images import IMAGES, ROOT, Image
from devtools.oci import seal_layer

PINNED = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


def _dockerfile(image: Image) -> str:
    return (ROOT / image.name.removeprefix("vfio-") / "Dockerfile").read_text()


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_the_dockerfile_runs_the_same(image: Image) -> None:
    text, config = _dockerfile(image).replace("\\\n", " "), image.config()
    stage = text.rpartition("\nFROM ")[2]
    assert f"USER {config.user}\n" in stage
    assert f'ENTRYPOINT ["{config.entrypoint[0]}"]' in stage
    assert dict(re.findall(r'(org\.opencontainers\.\S+?)="([^"]*)"', stage)) == config.labels
    environment = re.search(r"^ENV (.*)$", stage, re.MULTILINE)
    assert environment is not None
    assert dict(word.split("=", 1) for word in environment[1].split()) == config.environment


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_the_dockerfile_holds_the_same(image: Image) -> None:
    text = _dockerfile(image)
    assert f"-r requirements/{image.requirements.name}" in text
    kept = {package.name for package in image.packages}
    every = {path.name for path in ROOT.glob("*/vfio_*") if path.is_dir()}
    assert {name for name in every if f"/app/{name}" in text} == every - kept
    commands = set(re.findall(r"/project/bin/([\w*-]+)", text))
    for script in image.scripts:
        assert any(re.fullmatch(entry.replace("*", ".*"), script) for entry in commands), script
    assert all("@" in line or ":" in line for line in re.findall(r"^ARG PYTHON=(.*)$", text, re.MULTILINE))


def test_the_scripts_are_those_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    scripts = {name: target.removesuffix(":main") for name, target in project["scripts"].items()}
    assert {name: module for image in IMAGES for name, module in image.scripts.items()} == scripts
    assert {image.config().labels["org.opencontainers.image.version"] for image in IMAGES} == {project["version"]}


@pytest.mark.parametrize("name", ["operator", "agent", "build"])
def test_what_an_image_runs_was_tested_here(name: str) -> None:
    here = dict(PINNED.findall((ROOT / "requirements/dev.txt").read_text()))
    there = dict(PINNED.findall((ROOT / f"requirements/{name}.txt").read_text()))
    assert there
    assert there.items() <= here.items()


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "requirements").glob("*.txt")))
def test_pinned_packages_name_hashes_and_no_place(file: str) -> None:
    text = (ROOT / "requirements" / file).read_text()
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|--trusted-host", text)
    entries = re.split(r"\n(?=[a-z0-9])", text)
    assert all("--hash=sha256:" in entry for entry in entries if "==" in entry)


def test_a_layer_is_the_same_whenever_and_by_whomever_it_is_made(tmp_path: Path) -> None:
    digests = set()
    for number, mask in enumerate((0o022, 0o077)):
        old = os.umask(mask)
        try:
            root, target = tmp_path / f"{number}/root", tmp_path / f"{number}/layer"
            (root / "app").mkdir(parents=True)
            target.mkdir()
            (root / "app/run").write_text("#!/bin/sh\n")
            (root / "app/run").chmod(0o755 & ~mask)
            (root / "app/link").symlink_to("run")
            os.utime(root / "app/run", (number * 1000, number * 1000))
        finally:
            os.umask(old)
        seal_layer(root, target)
        digests.add((target / "digest").read_text())
    assert len(digests) == 1
