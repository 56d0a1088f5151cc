"""A session taking commands: what `Agent._carry_out`, `Session.apply` and `_pursue` do, and both sides around them.

Every decision is asked of `vfio_agent.machine`, through the module, so that a mutant put there is met here too. The
order is theirs: admit (twice: before and after waiting for the turn) -> journal -> before -> rounds -> after ->
reached -> report. One step here: taking a command up to its first arc (a crash in between leaves what a crash after it
leaves); each arc by itself, in any order within its round, which is waited for to its end before a failure in it ends
the command; and the end of a command where it journals or gives devices up.
"""

from dataclasses import replace
from typing import Any

from pure.model.rules import ALL, CLOSE, DISCARD, Change, Effects, Rules, Streams, command, tell
from pure.model.state import Asking, Cmd, Content, Device, Job, Part, Place, Report, S, Sess, Stream
from vfio_agent import machine
from vfio_agent.machine import DeviceFacts, SessionFacts
from vfio_api.errors import CommandError, Reason
from vfio_api.types import Goal, Outcome, Role

LEAVING = (Goal.RUNNING_P2P, Goal.RUNNING)
PRE_COPIES = (S.PRE_COPY, S.PRE_COPY_P2P)


def sess_of(part: Part) -> Sess:
    assert part.sess is not None
    return part.sess


def job_of(part: Part) -> Job:
    job = sess_of(part).job
    assert job is not None
    return job


