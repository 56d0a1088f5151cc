"""What a pod saves and its counterpart loads: as a device's state does, it goes in a data stream of its own (POD)."""

from errno import EINVAL, EMSGSIZE

from vfio_agent import hooks
from vfio_agent.devices.protocol import PrecopyInfo

POD = "pod/state"  # no device's name: those are DNS labels


class SavedState:
    """What a pod has given, as the data stream of a device that is stopped."""

    def __init__(self, state: bytes):
        self._left = memoryview(state)

    def readinto(self, buffer: memoryview) -> int:
        """See DataStream.readinto."""
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def ready(self) -> bool:
        """See DataStream.ready."""
        return True

    def write(self, data: memoryview) -> int:
        """It is only read."""
        raise OSError(EINVAL, "a saved state is not written to")

    def precopy_info(self) -> PrecopyInfo:
        """There is no pre-copy of it."""
        raise OSError(EINVAL, "a pod is saved when it is paused")

    def close(self) -> None:
        """Nothing is open."""


class LoadedState:
    """What a pod is to be given, as the data stream that it is loaded by."""

    def __init__(self) -> None:
        self.state = bytearray()

    def readinto(self, buffer: memoryview) -> int:
        """It is only written."""
        raise OSError(EINVAL, "a state that is loaded is not read")

    def ready(self) -> bool:
        """There is nothing to read."""
        return False

    def write(self, data: memoryview) -> int:
        """See DataStream.write. Raises OSError EMSGSIZE beyond what a pod may save."""
        if len(self.state) + len(data) > hooks.MAX_STATE:
            raise OSError(EMSGSIZE, f"a pod saves at most {hooks.MAX_STATE} bytes")
        self.state += data
        return len(data)

    def precopy_info(self) -> PrecopyInfo:
        """There is no pre-copy of it."""
        raise OSError(EINVAL, "a pod is loaded when it is stopped")

    def close(self) -> None:
        """Nothing is open."""
