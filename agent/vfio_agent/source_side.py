"""What a source does around its devices' arcs: it sends what they give, and keeps them until they run elsewhere.

`before` runs before the rounds of a command, `after` when all its rounds succeeded.
"""

import asyncio
import os
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vfio_agent.adoption import duplicate, find, is_device
from vfio_agent.advice import advice
from vfio_agent.devices.protocol import DataStream
from vfio_agent.holdings import Held
from vfio_agent.losses import raise_unless_running, reset_lost, say_lost
from vfio_agent.metrics import Stage
from vfio_agent.podstate import POD, SavedState
from vfio_agent.sender import Progress
from vfio_agent.streams import SourceStreams
from vfio_agent.threads import at_once
from vfio_agent.whole import raise_unless_whole
from vfio_api.device import DeviceState, MigrationFlags
from vfio_api.errors import CommandError, DeviceError, Reason, VFIOMigrationError
from vfio_api.types import Command, DeviceReport, Goal, Outcome, SessionDevice

if TYPE_CHECKING:
    from vfio_agent.session import Session

SAMPLE_SECONDS = 0.02
_DOWN = (DeviceState.PRE_COPY_P2P, DeviceState.RUNNING_P2P, DeviceState.STOP_COPY)
_PRE_COPY = (DeviceState.PRE_COPY, DeviceState.PRE_COPY_P2P)


