"""What is asked of one real device, in a guest: every arc, refusals, and what opening and closing leaves behind."""

import json
import sys
from pathlib import Path
from typing import Any

from devtools.kernel_stack import KernelStack
from kernel.figures import Figures
from kernel.sides import SINGLE
from vfio_api.device import DeviceState

HERE = Path(__file__).parent


def ask(stack: KernelStack, script: str, path: str) -> Any:
    """Run a script of this folder in the first guest, for the device that no migration uses."""
    node = next(iter(stack.nodes.values()))
    done = node.guest.exec([sys.executable, str(HERE / script), node.devices[SINGLE], path]).check()
    return json.loads(done.stdout)


def test_table_of_arcs_is_the_kernels(stack: KernelStack, path: str, figures: Figures) -> None:
    result = ask(stack, "in_guest_arcs.py", path)
    assert result["differences"] == []
    assert result["pairs"] == len(DeviceState) ** 2 - 2
    figures.same(
        path, "table of arcs", f"{result['pairs']} pairs of states, {result['arcs']} arcs, all as in the table"
    )


def test_device_is_refused_kept_and_let_go_as_the_kernel_says(stack: KernelStack, path: str, figures: Figures) -> None:
    found = ask(stack, "in_guest_device.py", path)

    opening = found["opening"]
    assert opening["fds"][-1] == {"group": "/dev/vfio/vfio", "cdev": "/dev/iommu"}[path]
    assert opening["second opening"] == ["EBUSY", "EBUSY"]  # by either way
    assert opening["fds left by it"] == 0
    assert opening["opener is this process"]
    assert not opening["precopy info v2"]  # Linux 6.12 has not got it; devices work all the same
    assert opening["precopy info"] == [24, 0, False]

    refusals = found["refusals"]
    assert refusals["state bytes"] == 96
    assert refusals["bad header"] == ["EFAULT", "EINVAL", "RESUMING", "RUNNING"]
    assert refusals["short load"] == ["done", "done", "EINVAL", "RESUMING", "RUNNING"]
    assert refusals["overflow"] == ["ENOMEM", "EINVAL", "RESUMING", "RUNNING"]
    assert refusals["whole load"] == ["done", "done", "done", "STOP", "RUNNING"]
    after_reset = [result for name, result in refusals.items() if name.endswith("fd after reset")]
    assert after_reset == ["ENODEV"] * 5
    assert refusals["half of an arc"] == ["EIO", "RUNNING_P2P"]  # STOP -> RUNNING goes by RUNNING_P2P, and stays there

    assert found["config"] == {"bytes": 36, "damaged": ["EINVAL"] * 3, "before": 1, "after": 0x2A}
    assert found["keeping"] == {"opened meanwhile": "EBUSY", "state": "STOP", "mark": True}
    assert found["removal"] == {"opened when removed": "ENXIO"}
    figures.same(path, "refusals", "EFAULT, EINVAL, ENOMEM, ENODEV and EIO as told; a reset led out of each")
    figures.same(path, "fds", "EBUSY for a second opener, none leaked: removed at once; adopted from the keeper's")
