"""What the two roles of a session do around their devices' arcs: the source sends, the target loads.

`before` runs before the rounds of a command, `after` when all its rounds succeeded.
"""

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vfio_agent.advice import advice
from vfio_agent.datatls import context
from vfio_agent.devices.protocol import DataStream
from vfio_agent.losses import raise_unless_running, reset_lost, say_lost
from vfio_agent.receiver import Expected, Inlet
from vfio_agent.sender import Progress
from vfio_agent.streams import SourceStreams, at_once
from vfio_api.device import RUNS, DeviceState, MigrationFlags
from vfio_api.errors import CommandError, DeviceError, JournalError, Reason
from vfio_api.types import Command, DeviceReport, Goal, Outcome, SessionDevice

if TYPE_CHECKING:
    from vfio_agent.session import Session

SAMPLE_SECONDS = 0.02
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

    async def failed(self, command: Command) -> None:
        """A source has nothing to look for."""

    def moved(self, name: str, old: DeviceState, new: DeviceState) -> None:
        """Nor does it keep an account of its devices' arcs."""

    async def before(self, command: Command) -> None:
        """Take the devices; connect the streams; on the way back, restore what only a reset restores."""
        if command.goal is Goal.PREPARED:
            for device in self._session.spec.devices:
                await self._session.blocking(partial(self._hold, device))
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
            began = time.perf_counter()
            await self._streams.finish()
            self._session.timed("transfer", began)
            self._sent_again = max(self._sent_again, command.attempt)
        if command.goal is Goal.RUNNING:
            await self._session.blocking(partial(reset_lost, self._session))
            say_lost(self._session)
        if command.goal is Goal.RELEASED:
            await self.stop_streams()
            await self._session.blocking(self._release)

    def _hold(self, device: SessionDevice) -> None:
        held = self._session.around.holdings.get(device.address)
        if held is None:
            raise DeviceError(
                f"device {device.name} ({device.address}) is not held by this agent: nothing has it open, so it "
                "carries no state to migrate",
                reason=Reason.SOURCE_NOT_HELD,
                device=device.name,
            )
        self._session.hold(device.name, held)
        self._sample(device.name)

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
        """What the state of a device does not carry; in its sender's thread. Raises DeviceError."""
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
        sender.begin(stream)

    def _on_change(self, name: str) -> None:
        """Something changed at a sender; in its thread."""
        self._sample(name)
        self._session.changed()

    async def settle(self) -> None:
        """Between the barriers A and B: what is initial data must be loaded before its device may stop.

        A device can have come to have new initial data after it was found converged. Raises StreamError, DeviceError.
        """
        session = self._session
        if not (session.spec.pre_copy and session.spec.switchover_ack):
            return
        await self._streams.confirm([d.name for d in session.held_devices() if session.state(d.name) in _PRE_COPY])

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
        if self._session.facts.decision is Outcome.COMMIT:
            for device in self._session.spec.devices:
                self._session.around.holdings.release(device.address)

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


