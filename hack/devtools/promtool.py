"""Prometheus and promtool, from Debian's package, unpacked beside the machine's own software and cached."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from devtools.cache import build_once, content_key
from devtools.kernel_apt import PrivateApt, machine_mirror, require

PROGRAMS = ("prometheus", "promtool")


def promtool() -> Path:
    """The promtool binary. Raises MissingToolError or PackageError with one line that says what is missing."""
    return _programs() / "promtool"


def prometheus() -> Path:
    """The server, of the same package. Raises as `promtool` does."""
    return _programs() / "prometheus"


def _programs() -> Path:
    require("apt-get", "dpkg")
    return build_once("prometheus", content_key([Path(__file__)]), _unpack)


def _unpack(into: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        apt = PrivateApt(work, machine_mirror())
        apt.update()
        apt.download(["prometheus"], work)
        (package,) = work.glob("prometheus_*.deb")
        subprocess.run(["dpkg", "-x", str(package), str(work / "root")], check=True)
        for program in PROGRAMS:
            shutil.copy(work / "root/usr/bin" / program, into / program)


def check_metrics(text: str) -> str:
    """What `promtool check metrics` says of an exposition; empty if it is content."""
    done = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    complaints = (done.stdout + done.stderr).strip()
    return complaints or ("" if done.returncode == 0 else f"promtool ended with {done.returncode}")
