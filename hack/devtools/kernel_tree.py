"""What the guests need of Debian's kernel packages: downloaded, unpacked, and cut down to size."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from devtools.kernel_apt import Mirror, PackageError, PrivateApt, require

MODULE_FOLDERS = ("fs/9p", "fs/netfs", "net/9p", "net/core", "drivers/net")
NODE_MODULES = ("virtio_blk", "ext4", "crc32c_generic", "overlay", "bridge", "veth")
"""What a guest that is a Kubernetes node has beside those: containers on a disk of their own, and a pod network."""
NODE_FILES = (*NODE_MODULES, "jbd2", "mbcache", "crc16", "stp", "llc")
IMAGE_FILES = (
    "./boot/vmlinuz-*",
    *(f"*/lib/modules/*/kernel/{folder}/*.ko*" for folder in MODULE_FOLDERS),
    *(f"*/lib/modules/*/kernel/*/{name}.ko*" for name in NODE_FILES),
)
SOURCES = (
    "drivers/iommu/iommu-priv.h",
    "drivers/iommu/iommufd/*.[ch]",
    "drivers/vfio/*.[ch]",
    "drivers/vfio/mdev/*.[ch]",
    "lib/interval_tree.c",
    "samples/vfio-mdev/mtty.c",
)
"""What is compiled for the guests (`devtools.kernel_modules`)."""
_STREAM_BUFFER = 1 << 20


def fetch_tree(target: Path, mirror: Mirror) -> None:
    """Fill a folder with the kernel's image, some modules, headers, kbuild and sources, and with busybox and zstd.

    All is unpacked in ``root`` but for the kernel's own sources, of which ``source`` has what is compiled for the
    guests. The kernel is the one that linux-image-amd64 of backports stands for; its version goes to the file
    ``abi``. Raises `MissingToolError` or `PackageError`.
    """
    require("apt-get", "apt-cache", "dpkg-deb", "tar", "xz")
    work = target / "download"
    apt = PrivateApt(work, mirror)
    apt.update()
    abi = apt.dependency("linux-image-amd64", r"\blinux-image-(\d\S*)-amd64\b")
    version = ".".join(abi.split(".")[:2])
    packages = [
        f"linux-image-{abi}-amd64",
        f"linux-headers-{abi}-amd64",
        f"linux-headers-{abi}-common",
        f"linux-kbuild-{abi}",
        f"linux-source-{version}",
        f"busybox-static/{mirror.suite}",
        f"zstd/{mirror.suite}",
    ]
    apt.download(packages, work)
    root = target / "root"
    root.mkdir()
    for deb in sorted(work.glob("*.deb")):
        if deb.name.startswith("linux-image-"):
            _unpack_some(deb, root)
        elif deb.name.startswith("linux-source-"):
            _unpack_sources(deb, target / "source")
        else:
            subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
    (target / "abi").write_text(abi)
    shutil.rmtree(work)


def only(folder: Path, pattern: str) -> Path:
    """The one path below a folder that matches. Raises `PackageError` if there is none or more than one."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise PackageError(f"{len(found)} paths like {pattern} in the unpacked packages, not 1")
    return found[0]


@contextmanager
def _members(deb: Path) -> Iterator[tarfile.TarFile]:
    """A package's files as a stream, which may be left before its end."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|", bufsize=_STREAM_BUFFER) as archive:
                yield archive
        finally:
            process.kill()


def _unpack_some(deb: Path, root: Path) -> None:
    with _members(deb) as archive:
        for member in archive:
            if member.isfile() and any(fnmatch(member.name, pattern) for pattern in IMAGE_FILES):
                archive.extract(member, root, filter="data")


def _unpack_sources(deb: Path, target: Path) -> None:
    """Take some files out of the archive inside the package: by a pipe, much faster than by tarfile."""
    target.mkdir()
    wanted = [f"*/{pattern}" for pattern in SOURCES]
    commands: tuple[Sequence[str | Path], ...] = (
        ["dpkg-deb", "--fsys-tarfile", deb],
        ["tar", "-xO", "--wildcards", "./usr/src/linux-source-*.tar.xz"],
        ["tar", "-xJ", "-C", target, "--strip-components=1", "--no-wildcards-match-slash", "--wildcards", *wanted],
    )
    with ExitStack() as stack:
        stream: IO[bytes] | None = None
        for command in commands:
            process = stack.enter_context(
                subprocess.Popen(command, stdin=stream, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            )
            stack.callback(process.kill)
            if stream is not None:
                stream.close()
            stream = process.stdout
        process.wait()
    if process.returncode != 0:  # tar misses a pattern that nothing matched
        raise PackageError(f"{deb.name} has not all of {', '.join(SOURCES)}: it is no kernel that this project knows")
