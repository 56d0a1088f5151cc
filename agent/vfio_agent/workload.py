"""The pods whose devices a session moves: paused at the source before barrier A, resumed where the devices run.

A source's pods are resumed on every way back from a switchover, whatever is remembered of them: to thaw what is not
frozen does nothing. What a pod gives to be saved goes to its counterpart like a device's state (podstate).
"""

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from vfio_agent import freezer, hooks
from vfio_agent.pods import PodRef
from vfio_agent.threads import at_once
from vfio_api.errors import WorkloadError
from vfio_api.types import Hook, PauseMethod, Role, Workload

if TYPE_CHECKING:
    from vfio_agent.session import Session

PAUSE, SAVE, RESUME = "pause", "save", "resume"


class Workloads:
    """The pods of one session. To be used on the event loop, but for `load`.

    What blocks has threads of its own: a hook that hangs must not take those in which arcs are made.
    """

    def __init__(self, session: "Session"):
        self._session = session
        self._pods = tuple(w for w in session.spec.workloads if w.method is not PauseMethod.NONE)
        self._paused = False
        # a pause whose command was given up may still be under way: whoever resumes calls it off and waits for it
        self._called_off = threading.Event()
        self._acting = {pod.pod_uid: threading.Lock() for pod in self._pods}
        self._doubtful: set[str] = set()  # UIDs of pods that were asked to pause and have not said that they are

    @property
    def hooked(self) -> tuple[Workload, Hook] | None:
        """The pod that is saved and loaded by its hook; None if there is none."""
        return next(((w, w.hook) for w in self._pods if w.hook is not None), None)

    async def find(self) -> None:
        """Look for the pods' cgroups, which takes a while: not in the switchover. Raises WorkloadError."""
        frozen = [pod for pod in self._pods if pod.method is PauseMethod.FREEZE]
        await at_once([partial(freezer.folder_of, self._session.around.pods, _ref(pod)) for pod in frozen])

    async def pause(self) -> None:
        """Pause every pod; nothing happens if they are. Raises WorkloadError; some may then be paused: resume them."""
        if not self._paused and self._pods:
            self._session.turns()
            self._doubtful |= {pod.pod_uid for pod in self._pods}
            await self._each(PAUSE, self._pause, self._pods)
            self._paused = True

    async def save(self) -> bytes:
        """What the pod with a hook gives to be taken along; b"" without one. Raises WorkloadError."""
        if self.hooked is None:
            return b""
        workload, hook = self.hooked
        began, given = time.perf_counter(), bytearray()
        await at_once([lambda: given.extend(hooks.call(hook, _ref(workload), hooks.SAVE, called_off=self._called_off))])
        self._session.timed(SAVE, began)
        return bytes(given)

    def load(self, state: bytes) -> None:
        """Give the pod what its counterpart gave; blocking, any thread. Raises WorkloadError."""
        if self.hooked is not None:
            workload, hook = self.hooked
            hooks.call(hook, _ref(workload), hooks.LOAD, state)

    def call_off(self) -> None:
        """Nobody is to be paused or saved any more: what is under way ends as soon as it can. Any thread."""
        self._called_off.set()

    async def resume(self) -> None:
        """Resume every pod, also those of which it is not known whether they were paused. Raises WorkloadError."""
        if self._session.facts.role is Role.SOURCE and not self._session.facts.switchover:
            return  # nobody was asked to pause: that is done behind a record of the switchover
        self.call_off()
        self._paused = False
        await self._each(RESUME, self._resume, self._pods)
        if self._pods and self._session.facts.role is Role.TARGET:
            self._session.turned()

    async def end(self) -> None:
        """After Commit: end the pods that run elsewhere now, and resume those that only gave their devices away.

        One that is frozen could not be ended by the kubelet. Raises WorkloadError.
        """
        pods = self._session.around.pods
        frozen = [pod for pod in self._pods if pod.moved and pod.method is PauseMethod.FREEZE]
        stay = [pod for pod in self._pods if not pod.moved]
        ends = [partial(freezer.end, pods, _ref(pod)) for pod in frozen]
        await at_once([*ends, *(partial(self._resume, pod) for pod in stay)])

    async def _each(self, step: str, act: Callable[[Workload], None], pods: Iterable[Workload]) -> None:
        """Have something done to all pods at once, and wait for all. Raises WorkloadError."""
        acts = [partial(act, pod) for pod in pods]
        if not acts:
            return
        began = time.perf_counter()
        self._session.trail.enter(step)
        try:
            await at_once(acts)
        finally:
            self._session.timed(step, began)

    def _pause(self, pod: Workload) -> None:
        with self._acting[pod.pod_uid]:
            if self._called_off.is_set():
                raise WorkloadError(f"pod {_ref(pod)} is not paused: the migration has turned back")
            if pod.hook is not None:
                hooks.call(pod.hook, _ref(pod), hooks.PAUSE, called_off=self._called_off)
            else:
                seconds = pod.timeout_milliseconds / 1000
                freezer.freeze(self._session.around.pods, _ref(pod), seconds, self._called_off)
            self._doubtful.discard(pod.pod_uid)

    def _resume(self, pod: Workload) -> None:
        with self._acting[pod.pod_uid]:
            if pod.hook is None:
                freezer.thaw(self._session.around.pods, _ref(pod))
                return
            try:
                hooks.call(pod.hook, _ref(pod), hooks.RESUME)
            except WorkloadError as error:
                if pod.pod_uid not in self._doubtful:
                    raise
                # it never said that it was paused, so it counts as one that runs
                self._session.log.warning("a pod that was not paused does not answer", error=error.message)


def _ref(workload: Workload) -> PodRef:
    return PodRef(workload.pod_uid, workload.pod_namespace, workload.pod_name)
