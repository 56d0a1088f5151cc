"""What a target does around its devices' arcs: it blanks, listens, loads and votes; after Commit it starts.

`before` runs before the rounds of a command, `after` when all its rounds succeeded.
"""

import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vfio_agent.advice import advice
from vfio_agent.datatls import context
from vfio_agent.devices.protocol import DataStream
from vfio_agent.machine import rounds
from vfio_agent.passage import go_through
from vfio_agent.podstate import POD, LoadedState
from vfio_agent.receiver import Expected, Inlet
from vfio_api.device import RUNS, DeviceState
from vfio_api.errors import DeviceError, JournalError, Reason, VFIOMigrationError, WorkloadError
from vfio_api.types import Command, DeviceReport, Goal, Outcome, Role, SessionDevice

if TYPE_CHECKING:
    from vfio_agent.session import Session


_STARTS = (Goal.RUNNING_P2P, Goal.RUNNING)


def _gone(names: tuple[str, ...], cause: VFIOMigrationError) -> DeviceError:
    return DeviceError(
        f"the state of {', '.join(names)} is gone: it was lost after Commit, when it had left STOP or may have: "
        f"{cause.message}; restart the workload, which must set the device up anew",
        reason=Reason.TARGET_LOST_AFTER_COMMIT,
        device=cause.device or names[0],
        arc=getattr(cause, "arc", ""),
        errno=getattr(cause, "errno", 0),
    )


