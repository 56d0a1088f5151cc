"""Changes to the kernel's sample driver samples/vfio-mdev/mtty.c: faults on demand, and a full trace of the
arcs.

The stock driver never fails an arc of its own and logs an arc only before it is tried. The patched one

* fails, delays or holds an arc once, or as often as asked, by a writable module parameter (see
`devtools.mtty_workload.arm_fault`);
* logs when each arc ended, which ones failed and what state that left, and every reset that changed the state (see
`devtools.mtty_trace`).
"""

from __future__ import annotations

from pathlib import Path

FAULT = Path(__file__).with_name("mtty_fault.c")

STEP = "static struct file *mtty_step_state(struct mdev_state *mdev_state,"
STEP_LOG = '\tdev_dbg(mdev_state->vdev.dev, "%s: %d -> %d\\n", __func__, cur, new);\n'
STEP_FAULT = """
	int fault = mtty_fault(mdev_state, cur, new);
	if (fault)
		return ERR_PTR(fault);
"""
STEP_CALL = (
    "\t\tret = mtty_step_state(mdev_state, next_state);\n\t\tif (IS_ERR(ret))\n\t\t\tbreak;\n\n"
    "\t\tmdev_state->state = next_state;\n"
)
STEP_CALL_LOGGED = """\
		ret = mtty_step_state(mdev_state, next_state);
		if (IS_ERR(ret)) {
			dev_info(vdev->dev, "mtty_step_state: failed %ld in %d\\n", PTR_ERR(ret), mdev_state->state);
			break;
		}

		mdev_state->state = next_state;
		dev_info(vdev->dev, "mtty_step_state: done\\n");
"""
RESET = "\t\tmdev_state->state = VFIO_DEVICE_STATE_RUNNING;\n\t\tmtty_disable_files(mdev_state);\n"
RESET_LOGGED = (
    "\t\tif (mdev_state->state != VFIO_DEVICE_STATE_RUNNING)\n"
    '\t\t\tdev_info(mdev_state->vdev.dev, "mtty_step_state: reset %d -> %d\\n",\n'
    "\t\t\t\t mdev_state->state, VFIO_DEVICE_STATE_RUNNING);\n" + RESET
)
INCLUDE = "#include <linux/anon_inodes.h>\n"

CHANGES = (
    (INCLUDE, INCLUDE + "#include <linux/delay.h>\n#include <linux/moduleparam.h>\n#include <linux/wait.h>\n"),
    (RESET, RESET_LOGGED),
    (STEP, FAULT.read_text() + "\n" + STEP),
    (STEP_LOG, STEP_LOG + STEP_FAULT),
    (STEP_CALL, STEP_CALL_LOGGED),
)


class PatchError(RuntimeError):
    """The driver's source is not the one that these changes were written for."""


def patched(source: str) -> str:
    """The driver's source with all changes made.

    Raises `PatchError`, naming the lines looked for, unless each of them is there exactly once.
    """
    for old, new in CHANGES:
        found = source.count(old)
        if found != 1:
            raise PatchError(f"mtty.c of this kernel has {found} places like this one, not 1:\n{old}")
        source = source.replace(old, new)
    return source
