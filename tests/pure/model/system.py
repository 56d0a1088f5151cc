"""All components together: what can happen in a state, each step with what it breaks.

A component's own steps are worked out once for each of its values (`Table` numbers), so most of a step is putting
numbers together.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from pure.model import faults, invariants
from pure.model.agents import Agent
from pure.model.faults import Budget
from pure.model.invariants import View
from pure.model.leader import Operator, Turn, decide, said
from pure.model.rules import DEFAULT, Change, Rules, Step, tell
from pure.model.state import Asking, Content, Device, Etcd, Lead, Part, S, Seen, Shape, Stream, Table, World
from vfio_agent import machine
from vfio_api.names import AGENT_PREFIX
from vfio_api.types import Outcome, Role


class Next(NamedTuple):
    """A step that can be taken: what it is called, what then is, and what it breaks ("" if nothing)."""

    label: str
    world: World
    broken: str
    fault: str


class System:
    """Everything of one shape, within one budget of faults."""

    def __init__(self, shape: Shape, budget: Budget, rules: Rules = DEFAULT):
        self.shape, self.rules = shape, rules
        self.operator = Operator(shape, rules)
        self.agents = tuple(Agent(place, rules) for place in shape.places)
        self.etcds, self.leads, self.parts, self.streams, self.budgets = (Table() for _ in range(5))
        self._steps: dict[tuple[int, int, int, bool], list[tuple[Step, int, int]]] = {}
        self._turns: dict[tuple[int, int], tuple[Turn, int, int] | None] = {}
        self._views: dict[tuple[int, ...], View] = {}
        self._checks: dict[Any, str] = {}
        self._pushed: dict[tuple[int, Any], int] = {}
        self._breaks: dict[tuple[int, int, int], list[tuple[str, str, int, int]]] = {}
        self._deliveries: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._targets = shape.side(Role.TARGET)
        self.start = self._start(budget)

    def _start(self, budget: Budget) -> World:
        parts = []
        for place in self.shape.places:
            source = place.role is Role.SOURCE
            device = Device(S.RUNNING, Content.LIVE if source else Content.BLANK, source)
            parts.append(self.parts(Part(epoch=1, devices=(device,) * len(place.pairs), link=1)))
        lead = Lead(1, tuple(Seen(linked=True) for _ in parts))
        streams = (Stream.NONE,) * len(self.shape.pairs)
        return World(self.etcds(Etcd()), self.leads(lead), 0, self.streams(streams), self.budgets(budget), tuple(parts))

    # -- what is in it

    def view(self, parts: tuple[int, ...]) -> View:
        found = self._views.get(parts)
        if found is None:
            sides: dict[Role, dict[int, Device]] = {role: {} for role in Role}
            for place, number in zip(self.shape.places, parts, strict=True):
                for pair, device in zip(place.pairs, self.parts.values[number].devices, strict=True):
                    sides[place.role][pair] = device
            ordered = [tuple(sides[role][n] for n in range(len(self.shape.pairs))) for role in Role]
            found = self._views[parts] = View(*ordered)
        return found

    def _check(self, world: World, after: World, effects: tuple[tuple[Any, ...], ...]) -> str:
        key = (world.etcd, after.etcd, world.parts, after.parts, effects)
        found = self._checks.get(key)
        if found is None:
            etcd = self.etcds.values
            found = invariants.check(
                self.view(world.parts), self.view(after.parts), etcd[world.etcd], etcd[after.etcd], effects
            )
            if len(self._checks) > 2_000_000:
                self._checks.clear()
            self._checks[key] = found
        return found

    # -- what can happen

    def steps(self, world: World) -> Iterator[Next]:
        """Every step, faults last."""
        budget: Budget = self.budgets.values[world.budget]
        yield from self._parts(world, budget)
        yield from self._asking(world)
        yield from self._connections(world)
        yield from self._leaders(world)
        if budget.total:
            yield from self._faults(world, budget)

    def _parts(self, world: World, budget: Budget) -> Iterator[Next]:
        listening = self._listening(world)
        for n, part in enumerate(world.parts):
            for step, number, streams in self._own_steps(n, part, world.streams, listening):
                spent = world.budget
                if step.fault:
                    left = budget.without(step.fault)
                    if left is None:
                        continue
                    spent = self.budgets(left)
                parts = (*world.parts[:n], number, *world.parts[n + 1 :])
                after = World(world.etcd, world.lead, world.zombie, streams, spent, parts)
                broken = self._check(world, after, step.effects) if step.effects else ""
                yield Next(
                    f"{self._name(n)} {step.label}{' FAILS: ' + step.fault if step.fault else ''}",
                    after,
                    broken,
                    step.fault,
                )

    def _listening(self, world: World) -> int:
        mask = 0
        for n in self._targets:
            sess = self.parts.values[world.parts[n]].sess
            if sess is not None and sess.listening:
                mask |= sum(1 << pair for pair in self.agents[n].pairs(sess.serves))
        return mask

    def _own_steps(self, n: int, part: int, streams: int, listening: int) -> list[tuple[Step, int, int]]:
        sess = self.parts.values[part].sess
        heard = False
        if sess is not None and sess.job is not None and self.agents[n].source:
            agent, again = self.agents[n], sess.job.cmd.again
            wanted = agent.pairs(agent.bits(again) if again else agent.every)
            heard = all(listening >> pair & 1 for pair in wanted)
        key = (n, part, streams, heard)
        found = self._steps.get(key)
        if found is None:
            steps = self.agents[n].steps(self.parts.values[part], self.streams.values[streams], heard)
            found = self._steps[key] = [(s, self.parts(s.part), self.streams(s.streams)) for s in steps]
        return found

    def _asking(self, world: World) -> Iterator[Next]:
        """Sessions that ask the store by themselves, and finish alone."""
        etcd: Etcd = self.etcds.values[world.etcd]
        for n, number in enumerate(world.parts):
            part: Part = self.parts.values[number]
            if part.sess is None or part.sess.asking is Asking.NO:
                continue
            flows = self.streams.values[world.streams]
            if part.sess.asking is Asking.FINISHES:
                whole = len(self.shape.side(self.shape.places[n].role)) == 1
                change = self.agents[n].alone(part, flows, whole=whole)
                if change is not None:
                    yield self._changed(world, f"{self._name(n)} finishes alone", n, change)
            elif etcd.decision is not None:
                learnt = self.agents[n].learn(part, etcd.decision)
                if learnt is not None:
                    yield self._replaced(world, f"{self._name(n)} reads {etcd.decision}", n, learnt)
            elif machine.inquiry(part.sess.facts) is machine.Inquiry.ABORT and etcd.exists:
                effects: list[tuple[Any, ...]] = []
                asked = decide(etcd, Outcome.ABORT, AGENT_PREFIX + self.shape.places[n].node, effects, self.rules)
                after = world._replace(etcd=self.etcds(asked))
                yield Next(f"{self._name(n)} asks for Abort", after, self._check(world, after, tuple(effects)), "")

    def _changed(self, world: World, label: str, n: int, change: Change, fault: str = "") -> Next:
        part, streams, effects = change
        parts = (*world.parts[:n], self.parts(part), *world.parts[n + 1 :])
        after = world._replace(parts=parts, streams=self.streams(streams))
        return Next(label, after, self._check(world, after, effects) if effects else "", fault)

    def _name(self, n: int) -> str:
        place = self.shape.places[n]
        return f"[{place.role.value.lower()} {place.node}]"

    def _connections(self, world: World) -> Iterator[Next]:
        for which in (world.lead, 0 if self.rules.guarded else world.zombie):
            if not which:
                continue
            lead: Lead = self.leads.values[which]
            current = which == world.lead
            for n, number in enumerate(world.parts):
                part: Part = self.parts.values[number]
                if part.link == lead.epoch:
                    if part.up:
                        yield self._deliver(world, which, n, number)
                elif current:
                    if part.link:
                        yield self._replaced(world, f"{self._name(n)} leaves its old leader", n, faults.cut(part))
                    else:
                        yield self._dial(world, n, part, lead)
                    if lead.seen[n].linked:
                        gone = lead.seen[n]._replace(linked=False)
                        seen = (*lead.seen[:n], gone, *lead.seen[n + 1 :])
                        number = self.leads(lead._replace(seen=seen))
                        yield Next(f"{self._name(n)} is seen to be away", world._replace(lead=number), "", "")

    def _replaced(self, world: World, label: str, n: int, part: Part, fault: str = "", **more: int) -> Next:
        parts = (*world.parts[:n], self.parts(part), *world.parts[n + 1 :])
        return Next(label, world._replace(parts=parts, **more), "", fault)

    def _deliver(self, world: World, which: int, n: int, number: int) -> Next:
        key = (which, n, number)
        found = self._deliveries.get(key)
        if found is None:
            part: Part = self.parts.values[number]
            lead = self.operator.reported(self.leads.values[which], n, part.up[0])
            rest = tell(part._replace(up=part.up[1:]), self.rules, news=False)
            found = self._deliveries[key] = self.leads(lead), self.parts(rest)
        parts = (*world.parts[:n], found[1], *world.parts[n + 1 :])
        after = world._replace(parts=parts, **{"lead" if which == world.lead else "zombie": found[0]})
        return Next(f"{self._name(n)} is heard", after, "", "")

    def _dial(self, world: World, n: int, part: Part, lead: Lead) -> Next:
        heard = self.operator.hello(lead, n, said(part))
        sess = part.sess._replace(refused=None) if part.sess is not None else None
        part = part._replace(link=lead.epoch, epoch=max(part.epoch, lead.epoch), sess=sess)
        if part.last is not None:
            part = part._replace(up=(part.last,), last=None) if sess is None else part
        return self._replaced(world, f"{self._name(n)} dials", n, part, lead=self.leads(heard))

    def _leaders(self, world: World) -> Iterator[Next]:
        etcd: Etcd = self.etcds.values[world.etcd]
        for field in ("lead", "zombie"):
            which = getattr(world, field)
            if not which:
                continue
            lead: Lead = self.leads.values[which]
            name = "leader" if field == "lead" else "deposed leader"
            if field == "zombie" and self.rules.guarded:
                yield from self._under_way(world, which)
                continue
            if not lead.recalled:
                recalled = self.leads(self.operator.recall(lead, etcd))
                yield Next(f"{name} reads what is stored", world._replace(**{field: recalled}), "", "")
                continue
            if lead.cancel != etcd.cancel and not lead.left and not lead.done:
                told = self.leads(lead._replace(cancel=True))
                yield Next(f"{name} sees the cancel", world._replace(**{field: told}), "", "")
            taken = self._turn(which, world.etcd)
            if taken is not None:
                yield self._taken(world, field, name, *taken)
            if field == "lead":
                yield from self._janitor(world, lead, etcd)

    def _under_way(self, world: World, which: int) -> Iterator[Next]:
        """What a deposed leader had written before its lease was over, and what arrives only now."""
        turn = self._turn(which, world.etcd)
        if turn is not None and turn[2] != world.etcd:
            after = world._replace(zombie=0, etcd=turn[2])
            broken = self._check(world, after, turn[0].effects) if turn[0].effects else ""
            yield Next(f"a late write of the deposed leader: {turn[0].step}", after, broken, "")

    def _turn(self, lead: int, etcd: int) -> tuple[Turn, int, int] | None:
        key = (lead, etcd)
        if key not in self._turns:
            turn = self.operator.turn(self.leads.values[lead], self.etcds.values[etcd])
            self._turns[key] = None if turn is None else (turn, self.leads(turn.lead), self.etcds(turn.etcd))
        return self._turns[key]

    def _taken(self, world: World, field: str, name: str, turn: Turn, lead: int, etcd: int) -> Next:
        parts = list(world.parts)
        epoch = turn.lead.epoch
        for n, cmd in turn.sends:
            parts[n] = self._push(parts[n], epoch, cmd)
        after = world._replace(**{field: lead}, etcd=etcd, parts=tuple(parts))
        # that a deposed leader writes no status is what the guard is for: without it only devices are judged
        effects = tuple(e for e in turn.effects if field == "lead" or e[0] != "finishes")
        broken = self._check(world, after, effects) if effects else ""
        return Next(f"{name}: {turn.step}", after, broken, "")

    def _push(self, number: int, epoch: int, cmd: Any) -> int:
        key = (number, cmd)
        found = self._pushed.get(key)
        if found is None:
            part: Part = self.parts.values[number]
            # a connection that the agent has left takes what is said into it
            reached = part._replace(down=(*part.down, cmd)) if part.link == epoch else part
            found = self._pushed[key] = self.parts(reached)
        return found

    def _janitor(self, world: World, lead: Lead, etcd: Etcd) -> Iterator[Next]:
        left = self.operator.undertake(lead, etcd) if self._rests(world) else None
        if left is not None:
            yield self._taken_up(world, left)
        freed = self.operator.free_claims(lead, etcd)
        if freed is not None:
            yield Next("janitor: frees claims", world._replace(etcd=self.etcds(freed)), "", "")

    def _rests(self, world: World) -> bool:
        """Nothing is under way: what could not be ended is tried again after half a minute."""
        for number in world.parts:
            part: Part = self.parts.values[number]
            sess = part.sess
            if part.down or part.up or part.dirty or (sess is not None and (sess.job is not None or sess.queue)):
                return False
        return True

    def _taken_up(self, world: World, left: Lead) -> Next:
        """A task for what is left. Where only one number of a command is left anywhere, it may as well be 0."""
        parts, seen = list(world.parts), list(left.seen)
        for n, number in enumerate(world.parts):
            part: Part = self.parts.values[number]
            sess, known = part.sess, seen[n].report
            if part.limbo or part.link != left.epoch:
                continue
            if sess is not None:
                same = known is not None and (sess.facts.epoch, sess.facts.sequence) == (known.epoch, known.sequence)
                if not same or sess.facts.epoch != left.epoch or sess.disk != sess.facts:
                    continue
                facts = replace(sess.facts, sequence=0)
                sess = sess._replace(facts=facts, disk=facts)
            parts[n] = self.parts(part._replace(sess=sess, ended=min(part.ended, (left.epoch, 0))))
            if known is not None and known.epoch == left.epoch:
                known = known._replace(sequence=0)
            seen[n] = seen[n]._replace(sequence=0, report=known)
        lead = self.leads(left._replace(seen=tuple(seen)))
        return Next("janitor: takes up what is left", world._replace(lead=lead, parts=tuple(parts)), "", "")

    # -- what can break

    def _faults(self, world: World, budget: Budget) -> Iterator[Next]:
        def spent(kind: str) -> int | None:
            left = budget.without(kind)
            return None if left is None else self.budgets(left)

        etcd: Etcd = self.etcds.values[world.etcd]
        for n, number in enumerate(world.parts):
            for kind, label, part, streams in self._broken(n, number, world.streams):
                left = spent(kind)
                if left is not None:
                    parts = (*world.parts[:n], part, *world.parts[n + 1 :])
                    after = World(world.etcd, world.lead, world.zombie, streams, left, parts)
                    yield Next(f"{self._name(n)} {label}", after, "", kind)
        for kind, label, after in self._other_faults(world, etcd):
            left = spent(kind)
            if left is not None:
                yield Next(label, after._replace(budget=left), "", kind)

    def _broken(self, n: int, number: int, streams: int) -> list[tuple[str, str, int, int]]:
        key = (n, number, streams)
        found = self._breaks.get(key)
        if found is None:
            part, flows, agent = self.parts.values[number], self.streams.values[streams], self.agents[n]
            breaks: list[tuple[str, str, Part, Any]] = []
            if part.sess is not None:
                breaks.append(("restart", "is killed and starts again", *faults.restart(agent, part, flows)))
                breaks.append(("both", "is killed with its keeper", *faults.both(agent, part, flows)))
                breaks.append(("reboot", "reboots", *faults.reboot(agent, part, flows)))
                late = faults.deadline(agent, part)
                if late is not None:
                    breaks.append(("deadline", "has no more time for its command", late, flows))
                quiet = agent.silence(part, flows)
                if quiet is not None:
                    breaks.append(("silence", "has heard nothing for too long", *quiet[:2]))
                if not part.full:
                    breaks.append(("disk", "has a full disk", part._replace(full=True), flows))
            if part.link:
                breaks.append(("cut", "loses its connection", faults.cut(part), flows))
            breaks += [(kind, label, then, flows) for kind, label, then in faults.messages(part)]
            found = [(kind, label, self.parts(p), self.streams(s)) for kind, label, p, s in breaks]
            self._breaks[key] = found
        return found

    def _other_faults(self, world: World, etcd: Etcd) -> Iterator[tuple[str, str, World]]:
        flows = self.streams.values[world.streams]
        for pair, stream in enumerate(flows):
            if stream is Stream.OPEN:
                cut = (*flows[:pair], Stream.BROKEN, *flows[pair + 1 :])
                yield "stream", f"the stream of gpu{pair} breaks", world._replace(streams=self.streams(cut))
        if not etcd.cancel and etcd.terminal is None:
            yield "cancel", "the user cancels", world._replace(etcd=self.etcds(etcd._replace(cancel=True)))
        for field in ("lead", "zombie") if not self.rules.guarded else ("lead",):
            which = getattr(world, field)
            if not which:
                continue
            late = self.operator.expire(self.leads.values[which])
            if late is not None:
                yield "expire", f"{field}: the step lasts too long", world._replace(**{field: self.leads(late)})
            taken = self._turn(which, world.etcd)
            if taken is not None and taken[2] != world.etcd and not taken[0].sends:
                yield "doubt", f"{field}: {taken[0].step}, the answer is lost", world._replace(etcd=taken[2])
        lead: Lead = self.leads.values[world.lead]
        after = Lead(lead.epoch + 1, tuple(Seen() for _ in lead.seen))
        yield "elect", "another leader is elected", world._replace(lead=self.leads(after), zombie=world.lead)
