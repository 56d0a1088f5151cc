"""One side of one migration on this node: takes commands, makes them true, reports.

Decisions are in `machine`; here are their effects, in the order journal -> device -> report. Arcs of one round may go
in parallel; a round that fails ends the command, so that no barrier is passed on a failure.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from vfio_agent import machine
from vfio_agent.datatls import Identity, new_identity
from vfio_agent.holdings import Held, read_state
from vfio_agent.machine import DeviceFacts, SessionFacts
from vfio_agent.passage import go_through
from vfio_agent.source_side import SourceSide
from vfio_agent.surroundings import Surroundings
from vfio_agent.target_side import TargetSide
from vfio_agent.trail import Trail
from vfio_agent.whole import raise_unless_whole
from vfio_agent.workload import Workloads
from vfio_api.device import DeviceState
from vfio_api.errors import CommandError, DeviceError, JournalError, Reason, VFIOMigrationError
from vfio_api.types import (
    Command,
    Failure,
    Goal,
    MigrationKey,
    Outcome,
    Role,
    SessionDevice,
    SessionSpec,
    Timing,
)

REPORTED_SECONDS = 0.1
_LOSSES = (Reason.SOURCE_STATE_LOST, Reason.TARGET_LOST_AFTER_COMMIT)


class Session:
    """The session of `key` in `spec`'s role. All methods run on the event loop."""

    def __init__(self, around: Surroundings, key: MigrationKey, spec: SessionSpec, facts: SessionFacts):
        self.key, self.spec, self.facts = key, spec, facts
        self._around = around
        self._loop = asyncio.get_running_loop()
        self.identity: Identity = new_identity(f"{key.uid}.{facts.role}")
        self.reached: Goal | None = None
        self.announced: Goal | None = None  # what others of this agent were told of `reached`
        self.failure: Failure | None = None
        self.cause: Failure | None = None  # what made it turn back
        self.ended = False
        self._heard = boot_clock()
        self._states: dict[str, DeviceState] = {}
        self._held: dict[str, Held] = {}
        self._timings: dict[str, int] = {}
        self._turned: float | None = None  # time.perf_counter when a source began to stop, or a target ran again
        self._turn = asyncio.Lock()
        self.trail = Trail(around.traces, key.uid, facts.role, around.epoch)
        self.log = structlog.get_logger().bind(migration=str(key), uid=key.uid, role=facts.role.value)
        self.workloads = Workloads(self)
        side = SourceSide if facts.role is Role.SOURCE else TargetSide
        self.side: SourceSide | TargetSide = side(self)

    @property
    def around(self) -> Surroundings:
        """What this agent's sessions share."""
        return self._around

    def device(self, name: str) -> Held:
        """The held device of that name in the migration. Raises DeviceError."""
        held = self._held.get(name)
        if held is None:
            raise DeviceError(f"device {name} is not held here", reason=Reason.DEVICE_LOST, device=name)
        return held

    def on_loop(self, call: Callable[..., object], *arguments: object) -> None:
        """Have `call` run on the event loop; may be called from any thread."""
        self._loop.call_soon_threadsafe(call, *arguments)

    def changed(self) -> None:
        """Something worth a report happened; may be called from any thread."""
        self.on_loop(self._around.notify, self)

    def fail(self, error: VFIOMigrationError) -> None:
        """Remember the first failure and report it; may be called from any thread."""
        self.on_loop(self._fail, error)

    def _fail(self, error: VFIOMigrationError) -> None:
        final = error.reason in _LOSSES  # whatever else was said, by a stream that broke on it
        if self.failure is None or (final and self.failure.reason is not error.reason):
            arc, errno = getattr(error, "arc", ""), getattr(error, "errno", 0)
            self.failure = Failure(error.reason, error.message, error.device, arc, errno)
            self.log.error("session failed", reason=error.reason, error=error.message, device=error.device)
        self._around.notify(self)

    async def apply(self, command: Command, still: Callable[[], None] = lambda: None) -> None:
        """Be in the command's goal by its deadline. Raises CommandError if the session must not take it.

        still: raises CommandError if a newer leader has been seen while the command waited for its turn.
        """
        await self.side.look_for_lost(command)
        machine.admit(self.facts, command)
        self.heard()
        if command.goal in machine.ROLLBACK or command.goal is Goal.RELEASED:
            self._interrupt()
        async with self._turn:
            if self.ended:
                return  # it waited while the session was released
            still()
            machine.admit(self.facts, command)  # what waited for its turn may have been overtaken
            await self._carry_out(command)
        self._around.notify(self)

    async def _carry_out(self, command: Command) -> None:
        began, failed = time.perf_counter(), ""
        self.trail.told(command)
        try:
            async with asyncio.timeout(command.deadline_milliseconds / 1000):
                await self._pursue(command, began)
        except TimeoutError:
            failed = await self._failed(command, self._too_late(command))
        except VFIOMigrationError as error:
            failed = await self._failed(command, error)
        self.trail.done(command, began, failed)

    def _too_late(self, command: Command) -> DeviceError:
        device, awaited = self.side.awaited()
        return DeviceError(
            f"{command.goal} was not reached within {command.deadline_milliseconds} ms; "
            f"devices are in {self._state_names()}{'; ' if awaited else ''}{awaited}",
            reason=Reason.STEP_TIMEOUT,
            device=device,
        )

    async def _failed(self, command: Command, error: VFIOMigrationError) -> str:
        told = await self.side.failed(command, error)  # what is lost by it is told with it
        self._fail(told)
        return told.message

    async def _pursue(self, command: Command, began: float) -> None:
        await self._remember(command)
        if command.goal in machine.ROLLBACK or command.again:
            self.cause = self.failure or self.cause
            self.failure = None  # a new attempt to get back, or to send once more, is judged by its own outcome
            self.side.remind()
        if self.failure is not None and command.goal in machine.SOURCE_FORWARD:
            return  # reported already; the operator decides what now
        if self.side.keeps(command):
            return
        if command.again:
            self.reached = None  # it is there no more, until it is there once more
        await self.side.before(command)
        if command.goal is Goal.PREPARED:
            openings = tuple((name, held.incarnation) for name, held in self._held.items())
            remember = self.note if command.again else self.record
            await remember(replace(self.facts, incarnations=openings), durable=True)
        if self.facts.role is Role.TARGET and command.goal in (Goal.RUNNING_P2P, Goal.RUNNING):
            self.all_held()
        if self.side.keeps(command):
            return  # a stream came meanwhile
        if self.facts.role is Role.SOURCE and command.goal in (Goal.QUIESCED, Goal.STOP_COPY) and not command.again:
            await self._pause()
        devices, again = self._concerned(command), bool(command.again)
        planned = machine.rounds(self.facts.role, command.goal, devices, pre_copy=self.spec.pre_copy, again=again)
        # the other nodes' devices stop as soon as all say that they are quiescent
        await go_through(self, planned, settles=command.goal is Goal.QUIESCED)
        await self.side.after(command)
        if command.goal is Goal.RUNNING:
            await self.workloads.resume()
            if self.facts.role is Role.TARGET and self.workloads.hooked is not None:
                await self.note(replace(self.facts, resumed=True))
        self.reached = command.goal
        self.heard()
        milliseconds = round((time.perf_counter() - began) * 1000, 3)
        self.say_later("goal reached", goal=command.goal.value, epoch=command.epoch, milliseconds=milliseconds)

    async def _pause(self) -> None:
        """Pause the pods; those that are moved must have no device that stays, neither before nor once they rest."""
        moves = any(pod.moved for pod in self.spec.workloads)
        surveyed = await self.blocking(partial(raise_unless_whole, self)) if moves else None
        await self.workloads.pause()
        if moves:
            await self.blocking(partial(raise_unless_whole, self, surveyed))

    def say_later(self, event: str, **what: object) -> None:
        """Log something once it is reported: devices may be down until the operator knows it."""
        self._loop.call_later(REPORTED_SECONDS, partial(self.log.info, event, **what))

    def heard(self) -> None:
        """The session was told something, or has done what it was told: its time of silence begins anew."""
        self._heard = boot_clock()

    def silent(self) -> bool:
        """Whether it awaits the decision, or does not do what that demands, and has heard nothing for too long."""
        waits = machine.inquiry(self.facts) is not machine.Inquiry.NONE
        if self.ended or not (waits or machine.alone(self.facts) not in (None, self.reached)):
            return False
        return boot_clock() - self._heard >= self.spec.switchover_timeout_milliseconds / 1000

    async def latch(self) -> None:
        """From now on only a decision counts; whatever is under way is called off."""
        if not self.facts.latched:
            await self.note(replace(self.facts, latched=True))
            seconds = self.spec.switchover_timeout_milliseconds / 1000
            self._fail(
                CommandError(
                    f"nothing was heard of the switchover of migration {self.key} for {seconds:g} s: this source asks "
                    "for Abort; look at the operator's pods and at the network between them and this node",
                    reason=Reason.SWITCHOVER_TIMEOUT,
                )
            )
            self._interrupt()

    def _interrupt(self) -> None:
        """Whatever waits for a stream or for a pod waits no longer."""
        self.side.interrupt()
        self.workloads.call_off()

    async def learn(self, decision: Outcome) -> None:
        """The decision as it was read back; it outranks whatever is said later."""
        async with self._turn:
            if self.ended:
                return
            known = self.facts.decision or decision
            await self.note(replace(self.facts, decision=known), durable=True)
            if known is Outcome.COMMIT:  # what it was called off for has not happened
                self.cause, self.failure = self.failure, None
        self._around.notify(self)

    async def _remember(self, command: Command) -> None:
        facts = machine.told(self.facts, command)
        # forward, what cannot be recorded is not done; the way back and what the decision demands can be learned anew
        if command.goal in machine.SOURCE_FORWARD and facts.decision is None:
            await self.record(facts, durable=command.goal is Goal.PREPARED)
        else:
            await self.note(facts)

    async def record(self, facts: SessionFacts, *, durable: bool = False) -> None:
        """Journal the session's facts, then believe them."""
        if durable:  # two fsyncs: off the event loop
            await self.blocking(lambda: self._around.journal.write(self.key, self.spec, facts, durable=True))
            self.facts = facts
        else:
            self._record(facts)

    async def note(self, facts: SessionFacts, *, durable: bool = False) -> None:
        """Journal what an agent that lost it would find out again; if it cannot be, it counts all the same."""
        try:
            await self.record(facts, durable=durable)
        except JournalError as error:
            self.log.error("not recorded", error=error.message)
            self.facts = facts

    def _record(self, facts: SessionFacts) -> None:
        if facts != self.facts:
            self._around.journal.write(self.key, self.spec, facts, durable=False)
        self.facts = facts

    async def blocking(self, call: Callable[[], Any]) -> Any:
        """Run a blocking call in the arcs' threads."""
        return await self._loop.run_in_executor(self._around.arcs, call)

    def turns(self) -> None:
        """A source begins to stop: its pods, or else its devices."""
        self._turned = self._turned or time.perf_counter()

    def turned(self) -> None:
        """A target runs, devices and pods."""
        self._turned = time.perf_counter()

    def timed(self, step: str, began: float) -> None:
        """Note how long a step took, from `began` (time.perf_counter) until now; any thread."""
        ended = time.perf_counter()
        self._timings[step] = int((ended - began) * 1e6)
        self.trail.timed(step, began, ended)

    def set_state(self, name: str, new: DeviceState, called_off: threading.Event | None = None) -> None:
        """Move one device and read its state back; blocking, any thread. Raises DeviceError with arc and errno.

        called_off: once set, the device is not touched any more: others may have looked at it since.
        """
        held = self.device(name)
        with held.lock:
            if called_off is not None and called_off.is_set():
                raise DeviceError(f"device {name} ({held.address}): too late for {new.name}", device=name)
            old = self._states.get(name, DeviceState.ERROR)
            began = time.perf_counter()
            try:
                stream = held.device.set_state(new)
            except OSError as error:
                self._states[name] = found = read_state(held)
                self._around.metrics.arc(held.address, old, new, "error", time.perf_counter() - began)
                self.trail.arc(name, old, new, began, str(error))
                raise DeviceError(
                    f"device {name} ({held.address}): arc {old.name} -> {new.name} failed: {error}; "
                    f"it is now in {found.name}",
                    device=name,
                    arc=f"{old.name} -> {new.name}",
                    errno=error.errno or 0,
                ) from error
            took = time.perf_counter() - began
            self._states[name] = new
        if stream is not None:
            self.side.data_stream(name, stream)
        self.side.moved(name, old, new)
        self._around.metrics.arc(held.address, old, new, "ok", took)
        self.trail.arc(name, old, new, began)

    def hold(self, name: str, held: Held) -> None:
        """This session drives `held` as `name` from now on; reads its state back."""
        self._held[name] = held
        self._states[name] = read_state(held)

    def reset(self, name: str) -> None:
        """VFIO_DEVICE_RESET; blocking. Raises DeviceError."""
        held = self.device(name)
        with held.lock:
            try:
                held.device.reset()
            except OSError as error:
                raise DeviceError(
                    f"device {name} ({held.address}): reset failed: {error}",
                    device=name,
                    arc="reset",
                    errno=error.errno or 0,
                ) from error
            finally:
                self._states[name] = read_state(held)

    def state(self, name: str) -> DeviceState:
        """The device's state as last read back."""
        return self._states.get(name, DeviceState.ERROR)

    def refresh(self) -> None:
        """Read every device's state back; blocking."""
        for name, held in self._held.items():
            with held.lock:  # an arc that outlived its deadline may still be under way
                self._states[name] = read_state(held)

    def all_held(self) -> None:
        """Raise DeviceError unless every device of the session is held: no barrier is passed by none.

        But for those whose state is gone for good: nobody waits for them any more.
        """
        for device in self.spec.devices:
            if device.name not in self.facts.gone:
                self.device(device.name)

    def held_devices(self) -> tuple[SessionDevice, ...]:
        """The devices of the migration that are held here."""
        return tuple(device for device in self.spec.devices if device.name in self._held)

    def device_facts(self) -> tuple[DeviceFacts, ...]:
        """Every held device as it was last read back."""
        return tuple(DeviceFacts(name, self.state(name), held.flags) for name, held in self._held.items())

    def _concerned(self, command: Command) -> tuple[DeviceFacts, ...]:
        """The devices that a command is for: all that are not gone, or those that are to be loaded or sent again."""
        wanted = command.again or [device.name for device in self.spec.devices if device.name not in self.facts.gone]
        return tuple(each for each in self.device_facts() if each.name in wanted)

    def _state_names(self) -> str:
        return ", ".join(f"{name}={state.name}" for name, state in self._states.items())

    @property
    def timings(self) -> tuple[Timing, ...]:
        """How long each step took that was done."""
        return tuple(Timing(step, us) for step, us in list(self._timings.items()))

    def turned_microseconds(self) -> int:
        """How long ago the source began to stop, or the target ran again; 0 if not."""
        return int((time.perf_counter() - self._turned) * 1e6) if self._turned is not None else 0

    def end(self) -> None:
        """Stop threads and forget the journal's record; the devices are what they are."""
        self.side.close()
        self.side.forget()
        self.trail.hand_over()
        self._around.journal.forget(self.key, self.facts.role)
        self.ended = True


def boot_clock() -> float:
    """Seconds since boot, also those in which the machine was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
