"""Every benchmark in turn, or those that are named; then all bars, each with its figure.

    make bench                        everything: about two hours, one of them the soak
    make bench ONLY="overhead qemu"   some of them; what the others found stays
    make bench SOAK=300               a shorter soak, in seconds

Each runs in a process of its own and leaves its figures and samples in bench/data; all figures together are in
bench/results.json, and docs/performance.md is drawn from them. Exit code: 0 if every bar holds, 1 if one falls short, 2
if something could not be measured, as without one of the peers.
"""

import json
import os
import subprocess
import sys
from typing import Any

import performance
from measure import DATA, HERE

# the soak last: everything else is known by then
NAMES = ("qemu", "overhead", "dataplane", "barrier", "scale", "devices", "prediction", "soak")
RESULTS = HERE / "results.json"
Json = dict[str, Any]


def run(name: str) -> bool:
    """One benchmark; whether it came to its end. What it found earlier is forgotten, however it ends."""
    print(f"== {name}", flush=True)
    (DATA / f"{name}.json").unlink(missing_ok=True)
    return subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=False).returncode == 0


def gather() -> list[Json]:
    """The figures of every benchmark that has left any, in the order of NAMES."""
    found: list[Json] = []
    for name in NAMES:
        path = DATA / f"{name}.json"
        if path.exists():
            found += json.loads(path.read_text())["results"]
    return found


def tell(results: list[Json]) -> bool:
    """Print every bar with its figure; whether all hold."""
    bars = [each for each in results if each["bar"]]
    width = max((len(each["name"]) for each in bars), default=0)
    for each in bars:
        verdict = "pass" if each["holds"] else "FALLS SHORT"
        print(f"{each['name']:{width}}  {each['figure']:>9.4g} {each['unit']}, bar {each['bar']}: {verdict}")
    return all(each["holds"] for each in bars)


def main() -> None:
    """See the module."""
    wanted = os.environ.get("ONLY", "").split() or list(NAMES)
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        sys.exit(f"bench: no benchmark is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    failed = [name for name in wanted if not run(name)]
    results = gather()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    held = tell(results)
    performance.draw(HERE.parent / "docs")
    if failed:
        print(f"not measured: {', '.join(failed)}; what is missing is said above", file=sys.stderr)
    sys.exit(2 if failed else 0 if held else 1)


if __name__ == "__main__":
    main()
