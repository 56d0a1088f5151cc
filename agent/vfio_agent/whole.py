"""That a pod is moved with every device that it has: what stayed behind would end with it.

Which devices a pod has open was seen some time before, by what was published; it may have opened another one since, as
while it starts.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vfio_agent.adoption import devices_of
from vfio_api.errors import DeviceError, Reason

if TYPE_CHECKING:
    from vfio_agent.session import Session

Processes = Mapping[str, Sequence[int]]  # of each pod, by its UID


def raise_unless_whole(session: "Session", known: Processes | None = None) -> Processes:
    """Look at what the pods of a source that are to be moved have open; returns their processes. Blocking.

    known: their processes, if they are paused since these were found: to look at all processes of a node takes a while.
    Raises DeviceError (PodDevicesSplit) if one has a device that is not in the migration.
    """
    around, moved = session.around, [pod for pod in session.spec.workloads if pod.moved]
    if not moved:
        return {}
    every = around.pods.by_pod() if known is None else known
    taken = {device.address for device in session.spec.devices}
    held = around.holdings.all().values()
    for pod in moved:
        has = devices_of(around.pods, every.get(pod.pod_uid, ()), around.holdings.nodes())
        left = sorted((has | {each.address for each in held if each.pod == pod.pod_uid}) - taken)
        if left:
            raise DeviceError(
                f"pod {pod.pod_namespace}/{pod.pod_name} has device {left[0]} open as well, which is not in this "
                "migration and would end with the pod: it was opened since the devices were chosen; create the "
                "migration again once the pod is Ready",
                reason=Reason.POD_DEVICES_SPLIT,
                device=left[0],
            )
    return {pod.pod_uid: every.get(pod.pod_uid, ()) for pod in moved}
