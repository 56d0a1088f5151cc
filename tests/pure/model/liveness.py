"""I4: from any state, once nothing breaks any more, it comes to a good end: one fair schedule, remembered by state.

From then on no fault happens, a deposed leader is dead, a connection that has lost a message is found dead (pings), and
everything is reachable. Whoever can do something does it, in a fixed order; a limit of time passes only when nothing
else can happen. A schedule that comes back to where it was goes on for ever: that is a breach too.
"""

from pure.model import faults, invariants
from pure.model.faults import NO_FAULTS
from pure.model.state import Lead, Part, World
from pure.model.system import Next, System


class Liveness:
    """Where states of `system` lead. `checked` counts the states that were followed."""

    def __init__(self, system: System):
        self._system = system
        self._ends: dict[World, str] = {}
        self._quiet = system.budgets(NO_FAULTS)

    @property
    def checked(self) -> int:
        return len(self._ends)

    def end(self, world: World) -> str:
        """What is wrong with the end that `world` comes to, "" if nothing."""
        world = self._calm(world)
        way: list[World] = []
        on_way: set[World] = set()
        while world not in self._ends:
            if world in on_way:
                wrong = self._judge(world)
                self._ends[world] = f"{wrong}, and it goes round for ever" if wrong else ""
                break
            way.append(world)
            on_way.add(world)
            step = self.next(world)
            if step is None:
                self._ends[world] = self._judge(world)
                break
            if step.broken:
                self._ends[world] = step.broken
                break
            world = step.world
        found = self._ends[world]
        for passed in way:
            self._ends[passed] = found
        return found

    def _calm(self, world: World) -> World:
        return world._replace(zombie=0, budget=self._quiet)

    def _judge(self, world: World) -> str:
        system = self._system
        sessions = sum(system.parts.values[n].sess is not None for n in world.parts)
        return invariants.end(system.view(world.parts), system.etcds.values[world.etcd], sessions)

    def next(self, world: World) -> Next | None:
        """The step that is taken, None at the end."""
        system = self._system
        lead: Lead = system.leads.values[world.lead]
        if not lead.recalled:
            return next(system._leaders(world))
        for n, number in enumerate(world.parts):
            part: Part = system.parts.values[number]
            if part.full:
                return system._replaced(
                    world, f"{system._name(n)} has room on its disk again", n, part._replace(full=False)
                )
            if part.lossy:
                return system._replaced(world, f"{system._name(n)} is found dead", n, faults.cut(part))
        step = next(system.steps(world), None)
        if step is not None:
            return step
        return self._time_passes(world, lead)

    def _time_passes(self, world: World, lead: Lead) -> Next | None:
        """Commands first; then who does not know the decision asks; then the step; then who knows it finishes alone."""
        system = self._system
        parts = [system.parts.values[number] for number in world.parts]
        for n, part in enumerate(parts):
            late = faults.deadline(system.agents[n], part)
            if late is not None:
                return system._replaced(world, f"{system._name(n)} has no more time for its command", n, late)
        asking = self._silence(world, parts, knows=False)
        if asking is not None:
            return asking
        expired = system.operator.expire(lead)
        if expired is not None:
            return Next("the step lasts too long", world._replace(lead=system.leads(expired)), "", "")
        return self._silence(world, parts, knows=True)

    def _silence(self, world: World, parts: list[Part], *, knows: bool) -> Next | None:
        system = self._system
        for n, part in enumerate(parts):
            if part.sess is None or (part.sess.facts.decision is not None) is not knows:
                continue
            if knows and len(system.shape.side(system.shape.places[n].role)) > 1:
                continue  # it asks and asks, and can do nothing without a leader
            quiet = system.agents[n].silence(part, system.streams.values[world.streams])
            if quiet is not None:
                return system._changed(world, f"{system._name(n)} has heard nothing for too long", n, quiet)
        return None

    def trace(self, world: World) -> list[tuple[str, World]]:
        """The labels and states from `world` on, to the end or round once."""
        world = self._calm(world)
        found: list[tuple[str, World]] = []
        seen: set[World] = set()
        while world not in seen:
            seen.add(world)
            step = self.next(world)
            if step is None:
                break
            found.append((step.label, step.world))
            if step.broken:
                break
            world = step.world
        return found
