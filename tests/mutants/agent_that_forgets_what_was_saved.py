"""vfio-agent that has a pod save its state, and hands an empty one over."""

from vfio_agent.__main__ import main
from vfio_agent.workload import Workloads

_save = Workloads.save


async def _forget(self: Workloads) -> bytes:
    await _save(self)
    return b""


if __name__ == "__main__":
    Workloads.save = _forget
    main()
