"""Boot files in pure Python: the ELF kernel in a bzImage, modules with their dependencies, an initramfs."""

from __future__ import annotations

import gzip
import lzma
import re
import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

_SECTOR = 512
_SETUP_SECTORS_AT = 0x1F1
_PAYLOAD_AT = 0x248
"""Offsets of setup_sects and payload_offset in the header (Documentation/arch/x86/boot.rst)."""


class ImageError(RuntimeError):
    """A kernel image, a module or a module tree is not what it should be."""


def vmlinux_from_bzimage(image: bytes, zstd: Path) -> bytes:
    """The uncompressed ELF kernel, which QEMU boots by PVH far faster than it unpacks the image.

    ``zstd`` is the program used for an image compressed so. Raises `ImageError`.
    """
    if image[0x1FE:0x200] != b"\x55\xaa":
        raise ImageError("not a bzImage: no boot signature")
    start = ((image[_SETUP_SECTORS_AT] or 4) + 1) * _SECTOR
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_AT)
    payload = image[start + offset : start + offset + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        elf = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        elf = gzip.decompress(payload[:-4])
    elif payload.startswith(b"\x28\xb5\x2f\xfd"):  # the last four bytes are the length, not zstd's
        elf = subprocess.run([zstd, "-dcq"], input=payload[:-4], capture_output=True, check=True).stdout
    else:
        raise ImageError(f"unknown compression of the kernel: {payload[:6].hex()}")
    if not elf.startswith(b"\x7fELF"):
        raise ImageError("the kernel image holds no ELF file")
    return elf


def modules_in_order(trees: Sequence[Path], names: Iterable[str]) -> dict[str, bytes]:
    """The named modules and all they depend on, in an order in which they can be inserted.

    Reads the ``depends=`` line of each module's ``.modinfo``, so no depmod is needed. A dependency that is
    in none of the trees is built into the kernel or not needed; a module asked for by name must be there. Of
    one that is in several trees, the last tree's is taken. Raises `ImageError`.
    """
    files = {
        path.name.partition(".ko")[0].replace("-", "_"): path
        for tree in trees
        for path in tree.rglob("*.ko*")
        if path.name.endswith((".ko", ".ko.xz"))
    }
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name not in files:
            return
        data = files[name].read_bytes()
        if files[name].suffix == ".xz":
            data = lzma.decompress(data)
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in filter(None, depends[1].decode().split(",") if depends else []):
            add(other.replace("-", "_"))
        ordered[name] = data

    for name in names:
        if name not in files:
            raise ImageError(f"no module {name} in {', '.join(map(str, trees))}")
        add(name)
    return ordered


class Cpio:
    """A newc archive in memory (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def directory(self, name: str) -> None:
        """Add a folder."""
        self._entry(name, 0o40755)

    def file(self, name: str, data: bytes, mode: int = 0o755) -> None:
        """Add a file."""
        self._entry(name, 0o100000 | mode, data)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(name, 0o120777, target.encode())

    def character_device(self, name: str, major: int, minor: int) -> None:
        """Add a character device."""
        self._entry(name, 0o20600, device=(major, minor))

    def finish(self) -> bytes:
        """The archive with its trailer."""
        self._entry("TRAILER!!!", 0)
        return bytes(self._data)

    def _entry(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = "070701" + "".join(f"{field:08X}" for field in fields)
        for part in (header.encode() + encoded, data):
            self._data += part
            self._data += b"\0" * (-len(self._data) % 4)
