"""vfio-agent that counts a device as loaded while it is in RESUMING: it never sees whether the state is valid."""

from vfio_agent.__main__ import main
from vfio_agent.session import Session
from vfio_agent.target_side import TargetSide
from vfio_api.device import DeviceState

_state = Session.state


def _taken_for_loaded(self: Session, name: str) -> DeviceState:
    found = _state(self, name)
    return DeviceState.STOP if found is DeviceState.RESUMING else found


def _accept(self: TargetSide, name: str, load: int, _config: bytes) -> None:
    self._has_loaded(name, load)


if __name__ == "__main__":
    Session.state = _taken_for_loaded
    TargetSide._accept = _accept
    main()
