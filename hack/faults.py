"""The fault matrix: `make faults`. Exit code 1 if a promise was broken, a cell stuck, missed, or not run."""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from devtools.faults.cells import all_cells
from devtools.faults.report import Result, last_line, markdown, summary, to_json
from devtools.faults.run import Matrix, chosen


def main() -> int:
    """Run the chosen cells and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("words", nargs="*", help="run only cells whose name contains one of these")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="the same as an option")
    parser.add_argument("--list", action="store_true", help="only list the cells")
    parser.add_argument("--lanes", type=int, default=3, help="cells at once on the shared control plane")
    parser.add_argument("--alone", type=int, default=1, help="control planes for cells that disturb the operator")
    parser.add_argument("--report", type=Path, default=Path("build"), help="where faults.md and faults.json go")
    parser.add_argument("--mutants", action="store_true", help="broken versions instead: does the checker catch them?")
    options = parser.parse_args()
    if options.mutants:
        argv = [sys.executable, "-m", "pytest", "-v", "--no-header", "tests/cluster/test_fault_mutants.py"]
        return subprocess.run(argv, cwd=Path(__file__).resolve().parents[1], check=False).returncode
    cells = chosen(all_cells(), [*options.words, *options.only])
    if options.list:
        for cell in cells:
            print(f"{cell.name} ({cell.shape})")
        print(f"{len(cells)} cells")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="vf-", dir="/tmp"))  # unix socket paths are short
    done: list[Result] = []
    began = time.monotonic()

    def told(result: Result, seconds: float) -> None:
        done.append(result)
        mark = "ok" if not (result.violations or result.error or result.missed or result.stuck) else "BAD"
        print(
            f"{seconds:7.1f} s {len(done):4d}/{len(cells)} {mark:3} {result.cell} ({result.shape}): {result.phase} "
            f"{result.reason} {result.decision}",
            flush=True,
        )
        for each in (*map(str, result.violations), *filter(None, (result.error,))):
            print(f"            {each}", flush=True)

    matrix = Matrix(folder, told)
    try:
        results = matrix.run(cells, options.lanes, options.alone)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    options.report.mkdir(parents=True, exist_ok=True)
    (options.report / "faults.md").write_text(markdown(results))
    (options.report / "faults.json").write_text(to_json(results))
    figures = summary(results)
    for each in matrix.broken:
        print(f"did not work: {each}")
    print(f"run in {time.monotonic() - began:.0f} s")
    print("\n".join(markdown(results).splitlines()[-4:-1]))
    print(last_line(results))
    bad = any(figures[name] for name in ("violations", "stuck", "missed", "errors"))
    return int(bad or bool(matrix.broken) or len(results) < len(cells))


if __name__ == "__main__":
    sys.exit(main())