class SourceSide:
    """A source: its devices are held already; one sender per device."""

    def __init__(self, session: "Session"):
        self._session = session
        self._streams = SourceStreams(session, self._on_change, self._config)
        self._stop_copy_bytes: dict[str, int] = {}
        self._sent_again = 0  # the last attempt that came to its end

    def keeps(self, command: Command) -> bool:
        """Whether what is to be sent once more was: no other command finds a source's devices as they must stay."""
        return bool(command.again) and command.attempt <= self._sent_again

    async def failed(self, command: Command, error: VFIOMigrationError) -> VFIOMigrationError:
        """A source has nothing to look for: the failure is what it seemed to be."""
        return error

    async def look_for_lost(self, command: Command) -> None:
        """A source's losses are said on its way back."""

    def remind(self) -> None:
        """They are said again whenever it comes back."""

    def moved(self, name: str, old: DeviceState, new: DeviceState) -> None:
        """Streams are not held back any more once the first device is quiesced, and one that is in STOP_COPY is sent to
        its end, without waiting for the others; in an arc's thread.

        The decision waits for all of them: what a target has loaded by then is blanked again if one does not get there.
        """
        if new in _DOWN:
            self._streams.switch_over()
        sender = self._streams.get(name)
        if new is DeviceState.STOP_COPY and sender is not None:
            sender.stopped()

    async def before(self, command: Command) -> None:
        """Take the devices; connect the streams; on the way back, restore what only a reset restores."""
        if command.goal is Goal.PREPARED:
            for device in self._session.spec.devices:
                await self._session.blocking(partial(self._hold, device))
            await self._session.workloads.find()
            await self._session.blocking(partial(raise_unless_whole, self._session))
        if command.goal is Goal.PRE_COPY:
            await self._streams.connect(command)
        if command.again:
            await self.stop_streams()
            self._streams = SourceStreams(self._session, self._on_change, self._config)
            await self._streams.connect(command)
        if command.goal in (Goal.RUNNING_P2P, Goal.RUNNING):
            await self.stop_streams()
            await self._session.blocking(self._session.refresh)
        if command.goal is Goal.RELEASED and self._session.facts.decision is not Outcome.COMMIT:
            raise_unless_running(self._session)

    async def after(self, command: Command) -> None:
        """Stream to the end behind barrier B; give the devices up at the end."""
        if command.goal is Goal.STOP_COPY:
            began, rate = time.perf_counter(), self.link_bytes_per_second()
            await asyncio.gather(self._streams.finish(), self._save(command))
            self._session.timed("transfer", began)
            if not command.again:  # what is sent again passes nothing a second time
                self._measure(rate, time.perf_counter() - began)
            self._sent_again = max(self._sent_again, command.attempt)
        if command.goal is Goal.RUNNING:
            await reset_lost(self._session)
            say_lost(self._session)
        if command.goal is Goal.RELEASED:
            await self.stop_streams()
            if self._session.facts.decision is Outcome.COMMIT:
                await self._session.workloads.end()
            elif self._session.reached is not Goal.RUNNING:  # by what this agent knows nobody has resumed its pods
                await self._session.workloads.resume()
            await self._session.blocking(self._release)

    async def _save(self, command: Command) -> None:
        """All sources are stopped, so what the pod's memory has by DMA is complete: what it gives goes along."""
        if command.again:
            return  # the counterpart has it
        state = await self._session.workloads.save()
        if (sender := self._streams.get(POD)) is not None:
            sender.begin(SavedState(state))

    def _measure(self, rate: int, seconds: float) -> None:
        """rate: of the link in bytes per second when the devices were stopped. seconds: how long the rest took."""
        metrics = self._session.around.metrics
        metrics.rate(Stage.STOP_COPY, self._streams.rest_bytes / max(seconds, 1e-6))
        if self._session.spec.pre_copy:
            if rate:
                metrics.rate(Stage.PRE_COPY, rate)
            for passes in self._streams.passes:
                metrics.passes(passes)

    def _hold(self, device: SessionDevice) -> None:
        held = self._session.around.holdings.get(device.address) or self._adopt(device)
        if held is None:
            raise DeviceError(
                f"device {device.name} ({device.address}) is not held by this agent: nothing has it open, so it "
                "carries no state to migrate",
                reason=Reason.SOURCE_NOT_HELD,
                device=device.name,
            )
        if device.pod_uid and held.pod and held.pod != device.pod_uid:
            raise DeviceError(
                f"device {device.name} ({device.address}) is used by {held.holder} now, no longer by pod "
                f"{self._session.around.pods.ref(device.pod_uid)}, for which this was planned; create it again",
                reason=Reason.SOURCE_NOT_HELD,
                device=device.name,
            )
        self._session.hold(device.name, held)
        self._sample(device.name)

    def _adopt(self, device: SessionDevice) -> Held | None:
        """The device by a duplicate of the fd of its pod's process; None if no pod is said to have it open."""
        if not device.pod_uid:
            return None
        around = self._session.around
        opening = find(around.pods, device.pod_uid, device.address, around.holdings.nodes())
        pod = around.pods.ref(device.pod_uid)
        if opening is None:
            raise DeviceError(
                f"device {device.name} ({device.address}): no process of pod {pod} has it open any more; look at "
                "kubectl describe pod and at HOLDER in kubectl get vfd",
                reason=Reason.SOURCE_NOT_HELD,
                device=device.name,
            )
        try:
            fd = duplicate(around.pods, opening, device.pod_uid)
        except OSError as error:
            raise DeviceError(
                f"device {device.name} ({device.address}): {opening} of pod {pod} could not be duplicated: {error}",
                reason=Reason.SOURCE_NOT_HELD,
                device=device.name,
                errno=error.errno or 0,
            ) from error
        if not opening.address and not is_device(around.pods, opening.pid, fd, device.address, around.holdings.nodes()):
            os.close(fd)
            raise DeviceError(
                f"device {device.name} ({device.address}): {opening} of pod {pod} is another file by now; try again",
                reason=Reason.SOURCE_NOT_HELD,
                device=device.name,
            )
        self._session.log.info("device adopted", device=device.name, pod=str(pod), pid=opening.pid, fd=opening.fd)
        return around.holdings.adopt(device.address, fd, f"pod {pod}", device.pod_uid, borrowed=True)

    def _sample(self, name: str) -> None:
        """Ask how much STOP_COPY would still give; not in the switchover.

        While an arc is under way the device is not held up for it: what it said last stands.
        """
        held = self._session.device(name)
        # the inventory asks it, too, which is over at once; if this is the last word of a device that rests, it counts
        if self._session.facts.switchover or not held.lock.acquire(timeout=SAMPLE_SECONDS):
            return
        try:
            if self._session.facts.switchover:  # it began meanwhile
                return
            self._stop_copy_bytes[name] = held.device.data_size()
        except OSError:
            self._stop_copy_bytes.pop(name, None)
        finally:
            held.lock.release()

    def _size(self, report: DeviceReport) -> DeviceReport:
        """Add what STOP_COPY would still give; where the device does not say, what it told of pre-copy is a floor."""
        if self._session.facts.switchover:
            return report
        size = self._stop_copy_bytes.get(report.name)
        if size is None:
            return replace(report, stop_copy_bytes=report.initial_bytes + report.dirty_bytes, size_unknown=True)
        return replace(report, stop_copy_bytes=size)

    def _config(self, name: str) -> bytes:
        """What the state of a device does not carry; in its sender's or an arc's thread. Raises DeviceError."""
        held = self._session.device(name)
        with held.lock:
            try:
                return held.device.config()
            except OSError as error:
                raise DeviceError(
                    f"device {name} ({held.address}): its config could not be read: {error}; {advice(error.errno)}",
                    device=name,
                    errno=error.errno or 0,
                ) from error

    def data_stream(self, name: str, stream: DataStream) -> None:
        """A device handed out its data stream; called in an arc's thread."""
        sender = self._streams.get(name)
        if sender is None:
            stream.close()
            raise CommandError(f"device {name}: there is no stream to its target; PreCopy comes first", device=name)
        sender.begin(stream, final=self._session.state(name) is DeviceState.STOP_COPY)

    def _on_change(self, name: str) -> None:
        """Something changed at a sender; in its thread."""
        if name != POD:
            self._sample(name)
        self._session.changed()

    def settled(self) -> bool:
        """Whether all initial data is loaded, by what the devices say now; blocking. False: `settle` finds out."""
        return all(sender.rested() for name in self._acknowledging() if (sender := self._streams.get(name)))

    async def settle(self) -> None:
        """Between the barriers A and B: what is initial data must be loaded before its device may stop.

        A device can have come to have new initial data after it was found converged. Raises StreamError, DeviceError.
        """
        await self._streams.confirm(self._acknowledging())

    def _acknowledging(self) -> list[str]:
        session = self._session
        if not (session.spec.pre_copy and session.spec.switchover_ack):
            return []
        return [d.name for d in session.held_devices() if session.state(d.name) in _PRE_COPY]

    def awaited(self) -> tuple[str, str]:
        """The first device whose stream held up the step that was given up, and what it waits for; "" if none did."""
        return self._streams.awaited()

    def link_bytes_per_second(self) -> int:
        """What the session's streams reached together lately; 0: not measured."""
        return self._streams.link_bytes_per_second()

    def acknowledgements(self) -> tuple[bool, ...]:
        """Of each device, whether its initial data is acknowledged: news that is worth a report of its own."""
        senders = [self._streams.get(device.name) for device in self._session.spec.devices]
        return tuple(sender is not None and sender.progress.initial_acknowledged for sender in senders)

    def _release(self) -> None:
        holdings = self._session.around.holdings
        committed = self._session.facts.decision is Outcome.COMMIT
        for device in self._session.spec.devices:
            held = holdings.get(device.address)
            if committed or (held is not None and held.borrowed):
                holdings.release(device.address)

    async def stop_streams(self) -> None:
        """End every stream, and wait until their threads have ended."""
        await at_once([self._streams.stop])

    def interrupt(self) -> None:
        """Wake whatever waits for a stream: the session turns back or ends."""
        self._streams.interrupt()

    def complete(self, report: DeviceReport) -> DeviceReport:
        """Add what the sender knows to a device's report."""
        sender = self._streams.get(report.name)
        progress = sender.progress if sender is not None else Progress()
        report = replace(
            report,
            initial_bytes=progress.initial_bytes,
            dirty_bytes=progress.dirty_bytes,
            transferred_bytes=progress.sent_bytes,
            bytes_per_second=progress.bytes_per_second,
            initial_acknowledged=progress.initial_acknowledged or MigrationFlags.PRE_COPY not in report.flags,
            drained=progress.drained or MigrationFlags.PRE_COPY not in report.flags,
        )
        return self._size(report)

    def close(self) -> None:
        """The session ends."""
        self.interrupt()

    def forget(self) -> None:
        """The session has ended, and its streams were stopped."""
        self._streams.forget()
