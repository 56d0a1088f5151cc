"""What a node runs beside the kubelet: containerd with its shim, runc and the network plugins, from Debian's packages.

The kubelet wants a containerd of version 2, which no stable release has yet; runc and the plugins are the machine's own
release's, since they bring libraries along.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from devtools.cache import build_once, content_key
from devtools.kernel_apt import PrivateApt, machine_mirror, require

NEWEST = "sid"
FILES = {
    "containerd": ("usr/bin/containerd", "usr/bin/containerd-shim-runc-v2", "usr/bin/ctr"),
    "runc": ("usr/sbin/runc", "usr/bin/runc"),
    "containernetworking-plugins": tuple(f"usr/lib/cni/{name}" for name in ("bridge", "host-local", "loopback")),
}


@dataclass(frozen=True)
class Runtime:
    """A folder with the programs of a container runtime."""

    folder: Path

    @property
    def ctr(self) -> Path:
        """containerd's own client."""
        return self.folder / "ctr"


def container_runtime() -> Runtime:
    """The programs, from the cache or downloaded. Raises MissingToolError or PackageError."""
    require("apt-get", "dpkg-deb")
    return Runtime(build_once("container-runtime", content_key([Path(__file__)]), _fetch))


def _fetch(target: Path) -> None:
    mirror = machine_mirror()
    with tempfile.TemporaryDirectory(prefix="runtime-apt-") as folder:
        work = Path(folder)
        for suite, names in ((NEWEST, ["containerd"]), (mirror.suite, ["runc", "containernetworking-plugins"])):
            apt = PrivateApt(work / suite, mirror, [suite])
            apt.update()
            apt.download(names, work)
        for package in sorted(work.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, work / "root"], check=True)
        for files in FILES.values():
            for path in (work / "root" / file for file in files):
                if path.exists():
                    shutil.copy(path, target / path.name)
