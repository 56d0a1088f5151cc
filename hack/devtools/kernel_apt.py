"""Debian packages without touching the machine's own apt set-up.

The mirror and the suite are those that apt on this machine already uses. The lists and the cache go to a
folder of the caller, so neither ``/etc/apt`` nor ``/var/lib/apt`` changes; only `install` writes to the
system.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from devtools.tools import MissingToolError

ARCHIVE_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
QEMU = "qemu-system-x86_64"
QEMU_PACKAGE = "qemu-system-x86"
QEMU_MINIMUM = (9, 2)
"""The first release whose ``stream`` network back end reconnects after fractions of a second."""


class PackageError(RuntimeError):
    """apt failed, or Debian no longer has what is asked for."""


@dataclass(frozen=True)
class Mirror:
    """A Debian archive and the release this machine runs, as apt knows them."""

    uri: str
    suite: str

    @property
    def backports(self) -> str:
        """The suite with newer packages built for the same release."""
        return f"{self.suite}-backports"


def require(*programs: str) -> None:
    """Raise `MissingToolError` that names every one of the programs that is not in PATH."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        names = ", ".join(missing)
        packages = "make gcc binutils tar xz-utils"
        raise MissingToolError(f"missing programs: {names}; on Debian: apt-get install {packages}")


@cache
def machine_mirror() -> Mirror:
    """Ask apt for the Debian archive that this machine uses.

    Raises `MissingToolError` where there is no apt or no Debian ``main`` component of amd64 among its
    sources.
    """
    require("apt-get")
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ARCHITECTURE)"
    listed = _run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"])
    for line in listed.splitlines():
        match line.split():
            case [uri, release, "main", "amd64"] if re.fullmatch(r"[a-z]+", release):
                return Mirror(uri, release)
    raise MissingToolError("the kernel guests need a Debian release (main, amd64) among apt's sources")


class PrivateApt:
    """apt with its own sources, lists and cache below one folder, for a release and its backports.

    suites: other suites of the mirror instead of these.
    """

    def __init__(self, work: Path, mirror: Mirror, suites: Sequence[str] = ()) -> None:
        self._work = work
        self.mirror = mirror
        parts, lists, cache = (work / name for name in ("sources", "lists", "cache"))
        for folder in (parts, lists / "partial", cache / "archives" / "partial"):
            folder.mkdir(parents=True, exist_ok=True)
        signed = f" [signed-by={ARCHIVE_KEYRING}]" if ARCHIVE_KEYRING.exists() else ""
        lines = [f"deb{signed} {mirror.uri} {suite} main\n" for suite in suites or (mirror.suite, mirror.backports)]
        (parts / "guest.list").write_text("".join(lines))
        settings = {
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": str(parts),
            "Dir::State::Lists": str(lists),
            "Dir::Cache": str(cache),
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
            "DPkg::Lock::Timeout": "120",
        }
        if os.geteuid() == 0:
            settings["APT::Sandbox::User"] = "root"
        self._options = [f"-o{key}={value}" for key, value in settings.items()]

    def update(self) -> None:
        """Fetch the package lists. Raises `PackageError`."""
        self._apt("apt-get", "-qq", "update")

    def dependency(self, package: str, pattern: str) -> str:
        """The first group of the pattern in what a package of backports depends on. Raises `PackageError`."""
        shown = self._apt("apt-cache", "show", f"{package}/{self.mirror.backports}")
        depends = "\n".join(line for line in shown.splitlines() if line.startswith("Depends:"))
        found = re.search(pattern, depends)
        if found is None:
            raise PackageError(f"{package} of {self.mirror.backports} depends on nothing like {pattern}")
        return found[1]

    def download(self, packages: Sequence[str], into: Path) -> None:
        """Put the named packages' files (``name`` or ``name/suite``) into a folder. Raises `PackageError`."""
        self._apt("apt-get", "-qq", "download", *packages, cwd=into)

    def install(self, package: str) -> None:
        """Install a package of backports with what it depends on, and no more. Raises `PackageError`."""
        arguments = ("-qq", "-y", "-t", self.mirror.backports, "install", "--no-install-recommends", package)
        self._apt("apt-get", *arguments)

    def _apt(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        return _run([program, *self._options, *arguments], cwd=cwd)


def ensure_qemu() -> str:
    """The path of QEMU for x86-64, installed by apt from backports if it is missing and we are root.

    Raises `MissingToolError` where it cannot be installed or where the one installed is too old.
    """
    if shutil.which(QEMU) is None:
        wanted = f"{QEMU} is missing: as root, apt-get install -t <release>-backports {QEMU_PACKAGE}"
        if os.geteuid() != 0:
            raise MissingToolError(wanted)
        with tempfile.TemporaryDirectory(prefix="guest-apt-") as work:
            apt = PrivateApt(Path(work), machine_mirror())
            apt.update()
            apt.install(QEMU_PACKAGE)
    path = shutil.which(QEMU)
    if path is None:
        raise MissingToolError(f"{QEMU} is not in PATH although {QEMU_PACKAGE} is installed")
    found = re.search(r"version (\d+)\.(\d+)", _run([path, "--version"]))
    if found is None or (int(found[1]), int(found[2])) < QEMU_MINIMUM:
        wanted = ".".join(map(str, QEMU_MINIMUM))
        raise MissingToolError(f"{path} is older than {wanted}: take {QEMU_PACKAGE} of <release>-backports")
    return path


def _run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PackageError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout
