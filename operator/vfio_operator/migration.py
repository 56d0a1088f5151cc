"""One task per active migration: observe -> plan -> persist -> execute, until the plan says Finish."""

import asyncio
import contextlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog
from kubernetes.aio.client.exceptions import ApiException

from vfio_api.errors import Reason
from vfio_api.models import device_object_name
from vfio_api.types import Failure, MigrationKey, Role
from vfio_operator import observe
from vfio_operator.actions import (
    AddFinalizer,
    Claim,
    CreateSwitchover,
    Decide,
    Finish,
    PersistPairs,
    Plan,
    Send,
    Unclaim,
)
from vfio_operator.channel import Agents, AgentStream
from vfio_operator.clockwork import Clockwork
from vfio_operator.execute import Executor, Memory, Sent
from vfio_operator.kube import API_ERRORS, OperatorApi, brief
from vfio_operator.leader import Leadership
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.observed import DeviceRecord, Observed, Pair, Participant
from vfio_operator.plan import first_failure, plan, rolls_back
from vfio_operator.publish import Publisher

log = structlog.get_logger()
FIRST_BACKOFF, LAST_BACKOFF = 0.1, 5.0
INVENTORY_SECONDS = 2.0
IDLE_SECONDS = 0.5  # how often a plan is made again when nothing happens: deadlines and retries


@dataclass(frozen=True, slots=True)
class Context:
    """What the tasks of one leader share. settled_at: loop time from when agents have had the time to dial."""

    api: OperatorApi
    agents: Agents
    leadership: Leadership
    metrics: OperatorMetrics
    inventory: Mapping[tuple[str, str], DeviceRecord]
    settled_at: float


