"""vfio-agent that leaves no pod frozen behind: when it gives a source up, it has it run again."""

from vfio_agent.__main__ import main
from vfio_agent.workload import Workloads


async def _resume(self: Workloads) -> None:
    for pod in self._pods:
        self._resume(pod)


if __name__ == "__main__":
    Workloads.end = _resume
    main()
