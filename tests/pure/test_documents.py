"""What is generated is current, and what the documents point at is there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_drawn_states_are_those_of_the_tables() -> None:
    drawn = subprocess.run(
        [sys.executable, ROOT / "hack/draw_states.py", "--stdout"], capture_output=True, text=True, check=True
    ).stdout
    assert drawn == (ROOT / "docs/states.md").read_text(), "run `make generate`"


def test_links_between_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} points at {target}"
