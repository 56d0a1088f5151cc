"""The kernel and the initramfs of the test guests, built from Debian's packages and kept in the cache.

Two steps, each cached by the content of the files that make it: the packages (264 MB to download), then the
VFIO modules, the kernel and the initramfs, which take seconds and change whenever the driver's patch or the guest's
init does. The kernel's version is looked up when the packages are fetched; it stays until
`devtools.kernel_tree` changes or the cache is emptied.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from devtools.cache import build_once, content_key
from devtools.kernel_apt import ensure_qemu, machine_mirror
from devtools.kernel_image import Cpio, modules_in_order, vmlinux_from_bzimage
from devtools.kernel_modules import MODULES, KernelBuildError, build_modules
from devtools.kernel_tree import NODE_MODULES, fetch_tree, only
from devtools.tools import MissingToolError

__all__ = ["KernelArtefacts", "KernelBuildError", "MissingToolError", "ensure_qemu", "kernel_artefacts"]

_HERE = Path(__file__).parent
_TREE_FILES = [_HERE / name for name in ("kernel_apt.py", "kernel_tree.py")]
_BOOT_FILES = [
    _HERE / name
    for name in ("kernel.py", "kernel_image.py", "kernel_modules.py", "mtty_patch.py", "mtty_fault.c", "guest_init.sh")
]
STOCK_MODULES = ("9p", "9pnet_virtio", "virtio_net")
"""Taken from the package; those of VFIO are `devtools.kernel_modules.MODULES`."""
APPLETS = ("sh", "mount", "mkdir", "insmod", "ip", "cat", "hostname", "sync", "chroot", "poweroff")


@dataclass(frozen=True)
class KernelArtefacts:
    """What a guest boots. node_modules: a folder of modules, named in the order in which to insert them."""

    vmlinux: Path
    initrd: Path
    node_modules: Path
    busybox: Path


def kernel_artefacts() -> KernelArtefacts:
    """Build the boot files, or take them from the cache.

    Raises `MissingToolError` (one line: what to install), `devtools.kernel_apt.PackageError`,
    `devtools.mtty_patch.PatchError` or `KernelBuildError`.
    """
    mirror = machine_mirror()
    tree = build_once("kernel-tree", content_key(_TREE_FILES, mirror.suite), lambda target: fetch_tree(target, mirror))
    key = content_key(_BOOT_FILES, (tree / "abi").read_text())
    boot = build_once("kernel-boot", key, lambda target: _build(target, tree))
    return KernelArtefacts(
        vmlinux=boot / "vmlinux",
        initrd=boot / "initrd",
        node_modules=boot / "node-modules",
        busybox=tree / "root" / "bin" / "busybox",
    )


def _build(target: Path, tree: Path) -> None:
    root = tree / "root"
    headers = root / "usr" / "src"
    modules = target / "modules"
    build_modules(
        modules, tree / "source", only(headers, "linux-headers-*-amd64"), only(headers, "linux-headers-*-common")
    )
    image = only(root, "boot/vmlinuz-*").read_bytes()
    (target / "vmlinux").write_bytes(vmlinux_from_bzimage(image, only(root, "usr/bin/zstd")))
    (target / "initrd").write_bytes(_initramfs(root, modules))
    (target / "node-modules").mkdir()
    for number, (name, data) in enumerate(modules_in_order((root,), NODE_MODULES).items()):
        (target / "node-modules" / f"{number:02}-{name}.ko").write_bytes(data)


def _initramfs(root: Path, built: Path) -> bytes:
    archive = Cpio()
    for folder in ("bin", "dev", "proc", "sys", "modules", "host", "newroot", "share"):
        archive.directory(folder)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", (root / "bin" / "busybox").read_bytes())
    for applet in APPLETS:
        archive.symlink(f"bin/{applet}", "busybox")
    archive.file("init", (_HERE / "guest_init.sh").read_bytes())
    modules = modules_in_order((root, built), STOCK_MODULES + MODULES)
    for name, data in modules.items():
        archive.file(f"modules/{name}.ko", data)
    archive.file("modules/order", "".join(f"{name}\n" for name in modules).encode())
    return archive.finish()
