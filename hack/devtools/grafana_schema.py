"""Checks dashboards against Grafana's own types: the npm package @grafana/schema, by the TypeScript compiler."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from devtools.cache import build_once, content_key
from devtools.tools import MissingToolError

FOLDER = Path(__file__).resolve().parents[1] / "grafana-schema"
PACKAGES = (FOLDER / "package.json", FOLDER / "package-lock.json")


def complaints(boards: Mapping[str, str], scratch: Path) -> str:
    """What the compiler says of these dashboards, JSON by name; empty if they are as Grafana wants them.

    Raises MissingToolError if there is no node or its packages cannot be had.
    """
    packages = build_once("grafana-schema", content_key(PACKAGES), _install) / "node_modules"
    for name in ("board.ts", "tsconfig.json"):
        shutil.copy(FOLDER / name, scratch / name)
    (scratch / "node_modules").symlink_to(packages)
    for name, board in boards.items():
        text = f"import type {{ Board }} from './board';\nexport const board: Board = {board};\n"
        (scratch / f"{name}.ts").write_text(text, encoding="utf-8")
    compiler = [str(packages / ".bin" / "tsc"), "--project", "."]
    done = subprocess.run(compiler, cwd=scratch, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _install(into: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise MissingToolError("npm is missing: install Node.js 20 or newer with npm")
    for path in PACKAGES:
        shutil.copy(path, into / path.name)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=into, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MissingToolError(f"npm could not install {FOLDER.name} ({why}): check that npm reaches a registry")