class Commands:
    """How the participant at `place` takes commands."""

    def __init__(self, place: Place, rules: Rules):
        self.place, self.rules, self.role = place, rules, place.role
        self.source = place.role is Role.SOURCE
        self.names = tuple(f"gpu{pair}" for pair in place.pairs)
        self.every = (1 << len(place.pairs)) - 1

    def bits(self, names: tuple[str, ...]) -> int:
        return sum(1 << n for n, name in enumerate(self.names) if name in names)

    def pairs(self, bits: int) -> tuple[int, ...]:
        return tuple(pair for n, pair in enumerate(self.place.pairs) if bits >> n & 1)

    # -- into the session

    def receive(self, part: Part, streams: Streams, cmd: Cmd) -> Change:
        """`Agent._carry_out` up to the first arc."""
        if cmd.epoch < part.epoch and self.rules.checks_epoch and not cmd.own:
            return self._refuse(part, cmd, Reason.STALE_EPOCH), streams, ()
        sess = part.sess
        if sess is None:
            if cmd.goal is Goal.RELEASED or self._has_ended(part, cmd):
                last = Report(Goal.RELEASED, False, None, cmd.epoch, cmd.sequence)
                return tell(part._replace(last=last), self.rules), streams, ()
            if cmd.goal is not Goal.PREPARED:
                return self._refuse(part, cmd, Reason.COMMAND_REFUSED), streams, ()
            sess = Sess(SessionFacts(self.role, cmd.epoch))
            part = part._replace(sess=sess)
        if not self.source and self._lost_for_good(part, cmd):
            facts = replace(sess.facts, decision=Outcome.COMMIT, loaded=True)
            part = self._gone(part, sess._replace(facts=facts))
            sess = sess_of(part)
        refused = self._admit(sess, cmd)
        if refused is not None:
            return self._refuse(part, cmd, refused), streams, ()
        if cmd.goal in machine.ROLLBACK or cmd.goal is Goal.RELEASED:
            part, streams = self.interrupt(part, streams)
            sess = sess_of(part)
        if sess.job is not None or sess.queue:
            return part._replace(sess=sess._replace(queue=(*sess.queue, cmd))), streams, ()
        return self.start(part, streams, cmd)

    def _has_ended(self, part: Part, cmd: Cmd) -> bool:
        """`Agent._has_ended`."""
        ended = self.rules.remembers_ends and part.ended > (0, 0)
        return ended and (cmd.goal is not Goal.PREPARED or (cmd.epoch, cmd.sequence) <= part.ended)

    def _lost_for_good(self, part: Part, cmd: Cmd) -> bool:
        """`TargetSide.look_for_lost`: after Commit, devices that went with keeper or node; had they run?"""
        sess = sess_of(part)
        known = sess.facts.loaded or sess.facts.lost or sess.facts.attempt
        asked = cmd.decision is Outcome.COMMIT and cmd.goal in LEAVING
        return bool(asked and not known and sess.known and self._absent(part))

    def _absent(self, part: Part) -> tuple[str, ...]:
        held = sess_of(part).held
        return tuple(name for name, d in zip(self.names, part.devices, strict=True) if not (d.open and held))

    def _gone(self, part: Part, sess: Sess, names: tuple[str, ...] = ()) -> Part:
        facts = replace(sess.facts, gone=(*sess.facts.gone, *(names or self._absent(part))))
        sess = self.note(part, sess, facts)
        return tell(part._replace(sess=sess._replace(failure=Reason.TARGET_LOST_AFTER_COMMIT)), self.rules)

    def _admit(self, sess: Sess, cmd: Cmd) -> Reason | None:
        try:
            machine.admit(sess.facts, command(cmd, self.role))
        except CommandError as error:
            return error.reason
        return None

    def _refuse(self, part: Part, cmd: Cmd, reason: Reason) -> Part:
        if cmd.own:
            return part
        if part.sess is None:
            if reason is Reason.STALE_EPOCH:
                return part
            part = part._replace(last=Report(None, False, reason, cmd.epoch, cmd.sequence))
        else:
            part = part._replace(sess=part.sess._replace(refused=reason))
        return tell(part, self.rules)

    def interrupt(self, part: Part, streams: Streams) -> tuple[Part, Streams]:
        """Whatever waits for a stream is woken, and fails."""
        sess = sess_of(part)
        streams = self.cut_off(streams)
        if not self.source:
            return part._replace(sess=sess._replace(listening=False)), streams
        part = part._replace(sess=sess._replace(interrupted=True))
        if self.transfers(sess) and self.unfinished(sess, streams):
            part = self.fail(part, Reason.STREAM_BROKEN)
        return part, streams

    def cut_off(self, streams: Streams) -> Streams:
        own = self.place.pairs
        return tuple(Stream.BROKEN if s is Stream.OPEN and n in own else s for n, s in enumerate(streams))

    # -- journal

    def record(self, sess: Sess, facts: SessionFacts, *, durable: bool = False) -> Sess:
        """Journal, then believe."""
        if not self.rules.journals_first:
            return sess._replace(facts=facts)
        return sess._replace(facts=facts, disk=facts, durable=facts if durable else sess.durable)

    def note(self, part: Part, sess: Sess, facts: SessionFacts, *, durable: bool = False) -> Sess:
        """Journal if that can be; it counts all the same."""
        return sess._replace(facts=facts) if part.full else self.record(sess, facts, durable=durable)

    # -- the command has its turn

    def start(self, part: Part, streams: Streams, cmd: Cmd) -> Change:
        """`Session._pursue` up to the first arc."""
        sess = sess_of(part)
        if cmd.epoch < part.epoch and self.rules.checks_epoch and not cmd.own:
            return self._refuse(part, cmd, Reason.STALE_EPOCH), streams, ()
        refused = self._admit(sess, cmd)
        if refused is not None:
            return self._refuse(part, cmd, refused), streams, ()
        effects: Effects = () if cmd.own else (("obeys", cmd.epoch, part.epoch, cmd.goal),)
        facts = self._remembered(sess.facts, cmd)
        prepares = cmd.goal is Goal.PREPARED
        if cmd.goal in machine.SOURCE_FORWARD and facts.decision is None:
            if part.full:
                return (
                    self.fail(part._replace(sess=sess._replace(job=Job(cmd, None))), Reason.JOURNAL_FAILED),
                    streams,
                    (),
                )
            sess = self.record(sess, facts, durable=prepares)
        else:
            sess = self.note(part, sess, facts)
        if cmd.goal in machine.ROLLBACK or cmd.again:
            sess = sess._replace(failure=self.reminded(sess.facts, None))
        if sess.failure is not None and cmd.goal in machine.SOURCE_FORWARD:
            return self.over(part._replace(sess=sess)), streams, effects
        if self._keeps(sess, streams, cmd):
            return self.over(part._replace(sess=sess)), streams, effects
        if cmd.again:
            sess = sess._replace(reached=None)
        part = part._replace(sess=sess._replace(job=Job(cmd, None)))
        if self._waits_for_locks(part):
            return part, streams, effects
        part, streams, more = self.before(part, streams)
        return part, streams, (*effects, *more)

    def reminded(self, facts: SessionFacts, failure: Reason | None) -> Reason | None:
        """`TargetSide.remind`."""
        return Reason.TARGET_LOST_AFTER_COMMIT if facts.gone and not self.source else failure

    def _remembered(self, facts: SessionFacts, cmd: Cmd) -> SessionFacts:
        return replace(
            facts,
            epoch=cmd.epoch,
            sequence=cmd.sequence,
            decision=facts.decision or cmd.decision,
            backward=facts.backward or (self.source and cmd.goal in machine.ROLLBACK),
            switchover=facts.switchover or cmd.goal in (Goal.QUIESCED, Goal.STOP_COPY),
            leaving=facts.leaving or cmd.goal in LEAVING,
            attempt=max(facts.attempt, cmd.attempt),
        )

    def _keeps(self, sess: Sess, streams: Streams, cmd: Cmd) -> bool:
        if self.source:
            return bool(cmd.again) and cmd.attempt <= sess.sent_again
        begun = bool(sess.loaded) or any(streams[n] is not Stream.NONE for n in self.pairs(sess.serves))
        return cmd.goal is Goal.PREPARED and begun and not cmd.again

    def _waits_for_locks(self, part: Part) -> bool:
        """It reads devices back, or resets them, and an arc that outlived its command still holds one."""
        cmd = job_of(part).cmd
        reads = (self.source and cmd.goal in machine.ROLLBACK) or bool(cmd.again)
        return reads and any(d.late for d in part.devices)

    def before(self, part: Part, streams: Streams) -> Change:
        """What comes before the rounds, and which rounds there are."""
        sess, cmd, effects = sess_of(part), job_of(part).cmd, ()
        goal = cmd.goal
        if goal is Goal.PREPARED:
            if self.source and not all(d.open for d in part.devices):
                return self.fail(part, Reason.SOURCE_NOT_HELD), streams, ()
            if not self.source and not sess.known and any(d.open for d in part.devices):
                return self.fail(part, Reason.TARGET_HAS_HOLDER), streams, ()  # handed over by an earlier session
            part, streams, effects = self._open(part, streams, cmd)
            sess = sess_of(part)._replace(held=True, known=True)
            opened = tuple((name, "") for name in self.names)
            sess = sess._replace(facts=replace(sess.facts, incarnations=opened))
            part = part._replace(sess=self.note(part, sess, sess.facts, durable=True))
        if self.source and (goal is Goal.PRE_COPY and not sess.senders):
            return part, streams, ()  # connects in a step of its own
        if self.source and cmd.again:
            streams = self.cut_off(streams)
            fresh = sess._replace(senders=0, final=False, interrupted=False)
            return part._replace(sess=fresh), streams, ()  # so does this
        back = goal is Goal.RELEASED and self.source and sess.facts.decision is not Outcome.COMMIT
        if back and any(d.state is not S.RUNNING for d in self.held(part)):
            return self.fail(part, Reason.ARC_FAILED), streams, ()
        if not self.source and goal in LEAVING and set(self._absent(part)) - set(sess.facts.gone):
            return self.fail(part, Reason.DEVICE_LOST), streams, ()
        part, streams, more = self.rounds(part, streams)
        return part, streams, (*effects, *more)

    def _open(self, part: Part, streams: Streams, cmd: Cmd) -> Change:
        """A target's devices are opened; those that lost their state after Commit are blanked."""
        again, sess = self.bits(cmd.again), sess_of(part)
        devices, effects = list(part.devices), []
        for n, device in enumerate(devices):
            if again >> n & 1:
                effects.append(("again", self.place.pairs[n], device))
                devices[n] = Device(S.RUNNING, Content.BLANK, True)
            elif not again and not device.open:
                devices[n] = Device(S.RUNNING, Content.BLANK, True)
        if again:
            streams = self.cut_off(streams)
            fresh = self.pairs(again)
            streams = tuple(Stream.NONE if n in fresh else s for n, s in enumerate(streams))
            sess = sess._replace(loaded=sess.loaded & ~again, serves=sess.serves & ~again, listening=False)
        return part._replace(devices=tuple(devices), sess=sess), streams, tuple(effects)

    def connect(self, part: Part, streams: Streams, listening: bool) -> Change:
        """Every stream is connected, if the targets let them in."""
        again = job_of(part).cmd.again
        bits = self.bits(again) if again else self.every
        part = part._replace(sess=sess_of(part)._replace(senders=bits))
        wanted = self.pairs(bits)
        if not listening or any(streams[n] is not Stream.NONE for n in wanted):
            return self.fail(part, Reason.STREAM_BROKEN), streams, ()
        streams = tuple(Stream.OPEN if n in wanted else s for n, s in enumerate(streams))
        return self.rounds(part, streams)

    def held(self, part: Part) -> list[Device]:
        return [d for d in part.devices if d.open] if sess_of(part).held else []

    def rounds(self, part: Part, streams: Streams) -> Change:
        sess, cmd = sess_of(part), job_of(part).cmd
        concerned = [
            (name, d)
            for name, d in zip(self.names, part.devices, strict=True)
            if d.open and sess.held and (name in cmd.again if cmd.again else name not in sess.facts.gone)
        ]
        facts = tuple(DeviceFacts(name, d.state, ALL) for name, d in concerned)
        try:
            saves = cmd.goal is Goal.RELEASED and not self.source and bool(sess.facts.gone)
            planned = machine.rounds(self.role, Goal.RUNNING if saves else cmd.goal, facts, again=bool(cmd.again))
        except CommandError as error:
            return self.fail(part, error.reason), streams, ()
        rounds: list[tuple[str, tuple[tuple[int, Any], ...]]] = [
            (r.step, tuple((self.names.index(name), state) for name, state in r.moves)) for r in planned
        ]
        if cmd.goal is Goal.RELEASED:
            there = [n for n, d in enumerate(part.devices) if d.open]
            blank = [n for n in there if self.names[n] in sess.facts.gone]
            if saves and blank:  # what is left starts, and then what is gone is blanked and closed
                rounds.append((DISCARD, tuple((n, DISCARD) for n in blank)))
            elif not saves and not self.source and not sess.facts.started and there:
                rounds.insert(0, (DISCARD, tuple((n, DISCARD) for n in there)))
            if self.source and sess.facts.decision is Outcome.COMMIT and there:
                rounds.append((CLOSE, tuple((n, CLOSE) for n in there)))
        part = part._replace(sess=sess._replace(job=Job(cmd, tuple(rounds))))
        return self.advance(part, streams, begins=True)

    # -- on with it

    def advance(self, part: Part, streams: Streams, *, begins: bool = False) -> Change:
        """Past rounds that are done: into the next one, or to the end of the command."""
        sess, job = sess_of(part), job_of(part)
        rounds = job.rounds or ()
        if rounds and not rounds[0][1]:
            if job.failed is not None and not self.rules.passes_on_failure:
                return self.fail(part, job.failed), streams, ()
            rounds, begins = rounds[1:], True
        sess = sess._replace(job=Job(job.cmd, rounds, job.failed))
        part = part._replace(sess=sess)
        goal = job.cmd.goal
        settles = rounds[0][0] == machine.BARRIER_B if rounds else goal is Goal.QUIESCED
        settles = settles and self.source and begins and any(d.state in PRE_COPIES for d in self.held(part))
        if settles and (sess.interrupted or self.any_broken(sess, streams)):
            return self.fail(part, Reason.STREAM_BROKEN), streams, ()
        if rounds or goal is Goal.RELEASED or (goal is Goal.RUNNING and not self.source):
            return part, streams, ()  # the end journals, or gives up devices: a step of its own
        if goal is Goal.STOP_COPY and self.unfinished(sess, streams):
            if sess.interrupted:
                return self.fail(part, Reason.STREAM_BROKEN), streams, ()
            return part._replace(sess=sess._replace(final=True)), streams, ()
        return self.finish(part, streams)

    def any_broken(self, sess: Sess, streams: Streams) -> bool:
        return any(streams[n] is Stream.BROKEN for n in self.pairs(sess.senders))

    def unfinished(self, sess: Sess, streams: Streams) -> bool:
        return any(streams[n] is not Stream.DONE for n in self.pairs(sess.senders))

    def transfers(self, sess: Sess) -> bool:
        return sess.job is not None and sess.job.cmd.goal is Goal.STOP_COPY and sess.job.rounds == ()

    def finish(self, part: Part, streams: Streams) -> Change:
        """All rounds are done: `after`, then the goal is reached."""
        sess, cmd, effects = sess_of(part), job_of(part).cmd, ()
        if cmd.goal is Goal.RELEASED:
            last = Report(Goal.RELEASED, sess.facts.backward, sess.failure, cmd.epoch, cmd.sequence)
            ended = part._replace(sess=None, last=last, ended=(cmd.epoch, cmd.sequence))
            return tell(ended, self.rules), self.cut_off(streams), ()
        if self.source and cmd.goal is Goal.RUNNING:
            part, effects = self._reset_lost(part)
            sess = sess_of(part)
        if self.source and cmd.goal is Goal.STOP_COPY:
            sess = sess._replace(sent_again=max(sess.sent_again, cmd.attempt))
        if not self.source and cmd.goal is Goal.PREPARED:
            serves = sess.serves | (self.bits(cmd.again) if cmd.again else self.every)
            sess = sess._replace(listening=True, serves=serves)
        if not self.source and cmd.goal is Goal.RUNNING:
            sess = self.note(part, sess, replace(sess.facts, started=True))
        return self.over(part._replace(sess=sess._replace(reached=cmd.goal))), streams, effects

    def _reset_lost(self, part: Part) -> tuple[Part, Effects]:
        """`losses.reset_lost` and `say_lost`."""
        sess, effects = sess_of(part), []
        devices = list(part.devices)
        lost = bool(sess.facts.gone) or (sess.known and any(not d.open for d in devices))
        for n, device in enumerate(devices):
            if device.open and sess.held and device.state is S.ERROR:
                lost = True
                effects.append(("reset", self.place.pairs[n], device))
                devices[n] = Device(S.RUNNING, device.content, True)
                if self.rules.journals_losses:
                    sess = self.note(part, sess, replace(sess.facts, gone=(*sess.facts.gone, self.names[n])))
        if lost:
            sess = sess._replace(failure=sess.failure or Reason.SOURCE_STATE_LOST)
        return part._replace(sess=sess, devices=tuple(devices)), tuple(effects)

    # -- out of it

    def fail(self, part: Part, reason: Reason) -> Part:
        """`Session._failed`: a target looks, behind its devices' locks, for what it lost when it was to leave STOP."""
        sess = sess_of(part)
        job = sess.job
        if job is not None and not self.source and job.cmd.goal in LEAVING:
            if any(d.late for d in part.devices):
                return part._replace(sess=sess._replace(job=Job(job.cmd, None, reason)))
            lost = tuple(name for n, name in enumerate(self.names) if self._is_lost(part, n))
            ran = self.every if sess.left or sess.facts.started else sess.ran
            gone = tuple(name for name in lost if self.bits((name,)) & ran)
            if gone:
                return self.over(self._gone(part._replace(sess=sess), sess, gone))
            if lost:
                facts = replace(sess.facts, loaded=False, lost=lost)
                sess = self.note(part, sess._replace(reached=None), facts)
        return self.over(part._replace(sess=sess._replace(failure=sess.failure or reason)))

    def _is_lost(self, part: Part, n: int) -> bool:
        sess, device = sess_of(part), part.devices[n]
        lost = not (device.open and sess.held) or device.state is S.ERROR
        return lost and self.names[n] not in sess.facts.gone

    def over(self, part: Part) -> Part:
        """The command is over; what it changed is reported."""
        sess = sess_of(part)._replace(job=None)
        if not self.rules.journals_first and not part.full:
            sess = sess._replace(disk=sess.facts)
        if sess.asking is Asking.ASKS and machine.inquiry(sess.facts) is machine.Inquiry.NONE:
            sess = sess._replace(asking=Asking.NO)
        return tell(part._replace(sess=sess), self.rules)
