"""The agent's sessions: which there are, who gets which command, and what is still to be reported."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import structlog

from vfio_agent.holdings import read_state
from vfio_agent.incoming import Incoming
from vfio_agent.journal import Unreadable
from vfio_agent.machine import SessionFacts
from vfio_agent.metrics import Recovery
from vfio_agent.reporting import report_of
from vfio_agent.session import Session
from vfio_agent.surroundings import Surroundings
from vfio_api import wire
from vfio_api.device import DeviceState
from vfio_api.errors import CommandError, Reason, VFIOMigrationError
from vfio_api.types import Command, Failure, Goal, Role, SessionReport
from vfio_api.v1 import agent_pb2 as pb
from vfio_api.wire import MAX_NODE_DEVICES, MAX_SESSIONS

log = structlog.get_logger()
PROGRESS_SECONDS = 0.1
STOPPED_SECONDS = 0.1
MAX_COMMANDS = 1024  # under way at once


class Agent:
    """Every session of this node. Lives on the event loop."""

    def __init__(
        self,
        around: Surroundings,
        highest_epoch: int,
        on_reached: Callable[[Session], None] = lambda _session: None,
    ):
        self._on_reached = on_reached
        self._around = replace(around, notify=self._changed, epoch=lambda: self.highest_epoch)
        self.highest_epoch = highest_epoch
        around.metrics.epoch.set(highest_epoch)
        self._sessions: dict[tuple[str, Role], Session] = {}
        self._dirty: set[tuple[str, Role]] = set()  # sessions with something new to say
        self._last: dict[tuple[str, Role], SessionReport] = {}  # of sessions that ended, or never began
        self._ended: dict[tuple[str, Role], tuple[int, int]] = {}  # epoch and sequence of the command that ended it
        self._refused: dict[tuple[str, Role], Failure] = {}  # commands that a session did not take
        self._sent: dict[tuple[str, Role], dict[str, int]] = {}
        self._wake = asyncio.Event()
        self._press = asyncio.Event()  # what is new is not only progress
        self._told: dict[tuple[str, Role], tuple[object, ...]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unreadable: dict[tuple[str, Role], Failure] = {}  # sessions of which nothing is known but that they are

    def restore(self) -> None:
        """Take up the sessions that an earlier agent process left; data streams did not survive it."""
        readable, unreadable = self._around.journal.recall()
        self._unreadable = {(each.migration_uid, each.role): _unreadable(each) for each in unreadable}
        self._around.metrics.unreadable.set(len(unreadable))
        for _ in unreadable:
            self._around.metrics.recovered(Recovery.UNREADABLE)
        for key, spec, facts in readable:
            session = Session(self._around, key, spec, facts)
            self._sessions[key.uid, facts.role] = session
            known = dict(facts.incarnations)
            for device in spec.devices:
                held = self._around.holdings.get(device.address)
                if held is not None and held.incarnation == known.get(device.name):
                    session.hold(device.name, held)
            lost = [device.name for device in spec.devices if device not in session.held_devices()]
            if lost and known:
                session.failure = Failure(
                    Reason.DEVICE_LOST,
                    f"the open devices {', '.join(lost)} of migration {key} did not outlive the agent: the "
                    "keeper ended or the node restarted",
                    lost[0],
                )
            elif facts.role is Role.TARGET and facts.loaded:
                # a pod that has not said that it runs is to be told again, which moves no device
                runs = session.workloads.hooked is None or facts.resumed
                ran = Goal.RUNNING if runs else Goal.RUNNING_P2P
                session.reached = ran if facts.started else Goal.LOADED
            else:
                session.failure = Failure(
                    Reason.AGENT_RESTARTED,
                    f"the agent restarted during migration {key}; its data streams are gone",
                )
            session.side.remind()
            self._around.metrics.recovered(Recovery.FAILED if session.failure else Recovery.RESUMED)
            self._gauge(facts.role)
            log.info("session taken up", migration=str(key), role=facts.role.value, facts=str(facts))
        self._free_orphans()

    def _free_orphans(self) -> None:
        """Give up devices that were to be loaded for a session that is not there any more, and what was borrowed.

        In RESUMING nothing counts on them. In any other state they may be all that there is of a workload: they stay.
        """
        for held in self._around.holdings.all().values():
            if held.borrowed and not self.busy(held.address):
                self._around.holdings.release(held.address)
                continue
            if not held.holder.startswith("migration ") or self.busy(held.address):
                continue
            state = read_state(held)
            if state is DeviceState.RESUMING:
                self._around.holdings.release(held.address)
                log.warning("orphaned device given up", device=held.address, holder=held.holder)
            else:
                log.error(
                    "device is held for a migration that this agent knows nothing of; look at the journal's folder",
                    device=held.address,
                    holder=held.holder,
                    state=state.name,
                )

    async def raise_epoch(self, epoch: int) -> None:
        """A leader shows its epoch. Raises CommandError if a newer one was seen."""
        if epoch < self.highest_epoch:
            raise CommandError(
                f"leader has epoch {epoch}, this node has seen {self.highest_epoch}: it was deposed",
                reason=Reason.STALE_EPOCH,
            )
        if epoch > self.highest_epoch:
            await asyncio.to_thread(self._around.journal.raise_epoch, epoch)
            self.highest_epoch = epoch
            self._around.metrics.epoch.set(epoch)

    def take(self, command: Command) -> None:
        """Start carrying out a command; its outcome is a report. Raises CommandError if too many are under way."""
        if len(self._tasks) >= MAX_COMMANDS:
            raise CommandError(f"{len(self._tasks)} commands are under way: the operator sends them without an end")
        task = asyncio.create_task(self._carry_out(command))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def call_off(self) -> None:
        """Carry out no command any more: the process ends. Arcs that are under way go on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry_out(self, command: Command) -> None:
        identity = (command.migration.uid, command.role)
        session = self._sessions.get(identity)
        try:
            self._insist(command)
            if identity in self._unreadable:
                failure = self._unreadable[identity]
                raise CommandError(failure.message, reason=failure.reason)
            if session is None:
                if command.goal is Goal.RELEASED or self._has_ended(identity, command):
                    self._say_last(identity, _released(command))
                    return
                session = self._create(command)
            await self.carry_out(session, command, partial(self._insist, command))
        except VFIOMigrationError as error:
            log.error("command refused", migration=str(command.migration), error=error.message)
            self._refuse(identity, command, Failure(error.reason, error.message, error.device))
        except Exception as error:  # a bug must not leave the operator waiting for a deadline
            log.exception("command failed", migration=str(command.migration))
            failure = Failure(Reason.INTERNAL_ERROR, f"agent failed at {command.goal}: {error!r}; see its log")
            self._refuse(identity, command, failure)

    def _has_ended(self, identity: tuple[str, Role], command: Command) -> bool:
        """Whether the command is for a session that has ended: only a later Prepared begins another one."""
        ended = self._ended.get(identity)
        late = ended is not None and (command.epoch, command.sequence) <= ended
        return late or (ended is not None and command.goal is not Goal.PREPARED)

    def _insist(self, command: Command) -> None:
        """Raise CommandError if the command is of a leader that was deposed, also since it came."""
        if command.epoch < self.highest_epoch:
            raise CommandError(
                f"migration {command.migration}: command of epoch {command.epoch}, this node has seen "
                f"{self.highest_epoch}",
                reason=Reason.STALE_EPOCH,
            )

    async def carry_out(self, session: Session, command: Command, still: Callable[[], None] = lambda: None) -> None:
        """Have a session be where a command wants it. Raises CommandError if it must not, or if `still` does."""
        await session.apply(command, still)
        if session.reached is Goal.RELEASED and not session.ended:
            self._end((session.key.uid, session.facts.role), session)

    def sessions(self) -> tuple[Session, ...]:
        """Every session of this node."""
        return tuple(self._sessions.values())

    @property
    def work_left(self) -> int:
        """How many sessions have not ended, and commands are under way. Of unreadable sessions nothing can be done."""
        return len(self._sessions) + len(self._tasks)

    @property
    def unsaid(self) -> bool:
        """Whether something is still to be reported."""
        return bool(self._dirty)

    def nudge(self) -> None:
        """Have `next_reports` return, be it with none."""
        self._wake.set()
        self._press.set()

    def _end(self, identity: tuple[str, Role], session: Session) -> None:
        last = report_of(session)
        self._on_reached(session)
        session.end()
        del self._sessions[identity]
        while len(self._ended) >= MAX_SESSIONS:
            del self._ended[next(iter(self._ended))]
        self._ended[identity] = session.facts.epoch, session.facts.sequence
        self._gauge(session.facts.role)
        self._say_last(identity, last)

    def _refuse(self, identity: tuple[str, Role], command: Command, failure: Failure) -> None:
        """The session, if there is one, is unharmed; only the next report tells of it."""
        if identity in self._sessions:
            self._refused[identity] = failure
        elif failure.reason is Reason.STALE_EPOCH:
            return  # who leads now has not asked: to it, how the session ended is the last word
        else:
            self._last[identity] = replace(_released(command), reached=None, failure=failure)
        self._dirty.add(identity)
        self.nudge()

    def refuse(self, said: pb.Command, why: str) -> None:
        """A command that cannot be read: it is reported, if it can be told whose it is.

        Raises CommandError if too many are to be reported.
        """
        log.error("command refused", migration=said.migration.uid[:80], error=why)
        try:
            uid, role = wire.uid(said.migration.uid), Role(said.role)
        except ValueError:
            return
        if len(self._dirty) >= MAX_COMMANDS:
            raise CommandError(f"{len(self._dirty)} reports wait to be sent: the operator says nonsense without an end")
        failure = Failure(Reason.COMMAND_REFUSED, f"{why}; compare the versions of operator and agent")
        if (uid, role) not in self._sessions:
            self._last[uid, role] = SessionReport(uid, role, 0, 0, failure=failure)
        else:
            self._refused[uid, role] = failure
        self._dirty.add((uid, role))
        self.nudge()

    def _say_last(self, identity: tuple[str, Role], report: SessionReport) -> None:
        self._last[identity] = report
        self._dirty.add(identity)
        self.nudge()

    def _create(self, command: Command) -> Session:
        if command.spec is None or command.goal is not Goal.PREPARED:
            raise CommandError(
                f"migration {command.migration}: no {command.role} session here for goal {command.goal}; "
                "Prepared comes first"
            )
        if len(self._sessions) + len(self._unreadable) >= MAX_SESSIONS:
            raise CommandError(
                f"migration {command.migration}: this node has {MAX_SESSIONS} sessions already, and takes no more; end "
                "some first"
            )
        devices = len(command.spec.devices) + sum(len(session.spec.devices) for session in self._sessions.values())
        if devices > MAX_NODE_DEVICES:
            raise CommandError(
                f"migration {command.migration}: with it, sessions of this node would have {devices} devices, at most "
                f"{MAX_NODE_DEVICES} are allowed; end some first"
            )
        session = Session(
            self._around,
            command.migration,
            command.spec,
            SessionFacts(role=command.role, epoch=command.epoch),
        )
        self._sessions[command.migration.uid, command.role] = session
        self._gauge(command.role)
        return session

    def _gauge(self, role: Role) -> None:
        count = sum(1 for _, session_role in self._sessions if session_role is role)
        self._around.metrics.sessions.labels(role.value).set(count)

    def _changed(self, session: Session) -> None:
        if session.reached is not session.announced:
            session.announced = session.reached
            self._on_reached(session)
        if not session.ended:
            identity = (session.key.uid, session.facts.role)
            self._dirty.add(identity)
            self._wake.set()
            if self._told.get(identity) == _pressing(session):
                return
            if session.reached is Goal.STOP_COPY and session.failure is None:
                # nothing waits for it but the vote, by which it is known as well: the vote is not to wait for it
                asyncio.get_running_loop().call_later(STOPPED_SECONDS, self._press.set)
            else:
                self._press.set()

    def busy(self, address: str) -> str:
        """The migration whose session here uses the device; "" if none does. Any thread."""
        for session in list(self._sessions.values()):
            if any(device.address == address for device in session.spec.devices):
                return str(session.key)
        # whether it is one of theirs nobody knows
        return next((f"{uid} (its record in the journal cannot be read)" for uid, _ in self._unreadable), "")

    def incoming(self, pod: str) -> Incoming | None:
        """What a pod of this node, by its UID, is to take over of a session that has not ended; None if nothing. Any
        thread.
        """
        for session in list(self._sessions.values()):
            if session.facts.role is Role.TARGET and any(w.pod_uid == pod for w in session.spec.workloads):
                devices = tuple((device.name, device.address) for device in session.spec.devices)
                held = {device.name for device in session.held_devices()}
                ready = session.reached is not None and held >= {name for name, _ in devices}
                return Incoming(devices, ready, session.facts.started)
        return None

    def reports(self) -> tuple[SessionReport, ...]:
        """Every session as it is now, for Hello."""
        self._dirty -= self._sessions.keys()  # what was to be said of them is said now
        self._refused.clear()
        held = tuple(
            SessionReport(uid, role, 0, 0, failure=failure) for (uid, role), failure in self._unreadable.items()
        )
        return held + tuple(
            replace(report_of(session), turned_microseconds=session.turned_microseconds())
            for session in self._sessions.values()
        )

    async def next_reports(self) -> list[SessionReport]:
        """Wait until something changed; the newest report of each session that did.

        Where every goal and failure is told at once, mere progress is told every PROGRESS_SECONDS: with many devices
        the reports would else be what keeps both sides busy.
        """
        await self._wake.wait()
        if not self._press.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROGRESS_SECONDS):
                    await self._press.wait()
        self._wake.clear()
        self._press.clear()
        dirty, self._dirty = self._dirty, set()
        reports = []
        for identity in dirty:
            session = self._sessions.get(identity)
            if session is not None:
                self._told[identity] = _pressing(session)
            else:
                self._told.pop(identity, None)
            report = report_of(session) if session is not None else self._last.pop(identity, None)
            refused = self._refused.pop(identity, None)
            if report is not None:
                report = replace(report, failure=refused) if refused is not None else report
                # once it is on its way: devices may be down until the operator has it
                asyncio.get_running_loop().call_later(0, self._count, identity, report)
                reports.append(report)
        return reports

    def _count(self, identity: tuple[str, Role], report: SessionReport) -> None:
        """Metrics of what is new since the last report of the session."""
        seen = self._sent.setdefault(identity, {})
        metrics, role = self._around.metrics, report.role
        direction = "sent" if role is Role.SOURCE else "loaded"
        for device in report.devices:
            metrics.state_bytes(direction, max(0, device.transferred_bytes - seen.get(device.name, 0)))
            seen[device.name] = device.transferred_bytes
        for timing in report.timings:
            if f"step {timing.step}" not in seen:
                metrics.step(timing.step, role.value, timing.microseconds / 1e6)
                seen[f"step {timing.step}"] = 1
        if report.failure is not None and "failure" not in seen:
            metrics.failed(report.failure.reason.value)
            seen["failure"] = 1
        if report.reached is Goal.RELEASED or identity not in self._sessions:
            self._sent.pop(identity, None)


def _unreadable(found: Unreadable) -> Failure:
    return Failure(
        Reason.JOURNAL_FAILED,
        f"migration {found.migration_uid}: the record of its {found.role} session cannot be read: {found.why}; how far "
        "it was is not known here, so its devices stay as they are: wait until it is Finished, put the record aside "
        "and restart the agent, then act on the devices as the decision of its VFIOSwitchover says (runbook "
        "VFIOUnreadableRecords)",
    )


def _pressing(session: Session) -> tuple[object, ...]:
    """What of a session the operator must hear at once when it changes."""
    return session.reached, session.failure, session.facts.backward, session.side.acknowledgements()


def _released(command: Command) -> SessionReport:
    return SessionReport(
        migration_uid=command.migration.uid,
        role=command.role,
        epoch=command.epoch,
        sequence=command.sequence,
        reached=Goal.RELEASED,
    )
