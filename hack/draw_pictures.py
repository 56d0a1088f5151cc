"""Writes docs/drawings/*.svg, or into the folder that is given; `make generate` calls it, a test keeps them current."""

import sys
from pathlib import Path

from devtools.pictures import PICTURES

TARGET = Path(__file__).resolve().parents[1] / "docs/drawings"

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    for name, draw in PICTURES.items():
        (folder / f"{name}.svg").write_text(draw().text())
