"""The VFIO modules of the test guests, compiled outside the kernel's tree with both of the kernel's ways to a device.

Debian's kernel has the legacy groups but not iommufd, and so no character device for each VFIO device. Here iommufd,
vfio, its type 1 IOMMU, mdev and the patched sample driver mtty are compiled together from the same kernel's sources,
with the options set that such a kernel has. A guest with these modules offers both ways at once; a device is open by
one of them at a time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from devtools.kernel_apt import require
from devtools.mtty_patch import patched

__all__ = ["MODULES", "KernelBuildError", "build_modules"]

PARTS: Mapping[str, tuple[str, str]] = {
    "iommufd": (
        "drivers/iommu/iommufd",
        "device fault hw_pagetable io_pagetable ioas main pages vfio_compat iova_bitmap interval_tree_span",
    ),
    "vfio": ("drivers/vfio", "vfio_main device_cdev group iommufd container virqfd"),
    "vfio_iommu_type1": ("drivers/vfio", "vfio_iommu_type1"),
    "mdev": ("drivers/vfio/mdev", "mdev_core mdev_sysfs mdev_driver"),
    "mtty": ("samples/vfio-mdev", "mtty"),
}
"""Module -> its folder and its files; iova_bitmap and interval_tree_span are built into a kernel that has iommufd."""
MODULES = tuple(PARTS)
OPTIONS = ("IOMMUFD_MODULE", "IOMMUFD_DRIVER", "VFIO_DEVICE_CDEV", "INTERVAL_TREE_SPAN_ITER")

SPAN_BEGIN = "#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER\n"
SPAN_INCLUDES = "#include <linux/export.h>\n#include <linux/interval_tree.h>\n"
_LOG_LINES = 15


class KernelBuildError(RuntimeError):
    """The modules do not build against this kernel; the message holds the end of the compiler's words."""


def build_modules(target: Path, source: Path, headers: Path, common: Path) -> None:
    """Fill the new folder `target` with the compiled modules, stripped.

    source: the kernel's sources (`devtools.kernel_tree.SOURCES`). headers, common: the folders of the architecture's
    linux-headers and of linux-headers-common. Raises `KernelBuildError`, `devtools.mtty_patch.PatchError` or
    `MissingToolError`.
    """
    require("make", "gcc", "strip")
    target.mkdir()
    work = target / "build"
    shutil.copytree(source, work)
    driver = work / "samples" / "vfio-mdev" / "mtty.c"
    driver.write_text(patched(driver.read_text()))
    spans = work / "drivers" / "iommu" / "iommufd" / "interval_tree_span.c"
    spans.write_text(SPAN_INCLUDES + _span_code((work / "lib" / "interval_tree.c").read_text()))
    (work / "Kbuild").write_text(_kbuild())
    _make(work, _headers(target / "headers", headers, common))
    for name in MODULES:
        subprocess.run(["strip", "--strip-debug", "-o", target / f"{name}.ko", work / f"{name}.ko"], check=True)
    shutil.rmtree(work)
    shutil.rmtree(target / "headers")


def _span_code(source: str) -> str:
    """The part of lib/interval_tree.c that only iommufd uses; the rest is in the kernel."""
    _, begin, rest = source.partition(SPAN_BEGIN)
    code, end, _ = rest.rpartition("#endif")
    if not begin or not end:
        raise KernelBuildError("lib/interval_tree.c of this kernel has no part for CONFIG_INTERVAL_TREE_SPAN_ITER")
    return code


def _kbuild() -> str:
    lines = [
        "subdir-ccflags-y := " + " ".join(f"-DCONFIG_{option}" for option in OPTIONS),
        "ccflags-y := $(subdir-ccflags-y)",
        "obj-m := " + " ".join(f"{name}.o" for name in MODULES),
    ]
    for name, (folder, files) in PARTS.items():
        lines.append(f"{name}-y := " + " ".join(f"{folder}/{file}.o" for file in files.split()))
    return "".join(f"{line}\n" for line in lines)


def _headers(build: Path, headers: Path, common: Path) -> Path:
    """A copy of the headers' own small part that works where it was unpacked.

    Debian's Makefile of the headers includes that of linux-headers-common by an absolute path; and its vmlinux would
    make the build ask for pahole.
    """
    build.mkdir()
    for entry in headers.iterdir():
        if entry.name not in ("Makefile", "vmlinux"):
            (build / entry.name).symlink_to(entry.resolve())
    (build / "Makefile").write_text(f"include {common}/Makefile\n")
    return build


def _make(work: Path, headers: Path) -> None:
    done = subprocess.run(
        ["make", "-s", f"-j{os.cpu_count() or 1}", "-C", headers, f"M={work}", "modules"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise KernelBuildError("the guest's modules: " + "\n".join(done.stdout.splitlines()[-_LOG_LINES:]))
