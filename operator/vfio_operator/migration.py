"""One task per active migration: observe -> plan -> persist -> execute, until the plan says Finish."""

import asyncio
import contextlib
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import structlog
from kubernetes.aio.client.exceptions import ApiException

from vfio_api.models_status import Phase
from vfio_api.types import Failure, MigrationKey
from vfio_operator import observe
from vfio_operator.actions import (
    AddFinalizer,
    AskTurn,
    Authorize,
    Claim,
    CreateSwitchover,
    Decide,
    FindPod,
    Finish,
    KeepPod,
    Look,
    PersistFailure,
    PersistPairs,
    PersistRehearsal,
    Plan,
    ReleasePods,
    Send,
    StartTargetPod,
    SwitchPods,
    Unclaim,
)
from vfio_operator.clockwork import Clockwork
from vfio_operator.conditions import no_session_left
from vfio_operator.context import Context
from vfio_operator.deadlines import Deadlines
from vfio_operator.execute import Executor, Memory
from vfio_operator.kube import API_ERRORS, brief, now
from vfio_operator.kube_pods import KubePods
from vfio_operator.looking import Looking
from vfio_operator.moving import Mover
from vfio_operator.observed import Observed, Pair, ends_of
from vfio_operator.participants import Participants
from vfio_operator.plan import first_failure, plan, rolls_back
from vfio_operator.policies import Policy, choose
from vfio_operator.publish import QUEUED_SECONDS, QUIET_STEPS, Publisher
from vfio_operator.trail import Trail
from vfio_operator.turns import Turn

log = structlog.get_logger()
FIRST_BACKOFF, LAST_BACKOFF = 0.1, 5.0
TOLD_SECONDS = 0.1  # that a step is logged so much later, in which devices are down
READY_SECONDS = 10.0  # for the counterpart; a later one takes its place when the source has gone
ASKING = Turn(position=1)  # it has not asked yet
IDLE_SECONDS = 0.5  # how often a plan is made again when nothing happens: deadlines and retries
MOST_IDLE_SECONDS = 10.0  # in a long queue, where nothing happens but that one comes nearer; see publish.QUEUED_SECONDS


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
        self._mover = Mover(KubePods(context.api), key)
        self._clockwork = Clockwork(context.metrics, key.uid)
        self._deadlines = Deadlines(self._memory, self._clockwork, context.agents)
        running = context.turnstile.count
        self._publisher = Publisher(context.api, context.metrics, key, body, self._trail.trace_id, running)
        self._nodes: frozenset[str] = frozenset()
        self._missed = False
        self._turn = ASKING
        self._namespace_labels: Mapping[str, str] | None = None
        self._certain, self._over = False, False
        self._policy: Policy | None = None
        self._looking = Looking(context.agents)
        self._participants, self._reading = Participants(context.agents, key.uid), observe.Reading()
        self._log = log.bind(migration=str(key), uid=key.uid, epoch=context.leadership.epoch)

    def notice(self, body: Mapping[str, Any]) -> None:
        """The object changed."""
        self._memory.body = body
        self._wake.set()

    def pod(self, body: Mapping[str, Any], *, deleted: bool) -> None:
        """A pod of this migration changed."""
        self._mover.seen(body, deleted=deleted)
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
            self._certain = True
        elif observe.is_untouched(self._memory.body):
            await self._again(self._recall)
        else:
            await self._resume()
        backoff = FIRST_BACKOFF
        while not self._over:
            self._wake.clear()
            if self._missed:
                await self._look_again()
            await self._again(self._ask_for_labels)
            observed = self._observe()
            if rolls_back(observed):
                # the first cause stays the cause, whatever the way back adds; what is recorded is what is known now
                self._memory.failure = first_failure(observed)
                observed = replace(observed, failure=self._memory.failure)
            planned = plan(observed)
            if self._turn.position and planned.step != "AwaitTurn":
                self._context.turnstile.leave(self.key.uid)  # it does not wait for its turn, for now
                self._turn = ASKING
            self._trail.follow(planned, observed)
            if self._clockwork.track(planned, observed):
                self._publisher.milestone(planned)
                # not in the way of what it says to do: devices may be down
                later = TOLD_SECONDS if planned.step in QUIET_STEPS else 0
                asyncio.get_running_loop().call_later(later, self._tell_step, planned)
            if not self._certain and not planned.holds_as_seen:
                await self._resume()
                continue
            if planned.step == "AwaitAgents":  # the next agent publishes what it finds once it is there
                self._looking.anew()
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
                if self._certain:
                    self._publisher.offer(observed, refused, self._clockwork.measured(self._memory))
                self._check_deadline(observed, planned)
                await asyncio.sleep(backoff * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
                backoff = min(2 * backoff, LAST_BACKOFF)
                progressed = True
            if not progressed and not self._certain:
                await self._resume()
            elif not progressed:
                self._publisher.offer(observed, planned, self._clockwork.measured(self._memory))
                await self._wait(observed, planned)

    def _tell_step(self, planned: Plan) -> None:
        self._log.info("step", step=planned.step, phase=planned.phase.value, message=planned.sentence)

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
        return await self._context.api.migration_or_none(self.key)

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

    async def _resume(self) -> None:
        """The watch may be behind: what an earlier leader wrote last decides how to go on."""
        await self._again(self._read_again)
        self._certain = True
        if observe.is_finished(self._memory.body):  # an earlier leader ended between the status and the finalizer
            self._context.kept.keep(self.key)
            await self._again(lambda: self._context.api.finished(self.key, switchover=False))
            self._over = True
        else:
            await self._again(self._recall)

    async def _ask_for_labels(self) -> None:
        """Those of the namespace, once there is a policy that may ask for them."""
        if self._namespace_labels is None and self._context.policies and not self._memory.pairs and not self._left:
            self._namespace_labels = await self._context.api.namespace_labels(self.key.namespace)

    async def _read_again(self) -> None:
        found = await self._read()
        if found is None:
            self.gone()
        else:
            self._memory.body = found
            self._publisher.written(found)
            self._clockwork.remember(found)

    async def _recall_what_is_left(self) -> None:
        self.gone()
        memory, self._turn = self._memory, Turn()
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
        self._turn = Turn() if memory.pairs else ASKING
        memory.failure = memory.recorded = observe.persisted_failure(memory.body)
        memory.rehearsed = observe.is_rehearsed(memory.body)
        memory.sequence = self._context.agents.highest_sequence(
            self.key.uid, {node for node, _ in ends_of(memory.pairs)}
        )
        wanted = observe.wish_of(memory.body).shorthand
        if memory.pairs and wanted is not None and wanted.pod:
            await self._mover.recall(memory.body.get("status", {}), wanted)
        if memory.pairs:
            self._executor.read_back(await api.switchover(self.key))
            self._context.reserved[self.key.uid] = ends_of(memory.pairs)
            self._context.turnstile.runs(observe.ticket_of(memory.body, memory.pairs, 0))
            await self._executor.recall_claims(memory.pairs)
        absent = observe.wish_of(memory.body).nodes - self._context.agents.connected
        known = [node for node in sorted(absent) if await api.node_exists(node)]
        self._nodes = frozenset(known) | self._context.agents.connected

    def _observe(self) -> Observed:
        memory, context = self._memory, self._context
        # with its pairs what it began with is stored, which this task may see later than it has written it
        policy, conflict = (self._policy, None) if memory.pairs or self._left else self._choose_policy()
        self._policy = policy
        wish, pairs = self._reading.wish(memory.body, policy), memory.pairs
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
            participants=self._participants.of(pairs, memory.sent),
            switchover=memory.switchover,
            failure=memory.failure,
            recorded=memory.recorded,
            converge_expired=self._clockwork.converge_expired(wish.strategy.convergence_timeout_seconds),
            exhausted=memory.exhausted,
            generation=memory.body["metadata"].get("generation", 1),
            inherited=memory.inherited,
            inventory_settled=self._looking.settled,
            leaving=context.agents.leaving(context.successor_seconds),
            settled=asyncio.get_running_loop().time() >= context.settled_at,
            lingered=self._clockwork.lingered,
            rehearsed=memory.rehearsed,
            authorized=memory.authorized,
            forbidden=memory.forbidden,
            shows_all=memory.shows_all,
            move=self._mover.move,
            turn=self._turn,
            policy=policy.name if policy else memory.body.get("status", {}).get("policy", ""),
            policy_conflict=conflict,
            emptied=context.emptied(),
            active=frozenset(context.reserved),
            reserved=frozenset().union(*others) if wish.shorthand is not None and not pairs else frozenset(),
            known=context.history.known,
            limits=context.limits,
        )

    def _choose_policy(self) -> tuple[Policy | None, Failure | None]:
        labels = self._memory.body["metadata"].get("labels") or {}
        return choose(self._context.policies.values(), self._namespace_labels or {}, labels)

    async def _act(self, observed: Observed, planned: Plan) -> bool:
        """Carry out the actions; True if they changed what is observed, so that a new plan is due at once."""
        progressed, memory = False, self._memory
        for action in planned.actions:
            match action:
                case Send():
                    self._executor.send(observed, action)
                    continue
                case Look():
                    self._looking.ask(action.nodes)
                    continue
                case AskTurn():
                    queued = self._turn.waiting
                    self._turn = self._context.turnstile.ask(
                        observe.ticket_of(memory.body, action.pairs, observed.wish.priority)
                    )
                    if self._turn.position:
                        continue
                    if queued:
                        self._mover.forget()  # another may have its name by now, or it has opened more
                        self._looking.anew()
                case AddFinalizer():
                    if await self._executor.add_finalizer(observed, action):
                        self._certain = True  # nobody has written to it since it was seen
                    else:
                        await self._resume()
                case Authorize():
                    await self._executor.authorize(observed, action)
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
                case FindPod() | StartTargetPod() | KeepPod() | SwitchPods() | ReleasePods():
                    failure = await self._mover.carry_out(observed, action)
                    memory.failure = memory.failure or failure
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
            queued = min(observed.turn.waiting * QUEUED_SECONDS, MOST_IDLE_SECONDS)
            async with asyncio.timeout(max(IDLE_SECONDS, queued)):
                await self._wake.wait()
        self._check_deadline(observed, planned)

    def _check_deadline(self, observed: Observed, planned: Plan) -> None:
        if planned.step == "AwaitReady" and self._clockwork.step_seconds() > READY_SECONDS:
            self._mover.waited()
        self._deadlines.check(observed, planned)

    async def _finish(self, observed: Observed, planned: Plan, finish: Finish) -> None:
        measured = self._clockwork.measured(self._memory, observed)
        release = observed.switchover.exists and no_session_left(observed)
        if observed.switchover.exists and not release:
            self._context.kept.keep(self.key)
        try:
            if not self._memory.gone:
                stored = await self._publisher.write_last(observed, planned, measured)
                await self._context.api.finished(self.key, switchover=release, stored=stored)
        except ApiException as error:
            if error.status not in (404, 409) or not await self._vanished():
                raise
            self._memory.gone = True
        if self._memory.gone and release:
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
            memory = self._memory
            straight = not memory.inherited and not memory.reloads and memory.decided_in
            downtime = measured.downtime_microseconds if straight else None
            self._context.history.succeeded(observed, downtime, measured.left_bytes, decided_in=memory.decided_in)
        self._context.agents.forget(self.key.uid)
        self._log.info("finished", phase=finish.phase.value, message=planned.sentence)
