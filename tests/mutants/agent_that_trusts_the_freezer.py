"""vfio-agent that asks for a pod to be frozen and does not wait until the kernel says that it is."""

from pathlib import Path

from vfio_agent import freezer
from vfio_agent.__main__ import main


def _asked(_file: Path, *_: object) -> bool:
    return True


if __name__ == "__main__":
    freezer._await_events = freezer._freeze_v1 = _asked
    main()
