"""Everything that a participant can do by itself: commands, arcs, loading and voting, and what it does in silence.

Stands for `Session.set_state`, `SourceStreams`, `TargetSide._validate` and `_vote`, and `latch`. An arc that outlives
its command goes on (`Device.late`) and holds its device, as `Held.lock` does.
"""

from dataclasses import replace
from typing import Any

from pure.model.rules import ALL, CLOSE, DISCARD, TOOK, Change, Effects, Step, Streams, Way, broken, tell
from pure.model.session import Commands, sess_of
from pure.model.state import Asking, Cmd, Content, Device, Job, Part, S, Sess, Stream
from vfio_agent import machine
from vfio_agent.machine import Inquiry
from vfio_api.device import RUNS, IllegalArcError, path
from vfio_api.errors import Reason
from vfio_api.types import Goal, Outcome


def changed(devices: tuple[Device, ...], n: int, device: Device) -> tuple[Device, ...]:
    return (*devices[:n], device, *devices[n + 1 :])


class Agent(Commands):
    """The steps of one participant."""

    # -- arcs

    def move(self, part: Part, streams: Streams, n: int, to: Any) -> list[Way]:
        """A device takes its arcs, or fails to, in each way that it can."""
        device, pair = part.devices[n], self.place.pairs[n]
        if not device.open:
            return [("", self._moved(part, streams, n, device, Reason.DEVICE_LOST))]
        if to in (DISCARD, CLOSE):
            gone = Device(S.RUNNING, device.content if device.content in TOOK else Content.BLANK, False)
            return [("", self._moved(part, streams, n, gone, None, ((to, pair, device),)))]
        try:
            arcs = path(device.state, to, ALL)
        except IllegalArcError:
            return [("", self._moved(part, streams, n, device, Reason.ARC_FAILED))]
        went = device._replace(state=to, late=None)
        effects: Effects = (("arc", pair, self.role, device, arcs),)
        if to is S.RESUMING and device.content is Content.LOADED:
            effects, went = ((DISCARD, pair, device),), went._replace(content=Content.BLANK)
        seen = self._seen_leaving(part, n, device, to)
        found = [("", self._moved(seen, streams, n, went, None, effects))]
        if arcs:
            for state in sorted({device.state, *arcs[-2:-1]}):
                there = device._replace(state=state, late=None)
                way = arcs[: arcs.index(state) + 1] if state in arcs else ()
                passed: Effects = (("arc", pair, self.role, device, way),) if way else ()
                found.append(("stays", self._moved(part, streams, n, there, Reason.ARC_FAILED, passed)))
            fallen = self._moved(part, streams, n, broken(device), Reason.ARC_FAILED, (("fault",),))
            found.append(("error", fallen))
        return found

    def _seen_leaving(self, part: Part, n: int, device: Device, to: Any) -> Part:
        if self.source or part.sess is None or device.state is not S.STOP or to not in RUNS:
            return part
        return part._replace(sess=part.sess._replace(ran=part.sess.ran | 1 << n))

    def _moved(
        self, part: Part, streams: Streams, n: int, device: Device, failed: Reason | None, effects: Effects = ()
    ) -> Change:
        part = part._replace(devices=changed(part.devices, n, device))
        sess = part.sess
        if sess is None or sess.job is None or not sess.job.rounds:
            return part, streams, effects
        (step, moves), *rest = sess.job.rounds
        left = tuple(m for m in moves if m[0] != n)
        job = Job(sess.job.cmd, ((step, left), *rest), sess.job.failed or failed)
        part = part._replace(sess=sess._replace(job=job))
        part, streams, more = self.advance(part, streams)
        return part, streams, (*effects, *more)

    def _late(self, part: Part, streams: Streams, n: int, to: Any) -> list[Way]:
        """An arc of a command that is over: it concerns no command any more."""
        alone = part._replace(sess=None, devices=changed(part.devices, n, part.devices[n]._replace(late=None)))
        found = []
        for fault, (then, flows, effects) in self.move(alone, streams, n, to):
            sess = part.sess
            if not fault and sess is not None and to not in (DISCARD, CLOSE):
                sess = self._seen_leaving(part, n, part.devices[n], to).sess
            found.append((fault, (then._replace(sess=sess), flows, effects)))
        return found

    # -- the vote

    def load(self, part: Part, streams: Streams, n: int) -> list[Way]:
        """All of a device's state has come: RESUMING -> STOP validates it; the last one is the vote."""
        device, pair = part.devices[n], self.place.pairs[n]
        good = device._replace(state=S.STOP, content=Content.LOADED)
        voted, effects = self._vote(part._replace(devices=changed(part.devices, n, good)), n)
        found = [("", (voted, streams, (("arc", pair, self.role, device, (S.STOP,)), *effects)))]
        for kind, state in (("stays", device), ("error", broken(device))):
            there = part._replace(devices=changed(part.devices, n, state))
            sess = sess_of(there)
            # its thread has ended: it is not tried again
            sess = sess._replace(serves=sess.serves & ~(1 << n), failure=sess.failure or Reason.STATE_REFUSED)
            found.append((kind, (tell(there._replace(sess=sess), self.rules), streams, (("fault",),))))
        return found

    def _vote(self, part: Part, n: int) -> tuple[Part, Effects]:
        sess = sess_of(part)
        sess = sess._replace(loaded=sess.loaded | 1 << n)
        effects: Effects = ()
        awaited = self.bits(sess.facts.lost) or self.every
        if awaited & ~sess.loaded == 0 and sess.failure is None:
            if any(d.state is not S.STOP for k, d in enumerate(part.devices) if awaited >> k & 1):
                sess = sess._replace(failure=Reason.STATE_REFUSED)
            elif part.full:
                sess = sess._replace(failure=Reason.JOURNAL_FAILED)
            else:
                sess = self.record(sess, replace(sess.facts, loaded=True, lost=()))._replace(reached=Goal.LOADED)
                effects = (("votes",),)
        return tell(part._replace(sess=sess), self.rules), effects

    # -- what can happen next

    def steps(self, part: Part, streams: Streams, listening: bool) -> list[Step]:
        """Everything that this participant can do by itself, and how its devices can fail at it."""
        found: list[Step] = []

        def add(label: str, change: Change, fault: str = "") -> None:
            found.append(Step(label, *change, fault))

        if part.down:
            cmd = part.down[0]
            add(f"takes {cmd.goal}", self.receive(part._replace(down=part.down[1:]), streams, cmd))
        for number, cmd in enumerate(part.limbo):
            rest = part._replace(limbo=part.limbo[:number] + part.limbo[number + 1 :])
            add(f"takes {cmd.goal}, which comes late", self.receive(rest, streams, cmd))
        for n, device in enumerate(part.devices):
            if device.late is not None:
                for fault, change in self._late(part, streams, n, device.late):
                    add(f"{self.names[n]}: an arc that outlived its command ends", change, fault)
        if part.sess is not None:
            for step in self._works(part, part.sess, streams, listening):
                add(*step)
            for step in (self._sends if self.source else self._loads)(part, part.sess, streams):
                add(*step)
        return found

    def _works(self, part: Part, sess: Sess, streams: Streams, listening: bool) -> list[tuple[str, Change, str]]:
        found: list[tuple[str, Change, str]] = []
        job = sess.job
        if job is None:
            if sess.queue:
                cmd, rest = sess.queue[0], part._replace(sess=sess._replace(queue=sess.queue[1:]))
                found.append((f"turns to {cmd.goal}", self.start(rest, streams, cmd), ""))
        elif job.rounds is None:
            if any(d.late for d in part.devices):
                return found
            if job.failed is not None:
                found.append(("looks what it has lost", (self.fail(part, job.failed), streams, ()), ""))
            elif self.source and (job.cmd.goal is Goal.PRE_COPY or job.cmd.again) and not sess.senders:
                found.append(("connects", self.connect(part, streams, listening), ""))
            else:
                found.append(("reads its devices back", self.before(part, streams), ""))
        elif job.rounds:
            for n, to in job.rounds[0][1]:
                if part.devices[n].late is None:
                    name = to if isinstance(to, str) else to.name
                    for fault, change in self.move(part, streams, n, to):
                        found.append((f"{self.names[n]}: {job.rounds[0][0]} -> {name}", change, fault))
        elif not self.transfers(sess):
            found.append((f"ends {job.cmd.goal}", self.finish(part, streams), ""))
        return found

    def _sends(self, part: Part, sess: Sess, streams: Streams) -> list[tuple[str, Change, str]]:
        found: list[tuple[str, Change, str]] = []
        if sess.senders and not sess.interrupted and self.any_broken(sess, streams):
            waits = self.transfers(sess)
            if waits or sess.failure is None:
                told = part._replace(sess=sess._replace(failure=sess.failure or Reason.STREAM_BROKEN))
                told = self.over(told) if waits else tell(told, self.rules)
                found.append(("sees that a stream broke", (told, streams, ()), ""))
        for n, pair in enumerate(self.place.pairs):
            stopped = part.devices[n].state is S.STOP_COPY and part.devices[n].open
            if sess.final and sess.senders >> n & 1 and streams[pair] is Stream.OPEN and stopped:
                sent = (*streams[:pair], Stream.DONE, *streams[pair + 1 :])
                done = self.transfers(sess) and not self.unfinished(sess, sent)
                change = self.finish(part, sent) if done else (part, sent, ())
                found.append((f"{self.names[n]}: sent to its end", change, ""))
        return found

    def _loads(self, part: Part, sess: Sess, streams: Streams) -> list[tuple[str, Change, str]]:
        found: list[tuple[str, Change, str]] = []
        for n, pair in enumerate(self.place.pairs):
            device, stream = part.devices[n], streams[pair]
            if not sess.serves >> n & 1 or sess.loaded >> n & 1 or device.late is not None:
                continue
            if stream is Stream.DONE and device.state is S.RESUMING and device.open:
                for fault, change in self.load(part, streams, n):
                    found.append((f"{self.names[n]}: load", change, fault))
            if stream is Stream.BROKEN and sess.failure is None and sess.listening:
                failed = part._replace(sess=sess._replace(failure=Reason.STREAM_BROKEN))
                found.append(("sees that a stream broke", (tell(failed, self.rules), streams, ()), ""))
        return found

    # -- silence

    def silence(self, part: Part, streams: Streams) -> Change | None:
        """It has heard nothing for switchoverTimeoutSeconds; None if that is nothing to it."""
        sess = part.sess
        if sess is None or sess.asking is not Asking.NO:
            return None
        asks = machine.inquiry(sess.facts)
        if asks is Inquiry.NONE and machine.alone(sess.facts) in (None, sess.reached):
            return None
        if not self.rules.asks:
            return self._resumes(part, streams) if asks is Inquiry.ABORT else None
        part = part._replace(sess=sess._replace(asking=Asking.ASKS))
        if asks is Inquiry.ABORT and not sess.facts.latched:
            latched = self.note(part, sess_of(part), replace(sess.facts, latched=True))
            latched = latched._replace(failure=latched.failure or Reason.SWITCHOVER_TIMEOUT)
            part = tell(part._replace(sess=latched), self.rules)
            part, streams = self.interrupt(part, streams)
        return part, streams, ()

    def _resumes(self, part: Part, streams: Streams) -> Change | None:
        """The mutant: back to RUNNING because it has waited long enough."""
        sess = sess_of(part)
        if sess.job is not None:
            return None
        facts = sess.facts
        cmd = Cmd(Goal.RUNNING, Outcome.ABORT, facts.epoch, facts.sequence, own=True)
        return self.receive(part, streams, cmd)

    def learn(self, part: Part, decision: Outcome) -> Part | None:
        """`Session.learn`: what was read back; None if a command has the turn."""
        sess = part.sess
        if sess is None or sess.asking is not Asking.ASKS or sess.job is not None or sess.queue:
            return None
        known = sess.facts.decision or decision
        sess = self.note(part, sess, replace(sess.facts, decision=known), durable=True)
        if known is Outcome.COMMIT:
            sess = sess._replace(failure=None)
        return tell(part._replace(sess=sess._replace(asking=Asking.FINISHES, tries=0)), self.rules)

    def alone(self, part: Part, streams: Streams, *, whole: bool) -> Change | None:
        """`Latch._finish`: a side that lies on this node alone needs no leader; None if it does nothing."""
        sess = part.sess
        if sess is None or sess.asking is not Asking.FINISHES or sess.job is not None or sess.queue:
            return None
        goal, facts = machine.alone(sess.facts), sess.facts
        if goal is None or not whole or sess.reached is goal or sess.tries >= self.rules.attempts:
            return part._replace(sess=sess._replace(asking=Asking.NO, tries=0)), streams, ()
        part = part._replace(sess=sess._replace(tries=sess.tries + 1))
        cmd = Cmd(goal, facts.decision, facts.epoch, facts.sequence, own=True)
        return self.receive(part, streams, cmd)
