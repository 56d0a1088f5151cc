"""The demo: a real Kubernetes control plane, the operator and two node agents on this machine, and one migration.

`make demo` runs it. With a terminal it shows progress live, without one it prints plain lines.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:0] = [str(ROOT / folder) for folder in ("hack", "api", "agent", "cli")]

from devtools.demo_flow import EXPECTED, run, tell_logs  # noqa: E402
from devtools.demo_scene import Scene, SimulatedScene  # noqa: E402
from vfio_cli.terminal import View  # noqa: E402

INTERRUPTED = 130
NOTE_LINES = 30


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--kernel", action="store_true", help="QEMU guests with the kernel's mtty devices")
    parser.add_argument("--keep", action="store_true", help="keep the cluster running until Ctrl-C")
    return parser.parse_args()


def _scene(kernel: bool) -> Scene:
    if not kernel:
        return SimulatedScene()
    from devtools.demo_kernel import KernelScene

    return KernelScene()


def _stop(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


@contextlib.contextmanager
def _closing(scene: Scene) -> Iterator[None]:
    """Close the scene whatever happens; another Ctrl-C does not leave half of it behind."""
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        scene.close()


def main() -> int:
    """Run the demo; 0 only if the migration succeeded and nothing was lost."""
    arguments = _arguments()
    view = View()
    signal.signal(signal.SIGTERM, _stop)
    scene = _scene(arguments.kernel)
    with _closing(scene):
        try:
            return run(scene, view, keep=arguments.keep)
        except KeyboardInterrupt:
            view.line()
            view.line("interrupted: stopping everything", "bold")
            return INTERRUPTED
        except BrokenPipeError:
            return 1
        except (*EXPECTED, *scene.expected) as error:
            view.line()
            words = f"{error}\n{error.stderr or ''}" if isinstance(error, subprocess.CalledProcessError) else str(error)
            view.result(False, type(error).__name__, words.strip())
            for note in getattr(error, "__notes__", ()):
                view.line("\n".join(note.splitlines()[-NOTE_LINES:]))
            tell_logs(scene.logs(), view)
            return 1


if __name__ == "__main__":
    sys.exit(main())
