"""Randomized inputs for every parser and every side of every channel; see `devtools.fuzz`. `make fuzz` runs it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:0] = [str(ROOT / folder) for folder in ("hack", "api", "operator", "agent")]

from devtools.fuzz.run import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
