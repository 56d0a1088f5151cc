"""What may import what, and where packages may not be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("folder", ["operator", "agent", "api", "cli"])
def test_a_component_is_a_plain_folder_with_one_package_in_it(folder: str) -> None:
    """An importable top-level `operator` would shadow the standard library. An image's Dockerfile may lie beside it."""
    inside = {path.name for path in (REPOSITORY / folder).iterdir() if path.name != "__pycache__"}
    assert inside - {"Dockerfile"} == {f"vfio_{folder}"}
    assert (REPOSITORY / folder / f"vfio_{folder}" / "__init__.py").is_file()


def test_the_standard_library_keeps_its_operator() -> None:
    import operator

    assert operator.__file__ is None or REPOSITORY not in Path(operator.__file__).parents


def lint_imports(config: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(REPOSITORY / folder) for folder in ("api", "operator", "agent"))
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", config],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_import_contracts_hold() -> None:
    found = lint_imports(REPOSITORY / "pyproject.toml")
    assert found.returncode == 0, found.stdout + found.stderr
    assert " 0 broken" in found.stdout


def test_mutant_a_decision_that_may_not_know_its_own_tables_breaks_a_contract(tmp_path: Path) -> None:
    """The contracts are able to fail: one that forbids what is there is broken."""
    whole = (REPOSITORY / "pyproject.toml").read_text()
    narrow = whole.replace('"google", "grpc", "kopf",', '"google", "grpc", "kopf", "vfio_api.device",')
    assert narrow != whole
    config = tmp_path / "pyproject.toml"
    config.write_text(narrow.replace('    "vfio_api.device",\n', "", 1))
    found = lint_imports(config)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "vfio_agent.machine -> vfio_api.device" in found.stdout


def test_mutant_a_component_that_knows_opentelemetry_breaks_a_contract(tmp_path: Path) -> None:
    """One module may; taken back its leave, it is found."""
    whole = (REPOSITORY / "pyproject.toml").read_text()
    narrow = whole.replace('ignore_imports = ["vfio_api.otlp -> opentelemetry"]\n', "")
    assert narrow != whole
    config = tmp_path / "pyproject.toml"
    config.write_text(narrow)
    found = lint_imports(config)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "vfio_api.otlp -> opentelemetry" in found.stdout
