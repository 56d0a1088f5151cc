"""The disk of a guest that is a node: containerd's root with the images in it, baked once for their content."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from devtools.cache import build_once, content_key
from devtools.cluster.node_files import NodeFolders, write_node_files
from devtools.cluster.runtime import Runtime
from devtools.tools import MissingToolError

SCRIPT = Path(__file__).with_name("bake_disk.sh")


class DiskError(RuntimeError):
    """The disk cannot be made; the message ends with what its maker said."""


def node_disk(runtime: Runtime, archives: Sequence[Path]) -> Path:
    """An ext4 image to be /var/lib/containerd of nodes. Needs no root where user namespaces are allowed.

    archives: OCI images. Raises DiskError or MissingToolError.
    """
    key = content_key([SCRIPT, Path(__file__)], str(runtime.folder), *(str(archive) for archive in archives))
    return build_once("node-disk", key, lambda target: _bake(runtime, archives, target / "disk.ext4")) / "disk.ext4"


def _bake(runtime: Runtime, archives: Sequence[Path], disk: Path) -> None:
    paths = f"{runtime.folder}{os.pathsep}{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    if missing := [tool for tool in ("mke2fs", "unshare", "truncate") if shutil.which(tool, path=paths) is None]:
        raise MissingToolError(f"missing: {', '.join(missing)}; on Debian: apt-get install e2fsprogs util-linux")
    with tempfile.TemporaryDirectory(prefix="vd-", dir="/tmp") as folder:  # unix socket paths are short
        work = Path(folder)
        write_node_files(work, 0, NodeFolders(work, runtime.folder, work / "root", work / "s"))
        enter = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--user", "--map-root-user"))]
        argv = [*enter, "sh", str(SCRIPT), str(work), str(disk), str(runtime.ctr), *map(str, archives)]
        done = subprocess.run(argv, env={**os.environ, "PATH": paths}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DiskError(f"the node's disk: exit code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
