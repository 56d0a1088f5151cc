"""The effects of a plan's actions: API writes and commands. Decides nothing but when to say a thing again."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import structlog
from kubernetes.aio.client.exceptions import ApiException

from vfio_api.errors import Reason
from vfio_api.models import device_object_name
from vfio_api.types import Command, Failure, Goal, Outcome, Peer, Role, SessionDevice, SessionSpec
from vfio_operator import observe
from vfio_operator.actions import (
    AddFinalizer,
    Authorize,
    Claim,
    CreateSwitchover,
    Decide,
    Send,
    Unclaim,
)
from vfio_operator.authority import forbidden, may_use_all, pod_forbidden
from vfio_operator.channel import Agents
from vfio_operator.conditions import is_released, resume_seconds, wants_pre_copy
from vfio_operator.history import History
from vfio_operator.kube import API_ERRORS, OperatorApi
from vfio_operator.kube_claims import KubeClaims
from vfio_operator.leader import Leadership
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.observed import DeviceRecord, Observed, Pair, Switchover
from vfio_operator.requester import Wanted
from vfio_operator.trail import Trail
from vfio_operator.workloads import pod_of, workloads

log = structlog.get_logger()
MAX_ATTEMPTS = 6
FIRST_RETRY_SECONDS = 0.2
PARALLEL_CLAIMS = 16


@dataclass(slots=True)
class Sent:
    """What was last said to a participant, on which stream, and how often."""

    goal: Goal
    decision: Outcome | None
    stream: int
    number: tuple[int, int]  # epoch and sequence of the command
    attempt: int = 0  # of the devices that are loaded or sent again
    attempts: int = 1
    retry_at: float = 0.0


@dataclass(slots=True)
class Reloads:
    """How often a node's targets were told to load once more after Commit, and when they may be told next."""

    count: int = 0
    next_at: float = 0.0


@dataclass(slots=True)
class Memory:
    """What one migration's task remembers between plans; every fact of it can be found again after a restart.

    gone: the object no longer exists (deleted, its finalizer taken away by hand). pairs: as they were persisted.
    decided_in: microseconds that the write of the decision took; 0 if it was not written here, or not at once.
    """

    body: Mapping[str, Any]
    gone: bool = False
    has_finalizer: bool = False
    pairs: tuple[Pair, ...] = ()
    authorized: tuple[Pair, ...] | None = None
    shows_all: bool = False
    forbidden: Failure | None = None
    rehearsed: bool = False
    inherited: bool = False
    claims: set[str] = field(default_factory=set)
    switchover: Switchover = field(default_factory=Switchover)
    decided_in: int = 0
    decision_by: str = ""
    decision_time: str = ""
    failure: Failure | None = None
    recorded: Failure | None = None
    exhausted: bool = False
    sent: dict[tuple[str, Role], Sent] = field(default_factory=dict)
    reloads: dict[str, Reloads] = field(default_factory=dict)
    sequence: int = 0


