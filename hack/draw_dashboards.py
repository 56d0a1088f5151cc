"""Writes the dashboards into the chart; `make generate` calls it, a test keeps them current."""

import sys
from pathlib import Path

from devtools.dashboards.boards import DASHBOARDS
from devtools.dashboards.grafana import render

FOLDER = Path(__file__).resolve().parents[1] / "charts/vfio-migration/dashboards"


def write(folder: Path) -> None:
    """One file a dashboard, and no other."""
    for old in folder.glob("*.json"):
        old.unlink()
    for dashboard in DASHBOARDS:
        (folder / f"{dashboard.uid}.json").write_text(render(dashboard), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
