"""How a guest is started: the files its init reads, QEMU's arguments, and a process that dies with ours."""

from __future__ import annotations

import compileall
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from devtools.kernel import KernelArtefacts

RUNNER = Path(__file__).with_name("guest_exec.py")
CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = ("api", "agent", "operator", "hack")
BOOT_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check "
    # A loop in the kernel ends the guest (6.12 has one in some arcs); the log has room for many migrations.
    "softlockup_panic=1 sysctl.kernel.watchdog_thresh=5 log_buf_len=4M"
)


@dataclass(frozen=True)
class Link:
    """A direct line to one other guest: either end of a unix socket, made by the end that is the server.

    Either end may be started first, or again: the client keeps trying. ``address`` is IPv4, in a network of
    24 bits.
    """

    socket: Path
    server: bool
    address: str


def write_boot_files(
    folder: Path,
    name: str,
    command: Sequence[str] | None,
    env: Mapping[str, str],
    link: Link | None,
    visible: Sequence[Path],
) -> None:
    """Write what guest_init.sh and guest_exec.py read; what an earlier guest left in the share is removed.

    The project's modules are compiled here: the guest would need seconds, each time, as it cannot keep them.
    """
    for source in SOURCES:
        compileall.compile_dir(CHECKOUT / source, quiet=2)
    if folder.exists():
        shutil.rmtree(folder)
    (folder.parent / "stop").unlink(missing_ok=True)
    folder.mkdir(parents=True)
    seen = [CHECKOUT, Path(sys.prefix), Path(sys.base_prefix), *visible]
    paths = sorted({str(form) for path in seen for form in (path.absolute(), path.resolve())})
    search = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    boot = {"env": {"PATH": search, **env}, "command": list(command) if command else None}
    files = {
        "name": name,
        "python": str(Path(sys.executable).resolve()),
        "runner": str(RUNNER),
        "visible": "".join(f"{path}\n" for path in paths),
        "boot.json": json.dumps(boot),
    }
    if link is not None:
        files["address"] = link.address
    for file, text in files.items():
        (folder / file).write_text(text)


def qemu_command(
    qemu: str,
    artefacts: KernelArtefacts,
    share: Path,
    memory_mib: int,
    hostfwd: Mapping[int, int],
    link: Link | None,
    disk: Path | None = None,
    processors: int = 1,
) -> list[str]:
    """QEMU's arguments for a guest."""
    forwards = [f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for guest, host in hostfwd.items()]
    console = share / "console.log"
    command = [
        qemu, "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max", "-smp", str(processors),
        "-m", str(memory_mib), "-nodefaults", "-no-user-config", "-display", "none",
        "-monitor", "none", "-no-reboot", "-serial", f"file:{console}",
        "-kernel", str(artefacts.vmlinux), "-initrd", str(artefacts.initrd), "-append", BOOT_ARGUMENTS,
        "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
        "-fsdev", f"local,id=share,path={_quoted(share)},security_model=none",
        "-device", "virtio-9p-pci,fsdev=share,mount_tag=share",
        "-netdev", "user,id=user" + "".join(forwards), "-device", "virtio-net-pci,netdev=user,romfile=",
    ]  # fmt: skip
    if link is not None:
        reconnect = ",server=on" if link.server else ",server=off,reconnect-ms=100"
        last = int(link.address.rpartition(".")[2])
        command += [
            "-netdev", f"stream,id=link,addr.type=unix,addr.path={_quoted(link.socket)}{reconnect}",
            "-device", f"virtio-net-pci,netdev=link,romfile=,mac=52:54:00:99:00:{last:02x}",
        ]  # fmt: skip
    if disk is not None:
        command += [
            "-drive", f"file={_quoted(disk)},format=raw,if=none,id=disk,snapshot=on,cache=unsafe",
            "-device", "virtio-blk-pci,drive=disk",
        ]  # fmt: skip
    return command


def _quoted(path: Path) -> str:
    """A path as a value in QEMU's lists of options, where a comma is doubled."""
    return str(path).replace(",", ",,")


_LAUNCHER = ThreadPoolExecutor(1, thread_name_prefix="guest-launcher")
"""Starts all guests from one thread that lives as long as this process: PDEATHSIG is about the thread."""

_TIE_TO_PARENT = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has gone")
os.nice(5)
os.execv(sys.argv[2], sys.argv[2:])
"""


def launch(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start QEMU so that it does not outlive this process, however that ends; returns QEMU's process."""
    tied = [sys.executable, "-I", "-S", "-c", _TIE_TO_PARENT, str(os.getpid()), *argv]

    def start() -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                tied,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    return _LAUNCHER.submit(start).result()
