"""One task per active migration: observe -> plan -> persist -> execute, until the plan says Finish."""

import asyncio
import contextlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from kubernetes.aio.client.exceptions import ApiException

from vfio_api.errors import Reason
from vfio_api.models_status import Phase
from vfio_api.spans import Sink
from vfio_api.types import Failure, MigrationKey, Role
from vfio_operator import observe
from vfio_operator.actions import (
    AddFinalizer,
    Authorize,
    Claim,
    CreateSwitchover,
    Decide,
    Finish,
    PersistFailure,
    PersistPairs,
    PersistRehearsal,
    Plan,
    Send,
    Unclaim,
)
from vfio_operator.channel import Agents, AgentStream
from vfio_operator.clockwork import Clockwork
from vfio_operator.execute import Executor, Memory, Sent
from vfio_operator.history import History
from vfio_operator.kube import API_ERRORS, OperatorApi, brief, now
from vfio_operator.leader import Leadership
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.observed import DeviceRecord, Limits, Observed, Pair, Participant, ends_of
from vfio_operator.plan import first_failure, not_converged, plan, rolls_back
from vfio_operator.publish import Publisher
from vfio_operator.trail import Trail

log = structlog.get_logger()
FIRST_BACKOFF, LAST_BACKOFF = 0.1, 5.0
INVENTORY_SECONDS = 2.0
SILENT_SECONDS = 3.0  # an agent that answers no ping for so long is not to be counted on
IDLE_SECONDS = 0.5  # how often a plan is made again when nothing happens: deadlines and retries


@dataclass(frozen=True, slots=True)
class Context:
    """What the tasks of one leader share. settled_at: loop time from when agents have had the time to dial.
    successor_seconds: for how long an agent that has left may be without a successor.

    reserved: migration UID -> the devices (node, address) that it has chosen, until its task ends.
    """

    api: OperatorApi
    agents: Agents
    leadership: Leadership
    metrics: OperatorMetrics
    inventory: Mapping[tuple[str, str], DeviceRecord]
    history: History
    settled_at: float
    limits: Limits
    successor_seconds: float = 0.0
    traces: Sink | None = None
    reserved: dict[str, frozenset[tuple[str, str]]] = field(default_factory=dict)