class TargetSide:
    """A target: opens blank devices, listens, loads, votes."""

    def __init__(self, session: "Session"):
        self._session = session
        self._inlets: dict[str, Inlet] = {}
        self._streams: dict[str, DataStream] = {}
        self._loaded: set[str] = set()
        self._ran: set[str] = set()  # devices that have left STOP
        self._left = session.facts.leaving  # an earlier agent was told to: one that is gone may have run

    def keeps(self, command: Command) -> bool:
        """Whether the devices are to be left as they are: one with a stream, or loaded, is not to be blanked again."""
        begun = bool(self._loaded) or any(inlet.taken for inlet in self._inlets.values())
        return command.goal is Goal.PREPARED and begun and not command.again

    def moved(self, name: str, old: DeviceState, new: DeviceState) -> None:
        """A device has taken an arc; in an arc's thread."""
        if old is DeviceState.STOP and new in RUNS:
            self._ran.add(name)

    async def failed(self, command: Command) -> None:
        """Find devices that lost their state when they were to leave STOP: the source still has it."""
        session = self._session
        if command.goal not in (Goal.RUNNING_P2P, Goal.RUNNING):
            return
        await session.blocking(session.refresh)
        lost = tuple(device.name for device in session.spec.devices if self._is_lost(device.name))
        if lost and not session.facts.started:
            session.reached = None
            await session.note(replace(session.facts, loaded=False, lost=lost))

    def _is_lost(self, name: str) -> bool:
        held = any(device.name == name for device in self._session.held_devices())
        gone = not held or self._session.state(name) is DeviceState.ERROR
        return gone and name not in self._ran and not self._left

    async def before(self, command: Command) -> None:
        """Open and reset the devices; on release, blank what was not started."""
        if command.again:
            await self._session.blocking(partial(self._make_ready_again, command.again))
        elif command.goal is Goal.PREPARED:
            for device in self._session.spec.devices:
                await self._session.blocking(partial(self._open, device))
        if command.goal is Goal.RELEASED and not self._session.facts.started:
            await self._session.blocking(self._discard)

    async def after(self, command: Command) -> None:
        """Listen once RESUMING; after RUNNING the devices are the workload's."""
        session = self._session
        if command.goal is Goal.PREPARED:
            self._listen(command)
        if command.goal is Goal.RUNNING:
            await session.note(replace(session.facts, started=True))
        if command.goal is Goal.RELEASED:
            session.around.server.forget(session.key.uid)
            for stream in self._streams.values():
                stream.close()
            if session.facts.started:
                await session.blocking(self._hand_over)

    def _open(self, device: SessionDevice) -> None:
        holdings = self._session.around.holdings
        held = holdings.get(device.address)
        if held is None:
            held = holdings.open(device.address, f"migration {self._session.key}")
        elif held.holder != f"migration {self._session.key}":
            raise DeviceError(
                f"device {device.name} ({device.address}) is a target but {held.holder} has live state in it",
                reason=Reason.TARGET_HAS_HOLDER,
                device=device.name,
            )
        self._session.hold(device.name, held)

    def _make_ready_again(self, names: tuple[str, ...]) -> None:
        """Blank the devices that lost their state, and forget the streams that they had."""
        session = self._session
        session.around.server.forget(session.key.uid)
        for device in session.spec.devices:
            if device.name not in names:
                continue
            self._inlets.pop(device.name, None)
            self._loaded.discard(device.name)
            if session.around.holdings.get(device.address) is None:
                self._open(device)
            else:
                session.reset(device.name)

    def _listen(self, command: Command) -> None:
        pinned = tuple(peer.certificate for peer in command.peers)
        for device in self._session.spec.devices:
            if command.again and device.name not in command.again:
                continue
            name = device.name
            if name not in self._inlets:
                self._inlets[name] = Inlet(name, self._streams[name], partial(self._validate, name), self._session.fail)
        self._session.around.server.expect(
            self._session.key.uid,
            Expected(context(self._session.identity, pinned, server=True), pinned, self._inlets),
        )

    def data_stream(self, name: str, stream: DataStream) -> None:
        """RESUMING handed out the stream to load."""
        before = self._streams.pop(name, None)
        if before is not None:
            before.close()  # the device has left the RESUMING that it belonged to
        self._streams[name] = stream

    def _validate(self, name: str, config: bytes) -> None:
        """All of one device's state is loaded: RESUMING -> STOP validates it. In the receiving thread.

        config: what the state did not carry, b"" for nothing; it is restored before the device is voted for.
        """
        began = time.perf_counter()
        try:
            self._session.set_state(name, DeviceState.STOP)
            if config:
                self._restore(name, config)
        except DeviceError as error:
            self._session.fail(
                DeviceError(
                    f"{error.message}; {advice(error.errno)}",
                    reason=Reason.STATE_REFUSED,
                    device=name,
                    arc=error.arc,
                    errno=error.errno,
                )
            )
            return
        self._session.timed(f"load/{name}", began)
        self._session.on_loop(self._vote, name)

    def _restore(self, name: str, config: bytes) -> None:
        held = self._session.device(name)
        with held.lock:
            try:
                held.device.restore_config(config)
            except OSError as error:
                raise DeviceError(
                    f"device {name} ({held.address}): it refused its config of {len(config)} bytes: {error}",
                    device=name,
                    errno=error.errno or 0,
                ) from error

    def _vote(self, name: str) -> None:
        """When the last device is validated: journal the vote, then report it."""
        session = self._session
        if session.ended:
            return
        self._loaded.add(name)
        awaited = set(session.facts.lost) or {d.name for d in session.spec.devices}
        if awaited <= self._loaded and session.failure is None:
            strays = [each for each in sorted(awaited) if session.state(each) is not DeviceState.STOP]
            if strays:
                session.fail(
                    DeviceError(
                        f"device {strays[0]} was loaded, but is in {session.state(strays[0]).name} now: no vote",
                        reason=Reason.STATE_REFUSED,
                        device=strays[0],
                    )
                )
                return
            facts = replace(session.facts, loaded=True, lost=())
            try:
                session.around.journal.write(session.key, session.spec, facts, durable=False)
            except JournalError as error:
                session.fail(error)  # no vote
                return
            session.facts = facts
            session.reached = Goal.LOADED
            session.heard()
        session.around.notify(session)

    def _discard(self) -> None:
        """Reset erases what was loaded; then the devices are closed."""
        for device in self._session.spec.devices:
            held = self._session.around.holdings.get(device.address)
            if held is None or held.holder != f"migration {self._session.key}":
                continue
            try:
                self._session.hold(device.name, held)
                self._session.reset(device.name)
            finally:
                self._session.around.holdings.release(device.address)

    def _hand_over(self) -> None:
        for device in self._session.spec.devices:
            self._session.around.holdings.set_holder(device.address, "keeper")

    def interrupt(self) -> None:
        """Stop listening: the session ends."""
        self._session.around.server.forget(self._session.key.uid)

    async def settle(self) -> None:
        """A target sends nothing."""

    def acknowledgements(self) -> tuple[bool, ...]:
        """Nobody acknowledges anything to a target."""
        return ()

    def awaited(self) -> tuple[str, str]:
        """A target's steps wait for no stream."""
        return "", ""

    def link_bytes_per_second(self) -> int:
        """A target measures nothing."""
        return 0

    def complete(self, report: DeviceReport) -> DeviceReport:
        """Add what was loaded to a device's report."""
        inlet = self._inlets.get(report.name)
        return replace(report, transferred_bytes=inlet.loaded_bytes) if inlet else report

    def close(self) -> None:
        """The session ends."""
        self.interrupt()
