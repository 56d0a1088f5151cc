"""vfio-agent whose targets run as soon as they have voted."""

from vfio_agent.__main__ import main
from vfio_agent.target_side import TargetSide
from vfio_api.device import DeviceState

_vote = TargetSide._vote


def _vote_and_start(self: TargetSide) -> None:
    _vote(self)
    if self._session.facts.loaded:
        for state in (DeviceState.RUNNING_P2P, DeviceState.RUNNING):
            for device in self._session.spec.devices:
                self._session.set_state(device.name, state)


if __name__ == "__main__":
    TargetSide._vote = _vote_and_start
    main()
