"""The Go programs of hack/testplane, built from released modules and kept in the cache by their content.

The control plane's first build takes minutes; the others of the same modules are quick after it.
"""

import os
import platform
import subprocess
from collections import deque
from collections.abc import Callable
from pathlib import Path

from devtools.cache import build_once, content_key
from devtools.tools import go

SOURCE = Path(__file__).resolve().parents[1] / "testplane"
KUBERNETES = "1.37.2"
LOG_TAIL_LINES = 30

# How Go builds them. Each of these is part of Go's own build cache key: use no others.
# Neither inlining nor debug data: a third less to compile, for 0.4 s more at each start.
GO_ENVIRONMENT = {
    "CGO_ENABLED": "0",
    "GOFLAGS": "-buildvcs=false -mod=readonly",
    "GOTOOLCHAIN": "local",
    "GOWORK": "off",
}
COMPILER_FLAGS = ["-trimpath", "-gcflags=all=-l -dwarf=false"]
# Module downloads plus compiled packages of a build that has nothing cached, before Go has counted.
STEPS_OF_A_COLD_BUILD = 2700

Progress = Callable[[int, int], None]


class BuildError(RuntimeError):
    """Go could not build a program; the message ends with what it said."""


def build_program(name: str, folder: str = ".", progress: Progress | None = None) -> Path:
    """Return the program of a folder of hack/testplane, building it unless the cache has it.

    A build calls progress with steps done and steps in total; the total is a guess until all modules
    are there. The last call, of a build or not, has both equal.

    Raises:
        MissingToolError: there is no Go to build with.
        BuildError: the build fails, for instance because a module cannot be downloaded.
    """
    report = progress or (lambda _done, _total: None)
    files = [*(SOURCE / folder).glob("*.go"), SOURCE / "go.mod", SOURCE / "go.sum"]
    flags = [*COMPILER_FLAGS, f"-ldflags={_linker_flags()}"]
    key = content_key(files, *flags, *GO_ENVIRONMENT.values(), platform.machine())
    directory = build_once(name, key, lambda target: _build(name, f"./{folder}", flags, target, report))
    report(1, 1)
    return directory / name


def _linker_flags() -> str:
    """Return flags that give the server its version, which kubectl wants to compare with its own."""
    major, minor, _ = KUBERNETES.split(".")
    values = {
        "gitVersion": f"v{KUBERNETES}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "testplane",
        "buildDate": "2026-11-22T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(["-s -w", *(f"-X {package}.{k}={v}" for package in packages for k, v in values.items())])


def _build(name: str, package: str, flags: list[str], target: Path, report: Progress) -> None:
    """Download modules and count what must be compiled, then compile it."""
    done = 0
    to_compile: set[str] = set()

    def download(line: str) -> None:
        nonlocal done
        if line.startswith("stale "):
            to_compile.add(line.removeprefix("stale "))
        elif line.startswith("go: downloading "):
            done += 1
            report(done, STEPS_OF_A_COLD_BUILD)

    _run_go(["list", "-deps", *flags, "-f", "{{if .Stale}}stale {{.ImportPath}}{{end}}", package], download)
    total = done + len(to_compile) + 1  # the last step is to link

    def compiled(line: str) -> None:
        nonlocal done
        if line in to_compile:
            done += 1
            report(done, total)

    _run_go(["build", "-v", *flags, "-o", str(target / name), package], compiled)
    report(total, total)


def _run_go(args: list[str], each_line: Callable[[str], None]) -> None:
    """Run go in the source directory and hand on each line it prints, on stdout or stderr."""
    tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
    with subprocess.Popen(
        [go(), *args],
        cwd=SOURCE,
        env=os.environ | GO_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                tail.append(line)
                each_line(line.rstrip("\n"))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise BuildError(f"go {args[0]} failed with exit code {process.returncode}:\n{''.join(tail)}")
