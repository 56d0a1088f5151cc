"""That a pod is moved with every device that it has: what stayed behind would end with it.

Which devices a pod has open was seen some time before, by what was published; it may have opened another one since, as
while it starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfio_agent.adoption import devices_of
from vfio_agent.devices.openers import Node
from vfio_api.errors import DeviceError, Reason

if TYPE_CHECKING:
    from vfio_agent.session import Session


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What takes a while to find out. processes: of each pod, by its UID. nodes: of the devices of this machine."""

    processes: Mapping[str, Sequence[int]]
    nodes: Sequence[Node]


def raise_unless_whole(session: "Session", known: Surveyed | None = None) -> Surveyed:
    """Look at what the pods of a source that are to be moved have open; returns what was surveyed for it. Blocking.

    known: of an earlier look, if the pods are paused by now: only what has been added since is looked for then.
    Raises DeviceError (PodDevicesSplit) if one has a device that is not in the migration.
    """
    around, moved = session.around, [pod for pod in session.spec.workloads if pod.moved]
    if not moved:
        return Surveyed({}, ())
    surveyed = known or Surveyed(around.pods.by_pod(), around.holdings.nodes())
    taken = {device.address for device in session.spec.devices}
    held = around.holdings.all().values()
    for pod in moved:
        # one may have been forked since; asked each time, so that the folder is known once the pod is paused
        processes = {*surveyed.processes.get(pod.pod_uid, ()), *around.pods.members(pod.pod_uid)}
        has = devices_of(around.pods, sorted(processes), surveyed.nodes)
        left = sorted((has | {each.address for each in held if each.pod == pod.pod_uid}) - taken)
        if left:
            raise DeviceError(
                f"pod {pod.pod_namespace}/{pod.pod_name} has device {left[0]} open as well, which is not in this "
                "migration and would end with the pod: it was opened since the devices were chosen; create the "
                "migration again once the pod is Ready",
                reason=Reason.POD_DEVICES_SPLIT,
                device=left[0],
            )
    return surveyed
