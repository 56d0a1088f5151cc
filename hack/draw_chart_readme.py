"""Writes charts/vfio-migration/README.md: helm-docs fills its template with what values.yaml says.

`make generate` calls it, a test keeps it current.
"""

import subprocess
from pathlib import Path

from devtools.chart_tools import helm_docs

CHART = Path(__file__).resolve().parents[1] / "charts/vfio-migration"
TARGET = CHART / "README.md"


def readme() -> str:
    """The README as the chart's values make it. Raises MissingToolError, CalledProcessError."""
    command = [helm_docs(), "--dry-run", "--sort-values-order=file", "--skip-version-footer", "--log-level=error"]
    made = subprocess.run([*command, f"--chart-search-root={CHART}"], capture_output=True, text=True, check=True)
    return made.stdout.strip() + "\n"


if __name__ == "__main__":
    TARGET.write_text(readme())
