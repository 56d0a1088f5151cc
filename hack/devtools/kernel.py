"""The kernel and the initramfs of the test guests, built from Debian's packages and kept in the cache.

Two steps, each cached by the content of the files that make it: the packages (264 MB to download), then the
driver, the kernel and the initramfs, which take seconds and change whenever the driver's patch or the guest's
init does. The kernel's version is looked up when the packages are fetched; it stays until
`devtools.kernel_tree` changes or the cache is emptied.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from devtools.cache import build_once, content_key
from devtools.kernel_apt import ensure_qemu, machine_mirror, require
from devtools.kernel_image import Cpio, modules_in_order, vmlinux_from_bzimage
from devtools.kernel_tree import fetch_tree, only
from devtools.mtty_patch import patched
from devtools.tools import MissingToolError

__all__ = ["KernelArtefacts", "KernelBuildError", "MissingToolError", "ensure_qemu", "kernel_artefacts"]

_HERE = Path(__file__).parent
_TREE_FILES = [_HERE / name for name in ("kernel_apt.py", "kernel_tree.py")]
_BOOT_FILES = [
    _HERE / name for name in ("kernel.py", "kernel_image.py", "mtty_patch.py", "mtty_fault.c", "guest_init.sh")
]
MODULES = ("9p", "9pnet_virtio", "virtio_net", "vfio", "vfio_iommu_type1", "mdev")
APPLETS = ("sh", "mount", "mkdir", "insmod", "ip", "cat", "hostname", "sync", "chroot", "poweroff")
_LOG_LINES = 15


class KernelBuildError(RuntimeError):
    """The driver does not build against this kernel; the message holds the end of the compiler's words."""


@dataclass(frozen=True)
class KernelArtefacts:
    """What a guest boots."""

    vmlinux: Path
    initrd: Path


def kernel_artefacts() -> KernelArtefacts:
    """Build the boot files, or take them from the cache.

    Raises `MissingToolError` (one line: what to install), `devtools.kernel_apt.PackageError`,
    `devtools.mtty_patch.PatchError` or `KernelBuildError`.
    """
    mirror = machine_mirror()
    tree = build_once("kernel-tree", content_key(_TREE_FILES, mirror.suite), lambda target: fetch_tree(target, mirror))
    key = content_key(_BOOT_FILES, (tree / "abi").read_text())
    boot = build_once("kernel-boot", key, lambda target: _build(target, tree))
    return KernelArtefacts(vmlinux=boot / "vmlinux", initrd=boot / "initrd")


def _build(target: Path, tree: Path) -> None:
    root = tree / "root"
    driver = _build_driver(target / "driver", tree)
    image = only(root, "boot/vmlinuz-*").read_bytes()
    (target / "vmlinux").write_bytes(vmlinux_from_bzimage(image, only(root, "usr/bin/zstd")))
    (target / "initrd").write_bytes(_initramfs(root, driver))


def _build_driver(work: Path, tree: Path) -> bytes:
    """Compile the patched driver outside the kernel's tree, against a copy of the headers' own small part."""
    require("make", "gcc", "strip")
    source = tree / "root" / "usr" / "src"
    headers = only(source, "linux-headers-*-amd64")
    common = only(source, "linux-headers-*-common")
    work.mkdir()
    (work / "mtty.c").write_text(patched((tree / "mtty.c").read_text()))
    (work / "Makefile").write_text("obj-m := mtty.o\n")
    # Debian's Makefile of the headers includes that of linux-headers-common by an absolute path; and its
    # vmlinux would make the build ask for pahole.
    build = work / "headers"
    build.mkdir()
    for entry in headers.iterdir():
        if entry.name not in ("Makefile", "vmlinux"):
            (build / entry.name).symlink_to(entry.resolve())
    (build / "Makefile").write_text(f"include {common}/Makefile\n")
    done = subprocess.run(
        ["make", "-s", "-C", build, f"M={work}", "modules"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise KernelBuildError("mtty.ko: " + "\n".join(done.stdout.splitlines()[-_LOG_LINES:]))
    module = work / "mtty.ko"
    subprocess.run(["strip", "--strip-debug", module], check=True)
    return module.read_bytes()


def _initramfs(root: Path, driver: bytes) -> bytes:
    archive = Cpio()
    for folder in ("bin", "dev", "proc", "sys", "modules", "host", "newroot", "share"):
        archive.directory(folder)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", (root / "bin" / "busybox").read_bytes())
    for applet in APPLETS:
        archive.symlink(f"bin/{applet}", "busybox")
    archive.file("init", (_HERE / "guest_init.sh").read_bytes())
    modules = {**modules_in_order(root, MODULES), "mtty": driver}
    for name, data in modules.items():
        archive.file(f"modules/{name}.ko", data)
    archive.file("modules/order", "".join(f"{name}\n" for name in modules).encode())
    return archive.finish()