class MigrationTask:
    """The task of one migration. `notice`, `missed` and `wake` may be called at any time on the event loop.

    left: the pairs of one that is gone or finished and still has sessions: they are ended, and nothing is written.
    """

    def __init__(self, key: MigrationKey, body: Mapping[str, Any], context: Context, *, left: tuple[Pair, ...] = ()):
        self.key, self._left = key, left
        self._context = context
        self._memory = Memory(body)
        self._wake = asyncio.Event()
        # what is left of one that has ended belongs to no trace any more: that one is whole
        self._trail = Trail(None if left else context.traces, key, context.leadership.epoch, body)
        self._executor = Executor(
            context.api,
            context.agents,
            context.leadership,
            context.inventory,
            context.metrics,
            context.history,
            self._memory,
            self._trail,
        )
        self._clockwork = Clockwork(context.metrics, key.uid)
        self._publisher = Publisher(context.api, context.metrics, key, body, self._trail.trace_id)
        self._nodes: frozenset[str] = frozenset()
        self._away_since: float | None = None
        self._all_there_since = 0.0
        self._missed = False
        self._inventory_settled_at = asyncio.get_running_loop().time() + INVENTORY_SECONDS
        self._log = log.bind(migration=str(key), uid=key.uid, epoch=context.leadership.epoch)

    def notice(self, body: Mapping[str, Any]) -> None:
        """The object changed."""
        self._memory.body = body
        self._wake.set()

    def missed(self) -> None:
        """The watch does not show the object any more: it is gone, or somebody has put the label of finished on it."""
        self._missed = True
        self._wake.set()

    def gone(self) -> None:
        """The object exists no more, although our finalizer was on it: it is ended like any deleted one."""
        metadata = {**self._memory.body["metadata"], "deletionTimestamp": now()}
        self._memory.body = {**self._memory.body, "metadata": metadata}
        self._memory.gone = True
        self._publisher.close()
        self._wake.set()

    def wake(self) -> None:
        """Something that concerns this migration changed."""
        self._wake.set()

    async def run(self) -> None:
        """Until the migration is finished."""
        if self._left:
            await self._again(self._recall_what_is_left)
        else:
            await self._again(self._read_again)
            if observe.is_finished(self._memory.body):  # an earlier leader ended between the status and the finalizer
                await self._again(lambda: self._context.api.finished(self.key, switchover=True))
                return
            await self._again(self._recall)
        backoff = FIRST_BACKOFF
        while True:
            self._wake.clear()
            if self._missed:
                await self._look_again()
            observed = self._observe()
            if rolls_back(observed):
                # the first cause stays the cause, whatever the way back adds; what is recorded is what is known now
                self._memory.failure = first_failure(observed)
                observed = replace(observed, failure=self._memory.failure)
            planned = plan(observed)
            self._trail.follow(planned, observed)
            if self._clockwork.track(planned, observed):
                self._publisher.milestone(planned)
                self._log.info("step", step=planned.step, phase=planned.phase.value, message=planned.sentence)
            if planned.step == "AwaitAgents":  # the next agent publishes what it finds once it is there
                self._inventory_settled_at = asyncio.get_running_loop().time() + INVENTORY_SECONDS
            for action in planned.actions:
                if isinstance(action, Finish):
                    await self._again(lambda p=planned, o=observed, a=action: self._finish(o, p, a))
                    return
            try:
                progressed = await self._act(observed, planned)
                backoff = FIRST_BACKOFF
            except API_ERRORS as error:
                self._log.warning("API server refused or is away", step=planned.step, error=brief(error))
                if isinstance(error, ApiException) and error.status in (404, 409) and await self._vanished():
                    self.gone()
                refused = replace(planned, sentence=f"{planned.sentence}; the API server says: {brief(error)}")
                self._publisher.offer(observed, refused, self._clockwork.measured(self._memory))
                self._check_deadline(observed, planned)
                await asyncio.sleep(backoff * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
                backoff = min(2 * backoff, LAST_BACKOFF)
                progressed = True
            if not progressed:
                self._publisher.offer(observed, planned, self._clockwork.measured(self._memory))
                await self._wait(observed, planned)

    def stop(self) -> None:
        """End background writes; the task itself is cancelled by its owner."""
        self._publisher.stop()
        self._clockwork.close()
        self._trail.stop()

    async def _again(self, call: Any) -> None:
        """Call until the API server takes it, with backoff; ends with the task (leadership or process)."""
        backoff = FIRST_BACKOFF
        while True:
            try:
                await call()
            except API_ERRORS as error:
                if isinstance(error, ApiException) and error.status == 404:
                    self._log.warning("the object is gone", error=brief(error))
                    return
                self._log.warning("API server refused or is away", error=brief(error))
                await asyncio.sleep(backoff * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
                backoff = min(2 * backoff, LAST_BACKOFF)
            else:
                return

    async def _read(self) -> Mapping[str, Any] | None:
        """The object now, None if it is gone; another one of its name is not it. Raises API_ERRORS in doubt."""
        try:
            found = await self._context.api.migration(self.key)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found if found["metadata"]["uid"] == self.key.uid else None

    async def _vanished(self) -> bool:
        """Whether the object is certainly not there any more."""
        try:
            return await self._read() is None
        except API_ERRORS:
            return False

    async def _look_again(self) -> None:
        """Once for each time that the watch missed the object; again only if the API server did not tell."""
        try:
            found = await self._read()
        except API_ERRORS as error:
            self._log.warning("cannot tell whether the object is gone", error=brief(error))
            return
        self._missed = False
        if found is None:
            self.gone()

    async def _read_again(self) -> None:
        """The watch may be behind: what an earlier leader wrote last decides how to go on."""
        found = await self._read()
        if found is None:
            self.gone()
        else:
            self._memory.body = found
            self._publisher.written(found)
            self._clockwork.remember(found)

    async def _recall_what_is_left(self) -> None:
        self.gone()
        memory = self._memory
        memory.pairs, memory.inherited = self._left, True
        memory.sequence = self._context.agents.highest_sequence(
            self.key.uid, {node for node, _ in ends_of(memory.pairs)}
        )
        self._executor.read_back(await self._context.api.switchover(self.key))
        memory.claims |= {r.object_name for r in self._context.inventory.values() if r.claim_uid == self.key.uid}

    async def _recall(self) -> None:
        """What an earlier leader has done: finalizer, pairs, claims, the switchover and its decision."""
        memory, api = self._memory, self._context.api
        memory.has_finalizer = observe.has_finalizer(memory.body)
        memory.pairs = observe.persisted_pairs(memory.body)
        memory.inherited = bool(memory.pairs)
        memory.failure = memory.recorded = observe.persisted_failure(memory.body)
        memory.rehearsed = observe.is_rehearsed(memory.body)
        memory.sequence = self._context.agents.highest_sequence(
            self.key.uid, {node for node, _ in ends_of(memory.pairs)}
        )
        if memory.pairs:
            self._executor.read_back(await api.switchover(self.key))
            self._context.reserved[self.key.uid] = ends_of(memory.pairs)
            await self._executor.recall_claims(memory.pairs)
        absent = observe.wish_of(memory.body).nodes - self._context.agents.connected
        known = [node for node in sorted(absent) if await api.node_exists(node)]
        self._nodes = frozenset(known) | self._context.agents.connected

    def _observe(self) -> Observed:
        memory, context = self._memory, self._context
        wish = observe.wish_of(memory.body)
        pairs = memory.pairs
        others = (chosen for uid, chosen in context.reserved.items() if uid != self.key.uid)
        return Observed(
            key=self.key,
            wish=wish,
            nodes=self._nodes,
            connected=context.agents.connected,
            inventory=context.inventory,
            has_finalizer=memory.has_finalizer,
            pairs=pairs,
            claims=frozenset(memory.claims),
            participants=self._participants(pairs),
            switchover=memory.switchover,
            failure=memory.failure,
            recorded=memory.recorded,
            converge_expired=self._clockwork.converge_expired(wish.strategy.convergence_timeout_seconds),
            exhausted=memory.exhausted,
            generation=memory.body["metadata"].get("generation", 1),
            inherited=memory.inherited,
            inventory_settled=asyncio.get_running_loop().time() >= self._inventory_settled_at,
            leaving=context.agents.leaving(context.successor_seconds),
            settled=asyncio.get_running_loop().time() >= context.settled_at,
            lingered=self._clockwork.lingered,
            rehearsed=memory.rehearsed,
            authorized=memory.authorized,
            forbidden=memory.forbidden,
            shows_all=memory.shows_all,
            reserved=frozenset().union(*others) if wish.shorthand is not None and not pairs else frozenset(),
            known=context.history.known,
            limits=context.limits,
        )

    def _participants(self, pairs: tuple[Pair, ...]) -> tuple[Participant, ...]:
        agents, sent = self._context.agents, self._memory.sent
        found = []
        for role, nodes in (
            (Role.SOURCE, {p.source_node for p in pairs}),
            (Role.TARGET, {p.target_node for p in pairs}),
        ):
            for node in sorted(nodes - {""}):  # an end of which nothing is left
                stream = agents.stream(node)
                found.append(
                    Participant(
                        node=node,
                        role=role,
                        connected=stream is not None,
                        commanded=_delivered(sent.get((node, role)), stream),
                        data_address=stream.hello.data_address if stream else "",
                        report=agents.report(node, self.key.uid, role),
                        turned=stream.turned(self.key.uid, role) if stream else None,
                    )
                )
        return tuple(found)

    async def _act(self, observed: Observed, planned: Plan) -> bool:
        """Carry out the actions; True if they changed what is observed, so that a new plan is due at once."""
        progressed = False
        for action in planned.actions:
            match action:
                case Send():
                    self._executor.send(observed, action)
                    continue
                case AddFinalizer():
                    await self._executor.add_finalizer(observed, action)
                case Authorize():
                    await self._executor.authorize(action)
                case PersistPairs():
                    # reserved before the first await, so that no other task chooses the same
                    self._context.reserved[self.key.uid] = ends_of(action.pairs)
                    resolved = replace(observed, pairs=action.pairs)
                    await self._publisher.write(resolved, planned, self._clockwork.measured(self._memory))
                    self._memory.pairs = action.pairs
                case PersistRehearsal():
                    turned = replace(observed, rehearsed=True)
                    await self._publisher.write(turned, planned, self._clockwork.measured(self._memory))
                    self._memory.rehearsed = True
                case PersistFailure():
                    failed = replace(observed, recorded=action.failure)
                    await self._publisher.write(failed, planned, self._clockwork.measured(self._memory))
                    self._memory.recorded = action.failure
                case Claim():
                    await self._executor.claim(observed, action)
                case CreateSwitchover():
                    await self._publisher.quiet()  # a status write under way would slow the decision
                    await self._executor.create_switchover(observed, action)
                case Decide():
                    await self._executor.decide(observed, action)
                case Unclaim():
                    await self._executor.unclaim(observed, action)
                case Finish():
                    raise AssertionError("Finish ends the loop before actions are carried out")
            progressed = True
        return progressed

    async def _wait(self, observed: Observed, planned: Plan) -> None:
        if planned.step == "Converge":
            self._context.agents.ping(p.node for p in observed.participants)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IDLE_SECONDS):
                await self._wake.wait()
        self._check_deadline(observed, planned)

    def _check_deadline(self, observed: Observed, planned: Plan) -> None:
        """A step that lasts too long fails the migration; past the point of return it is given up or waited for."""
        memory = self._memory
        if planned.step == "Converge":
            if memory.failure is None:
                memory.failure = self._not_converged(observed)
            return
        away = [p.node for p in observed.participants if not p.connected and (p.touched or memory.inherited)]
        moment = asyncio.get_running_loop().time()
        self._all_there_since = moment if away else self._all_there_since
        if not planned.timeout_seconds or self._clockwork.step_seconds() < planned.timeout_seconds:
            return
        if not rolls_back(observed) and observed.switchover.decision is None and memory.failure is None:
            reason = Reason.AGENT_LOST if away else Reason.STEP_TIMEOUT
            who = f"; no connection to the agents of {', '.join(away)}" if away else ""
            memory.failure = Failure(
                reason, f"step {planned.step} was not done within {planned.timeout_seconds:g} s{who}"
            )
        elif moment - self._all_there_since >= planned.timeout_seconds:  # an agent that was away has its time, too
            memory.exhausted = True

    def _not_converged(self, observed: Observed) -> Failure | None:
        """Pre-copy ends when its time is over, and earlier if an agent stays away."""
        silent = self._context.agents.silent_for(SILENT_SECONDS)
        away = [p.node for p in observed.participants if not p.connected or p.node in silent]
        moment = asyncio.get_running_loop().time()
        self._away_since = (self._away_since or moment) if away else None
        if self._away_since is not None:
            seconds = moment - self._away_since
            if seconds > observed.limits.prepare_seconds or observed.converge_expired:
                return Failure(
                    Reason.AGENT_LOST,
                    f"the agents of {', '.join(away)} have not answered for {seconds:.0f} s during pre-copy; look at "
                    "their pods and logs",
                )
        return not_converged(observed) if observed.converge_expired else None

    async def _finish(self, observed: Observed, planned: Plan, finish: Finish) -> None:
        measured = self._clockwork.measured(self._memory, observed)
        try:
            if not self._memory.gone:
                await self._publisher.write_last(observed, planned, measured)
                await self._context.api.finished(self.key, switchover=observed.switchover.exists)
        except ApiException as error:
            if error.status not in (404, 409) or not await self._vanished():
                raise
            self._memory.gone = True
        if self._memory.gone and observed.switchover.exists:
            await self._context.api.release_switchover(self.key)
        if self._left:
            self._log.info("what was left is ended", message=planned.sentence)
            self._context.agents.forget(self.key.uid)
            return
        await self._publisher.finished(observed, planned, finish, measured)
        self._clockwork.finished(observed, finish)
        down = measured.downtime_microseconds, self._clockwork.down_began
        self._trail.finished(observed, finish, *down, inherited=self._memory.inherited)
        if finish.phase is Phase.SUCCEEDED:
            self._context.history.succeeded(observed)
        self._context.agents.forget(self.key.uid)
        self._log.info("finished", phase=finish.phase.value, message=planned.sentence)


def _delivered(sent: Sent | None, stream: AgentStream | None) -> bool:
    """Whether a command may have arrived: it was said, and not on a stream that has since been replaced."""
    return sent is not None and (stream is None or sent.stream == stream.number)