class Executor:
    """Carries out actions of one migration."""

    def __init__(
        self,
        api: OperatorApi,
        agents: Agents,
        leadership: Leadership,
        inventory: Mapping[tuple[str, str], DeviceRecord],
        metrics: OperatorMetrics,
        history: History,
        memory: Memory,
        trail: Trail,
    ):
        self._api, self._agents, self._leadership, self._trail = api, agents, leadership, trail
        self._claims = KubeClaims(api)
        self._inventory, self._metrics, self._history, self._memory = inventory, metrics, history, memory

    async def add_finalizer(self, observed: Observed, _action: AddFinalizer) -> bool:
        """Before anything is claimed; False if the object is not any more as it was seen, and has to be read."""
        body = self._memory.body
        if observe.has_finalizer(body):
            return False
        try:
            await self._api.add_finalizer(observed.key, body)
        except ApiException as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            return False
        self._memory.has_finalizer = True
        return True

    async def authorize(self, observed: Observed, action: Authorize) -> None:
        """Ask the API server what the requester may do with these pairs' devices.

        Without pairs: with the pod that is to be moved, if there is one, and whether with all devices.
        """
        memory, short = self._memory, observed.wish.shorthand
        pod = short.pod if short is not None else ""
        if action.pairs:
            wanted = [
                Wanted(pair.name, role, node, address, device_object_name(node, address))
                for pair in action.pairs
                for role, node, address in pair.ends
            ]
            memory.forbidden = await forbidden(self._api, memory.body, wanted, pod=pod)
        else:
            memory.forbidden, memory.shows_all = await may_use_all(self._api, memory.body)
            if pod and memory.forbidden is None:
                memory.forbidden = await pod_forbidden(self._api, memory.body, pod)
        memory.authorized = action.pairs

    async def claim(self, observed: Observed, action: Claim) -> None:
        """Reserve every device, or fail with the one that another migration has."""
        wanted = []
        for node, address in action.devices:
            record = self._inventory.get((node, address))
            if record is None:
                raise TimeoutError(f"VFIODevice of {address} on node {node} has not been seen yet")
            if record.object_name not in self._memory.claims:
                wanted.append(record)
        for batch in (wanted[i : i + PARALLEL_CLAIMS] for i in range(0, len(wanted), PARALLEL_CLAIMS)):
            # every outcome is waited for: a claim that was taken is remembered whatever happens beside it
            outcomes = await asyncio.gather(*(self._claim_one(observed, r) for r in batch), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
            if not all(outcomes):
                return

    async def _claim_one(self, observed: Observed, record: DeviceRecord) -> bool:
        key = observed.key
        claim = {"namespace": key.namespace, "name": key.name, "uid": key.uid}
        current = record
        for _ in range(MAX_ATTEMPTS):
            if current.claim_uid and current is record:  # the watch may be behind
                current = observe.device_of(await self._claims.device(record.object_name))
            if current.claim_uid == key.uid:
                self._memory.claims.add(record.object_name)
                return True
            if current.claim_uid:
                self._memory.failure = Failure(
                    Reason.DEVICE_CLAIMED,
                    f"device {record.address} on node {record.node} was claimed by migration {current.claim_name} "
                    "meanwhile; wait for it to finish or cancel it",
                )
                return False
            try:
                await self._claims.set_claim(current.object_name, current.resource_version, claim)
                self._metrics.api_writes.labels("claim").inc()
                self._memory.claims.add(record.object_name)
                return True
            except ApiException as error:
                if error.status != HTTPStatus.CONFLICT:
                    raise
            current = observe.device_of(await self._claims.device(record.object_name))
        raise TimeoutError(f"VFIODevice {record.object_name} changes faster than it can be claimed")

    async def recall_claims(self, pairs: tuple[Pair, ...]) -> None:
        """Which devices of `pairs` this migration has claimed already, asked of the API server.

        Not of the watch: it may not have listed the devices yet. A device that is not there is not claimed.
        """
        names = sorted(device_object_name(node, address) for pair in pairs for _, node, address in pair.ends)
        for batch in (names[i : i + PARALLEL_CLAIMS] for i in range(0, len(names), PARALLEL_CLAIMS)):
            for name, found in zip(batch, await asyncio.gather(*map(self._device, batch)), strict=True):
                if found is not None and found.claim_uid == observe.key_of(self._memory.body).uid:
                    self._memory.claims.add(name)

    async def _device(self, object_name: str) -> DeviceRecord | None:
        try:
            return observe.device_of(await self._claims.device(object_name))
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    async def unclaim(self, observed: Observed, _action: Unclaim) -> None:
        """Give every claimed device free, except those whose agent is away and may still hold something."""
        absent = {
            (p.node, p.role)
            for p in observed.participants
            if not p.connected and (p.touched or observed.inherited) and not is_released(p)
        }
        ends = [end for pair in observed.pairs for end in pair.ends]
        away = {device_object_name(node, address) for role, node, address in ends if (node, role) in absent}
        free = sorted(self._memory.claims - away)
        for batch in (free[i : i + PARALLEL_CLAIMS] for i in range(0, len(free), PARALLEL_CLAIMS)):
            await asyncio.gather(*(self._unclaim_one(observed, name) for name in batch))
        self._memory.claims.clear()

    async def _unclaim_one(self, observed: Observed, name: str) -> None:
        # not by the version that was seen: agents publish just now what became of the device
        if await self._claims.drop_claim(name, observed.key.uid):
            self._metrics.api_writes.labels("release").inc()

    def send(self, observed: Observed, action: Send) -> None:
        """Say it once per stream; again, with backoff, after a failure on the way back or after the decision.

        Raises NotLeadingError.
        """
        self._leadership.insist()
        stream = self._agents.stream(action.node)
        identity = action.node, action.role
        last = self._memory.sent.get(identity)
        if stream is None:
            return  # said as soon as it is back
        now = asyncio.get_running_loop().time()
        attempts = 1
        if last is not None and (last.goal, last.decision, last.stream, last.attempt) == (
            action.goal,
            action.decision,
            stream.number,
            action.attempt,
        ):
            report = self._agents.report(action.node, observed.key.uid, action.role)
            # a failure that was reported before the last command arrived says nothing of that command
            if report is None or report.failure is None or (report.epoch, report.sequence) < last.number:
                return
            if now < last.retry_at:
                return
            attempts = last.attempts + 1
            if attempts > MAX_ATTEMPTS:
                self._memory.exhausted = True
                return
        anew = action.role is Role.TARGET and bool(action.again) and (last is None or last.attempt != action.attempt)
        if anew and not self._may_reload(action.node, now):
            return
        self._memory.sequence += 1
        retry_at = now + FIRST_RETRY_SECONDS * 2**attempts
        number = (self._leadership.epoch, self._memory.sequence)
        self._memory.sent[identity] = Sent(
            action.goal, action.decision, stream.number, number, action.attempt, attempts, retry_at
        )
        self._agents.send(action.node, self._command(observed, action))
        self._trail.told(action, number)

    def _may_reload(self, node: str, now: float) -> bool:
        """Count one more reload of a node's targets, unless it is too early for it, or there were too many.

        Each has a number of its own, so what ends the repeating of a command does not end them: a device that falls
        into ERROR whenever it is to start, or one whose source has fallen as well, would be loaded for ever. After that
        the janitor asks again, at leisure.
        """
        reloads = self._memory.reloads.setdefault(node, Reloads())
        if now < reloads.next_at:
            return False
        if reloads.count >= MAX_ATTEMPTS:
            self._memory.exhausted = True
            return False
        reloads.count += 1
        reloads.next_at = now + FIRST_RETRY_SECONDS * 2**reloads.count
        return True

    def _command(self, observed: Observed, action: Send) -> Command:
        seconds = observed.limits.prepare_seconds
        if action.goal in (Goal.QUIESCED, Goal.STOP_COPY):
            seconds = observed.wish.strategy.switchover_timeout_seconds
        if action.goal is Goal.RUNNING:
            seconds = resume_seconds(observed)
        if action.again:  # the source's copy is the only one: no haste
            seconds = max(seconds, observed.wish.strategy.convergence_timeout_seconds)
        prepare = action.goal is Goal.PREPARED
        return Command(
            migration=observed.key,
            role=action.role,
            goal=action.goal,
            epoch=self._leadership.epoch,
            sequence=self._memory.sequence,
            deadline_milliseconds=int(seconds * 1000),
            decision=action.decision,
            spec=self._spec(observed, action) if prepare else None,
            peers=self._peers(observed, action) if prepare or action.again or action.goal is Goal.PRE_COPY else (),
            attempt=action.attempt,
            again=action.again,
        )

    def _spec(self, observed: Observed, action: Send) -> SessionSpec:
        strategy = observed.wish.strategy
        source = action.role is Role.SOURCE
        return SessionSpec(
            devices=tuple(
                SessionDevice(p.name, p.source_device, p.target_node, pod_of(observed, p))
                if source
                else SessionDevice(p.name, p.target_device, p.source_node)
                for p in observed.pairs
                if action.node == (p.source_node if source else p.target_node)
            ),
            pre_copy=source and wants_pre_copy(observed, action.node),
            bandwidth_limit_bytes_per_second=strategy.bandwidth_limit_bytes_per_second,
            switchover_timeout_milliseconds=strategy.switchover_timeout_seconds * 1000,
            switchover_ack=strategy.switchover_ack,
            workloads=workloads(observed, action.node, action.role),
        )

    def _peers(self, observed: Observed, action: Send) -> tuple[Peer, ...]:
        """Who is at the other ends of this agent's pairs: nobody else is to be let in."""
        source = action.role is Role.SOURCE
        ends = ((p.source_node, p.target_node) if source else (p.target_node, p.source_node) for p in observed.pairs)
        others = {there for here, there in ends if here == action.node}
        return tuple(
            Peer(p.node, p.data_address, p.report.certificate)
            for p in observed.side(Role.TARGET if source else Role.SOURCE)
            if p.node in others and p.report is not None and p.report.certificate
        )

    async def create_switchover(self, observed: Observed, _action: CreateSwitchover) -> None:
        """The durable intent. That it exists already is as good: then its decision counts."""
        began = time.perf_counter()
        try:
            await self._api.create_switchover(observed, self._leadership.epoch)
            self._memory.switchover = Switchover(True)
            self._trail.wrote("create VFIOSwitchover", began)
        except ApiException as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            self.read_back(await self._api.switchover(observed.key))

    async def decide(self, observed: Observed, action: Decide) -> None:
        """Write the decision once; whatever happens, obey only what is read back."""
        began = time.perf_counter()
        try:
            stored: Mapping[str, Any] | None = await self._api.decide(observed.key, action.outcome)
            self._memory.decided_in = int((time.perf_counter() - began) * 1e6)
            self._history.wrote(self._memory.decided_in)
            self._trail.wrote(f"patch decision {action.outcome.value}", began)
        except API_ERRORS as error:
            self._trail.wrote(f"patch decision {action.outcome.value}", began, str(error))
            log.warning("decision in doubt, reading it back", migration=str(observed.key), error=str(error))
            stored = await self._api.switchover(observed.key)
        self.read_back(stored)
        decided = self._memory.switchover.decision
        if decided is not None:
            self._metrics.decisions.labels(decided.value).inc()
            if decided is not action.outcome:
                self._metrics.races_lost.inc()

    def read_back(self, stored: Mapping[str, Any] | None) -> None:
        """Remember the switchover as it is stored. Raises TimeoutError if it has gone: nothing may be concluded."""
        if stored is None and self._memory.switchover.exists:
            raise TimeoutError("the VFIOSwitchover is gone: holding, and asking again")
        self._memory.switchover = observe.switchover_of(stored)
        decision = (stored or {}).get("status", {}).get("decision", {})
        self._memory.decision_by, self._memory.decision_time = (
            decision.get("by", ""),
            decision.get("time", ""),
        )
