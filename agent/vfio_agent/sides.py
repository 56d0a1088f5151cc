"""What the two roles of a session do around their devices' arcs: the source sends, the target loads.

`before` runs before the rounds of a command, `after` when all its rounds succeeded.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vfio_agent.advice import advice
from vfio_agent.datatls import context
from vfio_agent.devices.protocol import DataStream
from vfio_agent.frames import StreamHello
from vfio_agent.linkrate import LinkMeter
from vfio_agent.losses import raise_unless_running, reset_lost, say_lost
from vfio_agent.ratelimit import TokenBucket
from vfio_agent.receiver import Expected, Inlet
from vfio_agent.sender import Progress, Sender
from vfio_api.device import DeviceState, MigrationFlags
from vfio_api.errors import CommandError, DeviceError, Reason, StreamError, VFIOMigrationError
from vfio_api.types import Command, DeviceReport, Goal, Outcome, SessionDevice

if TYPE_CHECKING:
    from vfio_agent.session import Session

CONNECT_SECONDS = 10.0


class SourceSide:
    """A source: its devices are held already; one sender per device."""

    def __init__(self, session: "Session"):
        self._session = session
        self._senders: dict[str, Sender] = {}
        self._stop_copy_bytes: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._interrupted = self._awaits = False
        self._link = LinkMeter(ceiling=session.spec.bandwidth_limit_bytes_per_second)

    async def before(self, command: Command) -> None:
        """Take the devices; connect the streams; on the way back, restore what only a reset restores."""
        if command.goal is Goal.PREPARED:
            for device in self._session.spec.devices:
                await self._session.blocking(partial(self._hold, device))
        if command.goal is Goal.PRE_COPY and not self._senders:
            await self._connect(command)
        if command.goal in (Goal.RUNNING_P2P, Goal.RUNNING):
            await self._session.blocking(self._stop_senders)
            await self._session.blocking(self._session.refresh)
        if command.goal is Goal.RELEASED and self._session.facts.decision is not Outcome.COMMIT:
            raise_unless_running(self._session)

    async def after(self, command: Command) -> None:
        """Stream to the end behind barrier B; give the devices up at the end."""
        if command.goal is Goal.STOP_COPY:
            began = time.perf_counter()
            for sender in self._senders.values():
                sender.finish()
            await self._all_finished()
            self._session.timed("transfer", began)
        if command.goal is Goal.RUNNING:
            await self._session.blocking(partial(reset_lost, self._session))
            say_lost(self._session)
        if command.goal is Goal.RELEASED:
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
        """Ask how much STOP_COPY would still give; not while an arc is under way, and not in the switchover."""
        held = self._session.device(name)
        if self._session.facts.switchover or not held.lock.acquire(blocking=False):
            return
        try:
            self._stop_copy_bytes[name] = held.device.data_size()
        except OSError:
            self._stop_copy_bytes.pop(name, None)
        finally:
            held.lock.release()

    async def _connect(self, command: Command) -> None:
        peers = {peer.node: peer for peer in command.peers}
        pinned = tuple(peer.certificate for peer in command.peers)
        tls = context(self._session.identity, pinned, server=False)
        limit = TokenBucket(self._session.spec.bandwidth_limit_bytes_per_second)
        for device in self._session.spec.devices:
            peer = peers.get(device.peer_node)
            if peer is None:
                raise CommandError(
                    f"device {device.name}: the command names no data address for its target node {device.peer_node}",
                    device=device.name,
                )
            hello = StreamHello(self._session.key.uid, device.name, command.epoch)
            self._senders[device.name] = Sender(
                hello,
                peer.data_address,
                tls,
                (peer.certificate,),
                limit,
                partial(self._on_change, device.name),
                link=self._link,
                config=partial(self._config, device.name),
                streams=len(self._session.spec.devices),
            )
        self._awaits = True
        senders = self._senders.values()
        await self._all([partial(s.connect, CONNECT_SECONDS) for s in senders])
        await self._all([s.probe for s in senders])  # at once: they share the link
        self._awaits = False

    async def _all(self, calls: list[Callable[[], None]]) -> None:
        """Make blocking calls at once; all are waited for, then the first failure is raised."""
        for result in await asyncio.gather(*map(self._session.blocking, calls), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

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
        sender = self._senders.get(name)
        if sender is None:
            stream.close()
            raise CommandError(f"device {name}: there is no stream to its target; PreCopy comes first", device=name)
        sender.begin(stream)

    def _on_change(self, name: str) -> None:
        """Something changed at a sender; in its thread."""
        self._sample(name)
        for sender in self._senders.values():
            if sender.error is not None:
                self._session.fail(sender.error)
        self._session.changed()
        self._session.on_loop(self._changed.set)

    async def _all_finished(self) -> None:
        self._awaits = True
        while not all(sender.progress.finished for sender in self._senders.values()):
            if self._interrupted:
                raise StreamError("the streams were called off before their end", reason=Reason.CANCELLED)
            for sender in self._senders.values():
                if sender.error is not None:
                    raise sender.error
            await self._changed.wait()
            self._changed.clear()
        self._awaits = False

    def awaited(self) -> tuple[str, str]:
        """The first device whose stream held up the step that was given up, and what it waits for; "" if none did."""
        left = [(n, s, s.awaiting) for n, s in self._senders.items() if self._awaits and not s.progress.finished]
        if not left:
            return "", ""
        name, sender, text = next((each for each in left if each[2]), left[0])
        awaited = text or "the end of its state"
        return name, f"device {name} has sent {sender.progress.sent_bytes} bytes and awaits {awaited}"

    def link_bytes_per_second(self) -> int:
        """What the session's streams reached together lately; 0: not measured."""
        return self._link.bytes_per_second()

    def _release(self) -> None:
        self._stop_senders()
        if self._session.facts.decision is Outcome.COMMIT:
            for device in self._session.spec.devices:
                self._session.around.holdings.release(device.address)

    def _stop_senders(self) -> None:
        for sender in self._senders.values():
            sender.stop()

    def interrupt(self) -> None:
        """Wake whatever waits for a stream: the session turns back or ends."""
        self._interrupted, self._awaits = True, False
        for sender in self._senders.values():
            sender.interrupt()
        self._changed.set()

    def complete(self, report: DeviceReport) -> DeviceReport:
        """Add what the sender knows to a device's report."""
        sender = self._senders.get(report.name)
        progress = sender.progress if sender is not None else Progress()
        return replace(
            report,
            stop_copy_bytes=0 if self._session.facts.switchover else self._stop_copy_bytes.get(report.name, 0),
            initial_bytes=progress.initial_bytes,
            dirty_bytes=progress.dirty_bytes,
            transferred_bytes=progress.sent_bytes,
            bytes_per_second=progress.bytes_per_second,
            initial_acknowledged=progress.initial_acknowledged or MigrationFlags.PRE_COPY not in report.flags,
            drained=progress.drained or MigrationFlags.PRE_COPY not in report.flags,
        )

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

    async def before(self, command: Command) -> None:
        """Open and reset the devices; on release, blank what was not started."""
        if command.goal is Goal.PREPARED:
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
            await session.record(replace(session.facts, started=True))
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

    def _listen(self, command: Command) -> None:
        pinned = tuple(peer.certificate for peer in command.peers)
        for device in self._session.spec.devices:
            name = device.name
            if name not in self._inlets:
                self._inlets[name] = Inlet(name, self._streams[name], partial(self._validate, name), self._session.fail)
        self._session.around.server.expect(
            self._session.key.uid,
            Expected(context(self._session.identity, pinned, server=True), pinned, self._inlets),
        )

    def data_stream(self, name: str, stream: DataStream) -> None:
        """RESUMING handed out the stream to load."""
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
        if len(self._loaded) == len(session.spec.devices) and session.failure is None:
            facts = replace(session.facts, loaded=True)
            session.around.journal.write(session.key, session.spec, facts, durable=False)
            session.facts = facts
            session.reached = Goal.LOADED
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
