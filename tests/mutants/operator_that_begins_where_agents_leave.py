"""vfio-operator that does not listen to agents that say that they are to end."""

from vfio_operator.__main__ import main
from vfio_operator.channel import Agents


def _none(_self: Agents, _successor_seconds: float) -> frozenset[str]:
    return frozenset()


if __name__ == "__main__":
    Agents.leaving = _none
    main()
