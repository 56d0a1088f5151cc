"""vfio-agent whose targets are started one by one, each while its peers cannot answer yet."""

from collections.abc import Callable

from vfio_agent import machine
from vfio_agent.__main__ import main
from vfio_agent.machine import DeviceFacts
from vfio_api.device import DeviceState
from vfio_api.types import Goal, Role


def _only(name: str) -> Callable[[DeviceFacts, bool], DeviceState | None]:
    return lambda device, _wanted: DeviceState.RUNNING if device.name == name else None


if __name__ == "__main__":
    one_by_one = tuple((f"start {name}", _only(name)) for name in ("gpu0", "gpu1", "gpu2", "gpu3"))
    machine.WAYPOINTS = {**machine.WAYPOINTS, (Role.TARGET, Goal.RUNNING): one_by_one}
    main()