class MigrationTask:
    """The task of one migration. `notice` and `wake` may be called at any time on the event loop."""

    def __init__(self, key: MigrationKey, body: Mapping[str, Any], context: Context):
        self.key = key
        self._context = context
        self._memory = Memory(body)
        self._wake = asyncio.Event()
        self._executor = Executor(
            context.api, context.agents, context.leadership, context.inventory, context.metrics, self._memory
        )
        self._clockwork = Clockwork(context.metrics, key.uid)
        self._publisher = Publisher(context.api, context.metrics, key, body)
        self._nodes: frozenset[str] = frozenset()
        self._inventory_settled_at = asyncio.get_running_loop().time() + INVENTORY_SECONDS
        self._log = log.bind(migration=str(key), uid=key.uid, epoch=context.leadership.epoch)

    def notice(self, body: Mapping[str, Any]) -> None:
        """The object changed."""
        self._memory.body = body
        self._wake.set()

    def wake(self) -> None:
        """Something that concerns this migration changed."""
        self._wake.set()

    async def run(self) -> None:
        """Until the migration is finished."""
        if observe.is_finished(self._memory.body):  # an earlier leader ended between the status and the finalizer
            await self._again(lambda: self._context.api.finished(self.key, switchover=True))
            return
        backoff = FIRST_BACKOFF
        await self._again(self._recall)
        while True:
            self._wake.clear()
            observed = self._observe()
            planned = plan(observed)
            if rolls_back(observed):
                # the first cause stays the cause, whatever the way back adds
                self._memory.failure = first_failure(observed)
            if self._clockwork.track(planned, observed):
                self._publisher.milestone(planned)
                self._log.info("step", step=planned.step, phase=planned.phase.value, message=planned.sentence)
            for action in planned.actions:
                if isinstance(action, Finish):
                    await self._again(lambda p=planned, o=observed, a=action: self._finish(o, p, a))
                    return
            try:
                progressed = await self._act(observed, planned)
                backoff = FIRST_BACKOFF
            except API_ERRORS as error:
                self._log.warning("API server refused or is away", step=planned.step, error=brief(error))
                if isinstance(error, ApiException) and error.status == 404 and not self._memory.claims:
                    return  # deleted before anything was touched
                await asyncio.sleep(backoff * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
                backoff = min(2 * backoff, LAST_BACKOFF)
                progressed = True
            if not progressed:
                self._publisher.offer(observed, planned, self._clockwork.measured(self._memory))
                await self._wait(observed, planned)

    def stop(self) -> None:
        """End background writes; the task itself is cancelled by its owner."""
        self._publisher.stop()

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

    async def _recall(self) -> None:
        """What an earlier leader has done: finalizer, pairs, claims, the switchover and its decision."""
        memory, api = self._memory, self._context.api
        memory.has_finalizer = observe.has_finalizer(memory.body)
        memory.pairs_persisted = memory.inherited = bool(observe.persisted_pairs(memory.body))
        memory.sequence = self._context.agents.highest_sequence(self.key.uid)
        if memory.pairs_persisted:
            self._executor.read_back(await api.switchover(self.key))
        for pair in observe.persisted_pairs(memory.body):
            for node, address in ((pair.source_node, pair.source_device), (pair.target_node, pair.target_device)):
                # not from the watch: it may not have listed the devices yet
                record = observe.device_of(await api.device(device_object_name(node, address)))
                if record.claim_uid == self.key.uid:
                    memory.claims.add(record.object_name)
        wish = observe.wish_of(memory.body)
        named = {node for p in wish.pairs for node in (p.source_node, p.target_node)}
        absent = named - self._context.agents.connected
        known = [node for node in sorted(absent) if await api.node_exists(node)]
        self._nodes = frozenset(known) | self._context.agents.connected

    def _observe(self) -> Observed:
        memory, context = self._memory, self._context
        wish = observe.wish_of(memory.body)
        pairs = (observe.persisted_pairs(memory.body) or wish.pairs) if memory.pairs_persisted else ()
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
            converge_expired=self._clockwork.converge_expired(wish.strategy.convergence_timeout_seconds),
            exhausted=memory.exhausted,
            generation=memory.body["metadata"].get("generation", 1),
            inherited=memory.inherited,
            inventory_settled=asyncio.get_running_loop().time() >= self._inventory_settled_at,
            settled=asyncio.get_running_loop().time() >= context.settled_at,
        )

    def _participants(self, pairs: tuple[Pair, ...]) -> tuple[Participant, ...]:
        agents, sent = self._context.agents, self._memory.sent
        found = []
        for role, nodes in (
            (Role.SOURCE, {p.source_node for p in pairs}),
            (Role.TARGET, {p.target_node for p in pairs}),
        ):
            for node in sorted(nodes):
                stream = agents.stream(node)
                found.append(
                    Participant(
                        node=node,
                        role=role,
                        connected=stream is not None,
                        commanded=_delivered(sent.get((node, role)), stream),
                        data_address=stream.hello.data_address if stream else "",
                        report=agents.report(node, self.key.uid, role),
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
                case PersistPairs():
                    resolved = replace(observed, pairs=observed.wish.pairs)
                    await self._publisher.write(resolved, planned, self._clockwork.measured(self._memory))
                    self._memory.pairs_persisted = True
                case Claim():
                    await self._executor.claim(observed, action)
                case CreateSwitchover():
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
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IDLE_SECONDS):
                await self._wake.wait()
        self._check_deadline(observed, planned)

    def _check_deadline(self, observed: Observed, planned: Plan) -> None:
        """A step that lasts too long fails the migration; past the point of return it is given up or waited for."""
        memory = self._memory
        if planned.step == "Converge" and observed.converge_expired and memory.failure is None:
            if not observed.wish.strategy.switch_over_on_timeout:
                memory.failure = Failure(
                    Reason.CONVERGENCE_TIMEOUT,
                    f"pre-copy did not converge within {observed.wish.strategy.convergence_timeout_seconds} s: raise "
                    "strategy.downtimeLimitMilliseconds, or set onConvergenceTimeout: Switchover",
                )
            return
        if not planned.timeout_seconds or self._clockwork.step_seconds() < planned.timeout_seconds:
            return
        away = [p.node for p in observed.participants if not p.connected and (p.touched or memory.inherited)]
        if not rolls_back(observed) and observed.switchover.decision is None and memory.failure is None:
            reason = Reason.AGENT_LOST if away else Reason.STEP_TIMEOUT
            who = f"; no connection to the agents of {', '.join(away)}" if away else ""
            memory.failure = Failure(
                reason, f"step {planned.step} was not done within {planned.timeout_seconds:g} s{who}"
            )
        elif not away:
            memory.exhausted = True

    async def _finish(self, observed: Observed, planned: Plan, finish: Finish) -> None:
        measured = self._clockwork.measured(self._memory, observed)
        await self._publisher.write_last(observed, planned, measured)
        await self._context.api.finished(self.key, switchover=observed.switchover.exists)
        await self._publisher.finished(planned, finish, measured)
        self._clockwork.finished(observed, finish)
        self._context.agents.forget(self.key.uid)
        self._log.info("finished", phase=finish.phase.value, message=planned.sentence)


def _delivered(sent: Sent | None, stream: AgentStream | None) -> bool:
    """Whether a command may have arrived: it was said, and not on a stream that has since been replaced."""
    return sent is not None and (stream is None or sent.stream == stream.number)