class TargetSide:
    """A target: opens blank devices, listens, loads, votes."""

    def __init__(self, session: "Session"):
        self._session = session
        self._inlets: dict[str, Inlet] = {}
        self._streams: dict[str, DataStream] = {}
        self._loaded: set[str] = set()
        self._new: list[tuple[str, int]] = []  # loaded, by which loading, and not in `_loaded` yet
        self._news = threading.Lock()
        self._ran: set[str] = set()  # devices that have left STOP
        self._pod_state = LoadedState()
        self._loads: dict[str, int] = {}  # how often a device was made ready to load
        self._validating = {device.name: threading.Lock() for device in session.spec.devices}
        self._left = session.facts.leaving  # an earlier agent was told to: one that is gone may have run

    def keeps(self, command: Command) -> bool:
        """Whether the devices are to be left as they are: one with a stream, or loaded, is not to be blanked again."""
        begun = bool(self._loaded) or any(inlet.taken for inlet in self._inlets.values())
        return command.goal is Goal.PREPARED and begun and not command.again

    def moved(self, name: str, old: DeviceState, new: DeviceState) -> None:
        """A device has taken an arc; in an arc's thread."""
        if old is DeviceState.STOP and new in RUNS:
            self._ran.add(name)

    async def failed(self, command: Command, error: VFIOMigrationError) -> VFIOMigrationError:
        """Find devices that lost their state when they were to start; returns what is to be said of it.

        One that has not left STOP can be loaded again: the source still has its state. Of any other the state is gone.
        """
        session = self._session
        if command.goal not in _STARTS:
            return error
        await session.blocking(session.refresh)
        before = session.facts.gone
        lost = tuple(d.name for d in session.spec.devices if d.name not in before and self._is_lost(d.name))
        gone = tuple(name for name in lost if session.facts.started or self._left or name in self._ran)
        if gone:
            await session.note(replace(session.facts, gone=before + gone))
            return _gone(gone, error)
        if lost:
            session.reached = None
            await session.note(replace(session.facts, loaded=False, lost=lost))
        return error

    async def look_for_lost(self, command: Command) -> None:
        """After Commit, a target whose devices went with its node: nobody knows any more whether they had run.

        That it had voted is known by the Commit. There is nothing to start, and nobody waits for it any longer.
        """
        session = self._session
        known, held = dict(session.facts.incarnations), {device.name for device in session.held_devices()}
        absent = tuple(device.name for device in session.spec.devices if device.name in known.keys() - held)
        unknown = not (session.facts.loaded or session.facts.lost or session.facts.attempt)
        if command.decision is not Outcome.COMMIT or command.goal not in _STARTS or not absent or not unknown:
            return
        await session.note(replace(session.facts, decision=Outcome.COMMIT, loaded=True, gone=absent))
        cause = DeviceError(f"{', '.join(absent)} went with the keeper or with the node", device=absent[0])
        session.fail(_gone(absent, cause))

    def remind(self) -> None:
        """What is gone for good is said again, whatever was tried since, and by whichever agent."""
        gone = self._session.facts.gone
        if gone:
            self._session.fail(_gone(gone, DeviceError("it was said before", device=gone[0])))

    def _is_lost(self, name: str) -> bool:
        held = any(device.name == name for device in self._session.held_devices())
        return not held or self._session.state(name) is DeviceState.ERROR

    async def before(self, command: Command) -> None:
        """Open and reset the devices; on release, blank what was not started."""
        if command.again:
            await self._session.blocking(partial(self._make_ready_again, command.again))
        elif command.goal is Goal.PREPARED:
            for device in self._session.spec.devices:
                await self._session.blocking(partial(self._open, device))
        if command.goal is Goal.RELEASED and self._session.facts.gone:
            await self._save_the_rest()
        elif command.goal is Goal.RELEASED and not self._session.facts.started:
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
            if session.facts.started or session.facts.gone:
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
        for name in names:
            with self._validating[name]:  # a stream of before is at its end, or never comes there
                self._loads[name] = self._loads.get(name, 0) + 1
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
                load = self._loads.get(name, 0)
                complete = partial(self._validate, name, load)
                self._inlets[name] = Inlet(name, self._stream(device), complete, partial(self._broken, name, load))
        if self._session.workloads.hooked is not None and not command.again and POD not in self._inlets:
            broken = partial(self._broken, POD, 0)
            self._inlets[POD] = Inlet(POD, self._pod_state, self._load_pod, broken)
        self._session.around.server.expect(
            self._session.key.uid,
            Expected(context(self._session.identity, pinned, server=True), pinned, self._inlets),
        )

    def _stream(self, device: SessionDevice) -> DataStream:
        stream = self._streams.get(device.name)
        if stream is None:
            raise DeviceError(
                f"device {device.name} ({device.address}) was in RESUMING already, and its stream is another "
                "session's: that one is to be released first",
                device=device.name,
            )
        return stream

    def data_stream(self, name: str, stream: DataStream) -> None:
        """RESUMING handed out the stream to load."""
        before = self._streams.pop(name, None)
        if before is not None:
            before.close()  # the device has left the RESUMING that it belonged to
        self._streams[name] = stream

    def _broken(self, name: str, load: int, error: VFIOMigrationError) -> None:
        """A device's stream failed; in the receiving thread. One that is not awaited any more says nothing new."""
        if load == self._loads.get(name, 0):
            self._session.fail(error)

    def _validate(self, name: str, load: int, config: bytes) -> None:
        """All of one device's state is loaded: RESUMING -> STOP validates it. In the receiving thread.

        config: what the state did not carry, b"" for nothing; it is restored before the device is voted for.
        """
        with self._validating[name]:
            if load == self._loads.get(name, 0):
                self._accept(name, load, config)

    def _accept(self, name: str, load: int, config: bytes) -> None:
        began = time.perf_counter()
        try:
            self._session.set_state(name, DeviceState.STOP)
            if config:
                self._restore(name, config)
        except DeviceError as error:
            self._session.trail.timed(f"load/{name}", began, time.perf_counter(), error.message)
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
        self._has_loaded(name, load)

    def _has_loaded(self, name: str, load: int) -> None:
        """One is loaded; in its receiving thread. The loop is woken once for all that it has not looked at yet."""
        with self._news:
            self._new.append((name, load))
            first = len(self._new) == 1
        if first:
            self._session.on_loop(self._vote)

    def _awaited(self) -> set[str]:
        """What must be loaded for the vote."""
        session = self._session
        pod = {POD} if session.workloads.hooked is not None else set()
        return set(session.facts.lost) or {device.name for device in session.spec.devices} | pod

    def _load_pod(self, _config: bytes) -> None:
        """All that the source pod gave is here: its counterpart takes it before the vote. In the receiving thread."""
        began = time.perf_counter()
        try:
            self._session.workloads.load(bytes(self._pod_state.state))
        except WorkloadError as error:
            self._session.fail(error)
            return
        self._session.timed("load/pod", began)
        self._has_loaded(POD, 0)

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

    def _vote(self) -> None:
        """When the last device is validated: journal the vote, then report it."""
        session = self._session
        with self._news:
            new, self._new = self._new, []
        self._loaded |= {name for name, load in new if load == self._loads.get(name, 0)}
        if session.ended or session.reached is Goal.LOADED:
            return
        awaited = self._awaited()
        if awaited <= self._loaded and session.failure is None:
            strays = [each for each in sorted(awaited - {POD}) if session.state(each) is not DeviceState.STOP]
            if strays:
                session.fail(
                    DeviceError(
                        f"device {strays[0]} was loaded, but is in {session.state(strays[0]).name} now: no vote",
                        reason=Reason.STATE_REFUSED,
                        device=strays[0],
                    )
                )
                return
            facts, began = replace(session.facts, loaded=True, lost=()), time.perf_counter()
            try:
                session.around.journal.write(session.key, session.spec, facts, durable=False)
            except JournalError as error:
                session.fail(error)  # no vote
                return
            session.facts = facts
            session.reached = Goal.LOADED
            session.heard()
            session.trail.timed("vote", began, time.perf_counter())
            session.say_later("voted", devices=len(session.spec.devices), epoch=facts.epoch)
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

    async def _save_the_rest(self) -> None:
        """Some devices' state is gone: the others start, behind their barrier; then those are blanked and closed."""
        session, gone = self._session, self._session.facts.gone
        rest = tuple(device for device in session.device_facts() if device.name not in gone)
        # they run by now, but for want of a leader's word
        await go_through(session, rounds(Role.TARGET, Goal.RUNNING, rest))
        for device in session.spec.devices:
            held = session.around.holdings.get(device.address)
            if device.name in gone and held is not None:
                await session.blocking(partial(self._blank, device.name, device.address))

    def _blank(self, name: str, address: str) -> None:
        try:
            self._session.reset(name)
        finally:
            self._session.around.holdings.release(address)

    def _hand_over(self) -> None:
        pod = next(iter(self._session.spec.workloads), None)
        holder = f"pod {pod.pod_namespace}/{pod.pod_name}" if pod else "keeper"
        for device in self._session.spec.devices:
            if device.name not in self._session.facts.gone:
                uid = pod.pod_uid if pod else ""
                self._session.around.holdings.set_holder(device.address, holder, uid, inherited=bool(pod))

    def interrupt(self) -> None:
        """Stop listening: the session ends."""
        self._session.around.server.forget(self._session.key.uid)

    def settled(self) -> bool:
        """A target sends nothing."""
        return True

    async def settle(self) -> None:
        """Nor is anything waited for."""

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

    def forget(self) -> None:
        """The session has ended, and its devices are whose they are."""
        self._inlets, self._streams = {}, {}
