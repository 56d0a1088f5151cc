"""The control channel: finds the leader, dials it, says Hello, takes commands, sends reports; and dials again."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import grpc
import structlog
from kubernetes.aio.client.exceptions import ApiException

from vfio_agent.agent import Agent
from vfio_agent.kube import AgentApi, Leader
from vfio_agent.metrics import AgentMetrics
from vfio_api import PROTOCOL_VERSION, wire
from vfio_api.names import TLS_NAME
from vfio_api.types import AgentHello
from vfio_api.v1 import agent_pb2 as pb
from vfio_api.v1 import agent_pb2_grpc

log = structlog.get_logger()
FIRST_BACKOFF, LAST_BACKOFF = 0.1, 2.0  # well below any switchover timeout
CONNECT_SECONDS = 5.0
TOKEN_SECONDS = 30.0  # how often the token is looked at
FAREWELL_SECONDS = 3.0  # for the operator to have read what was said last
# An operator that is lost is found within keepalive_time + keepalive_timeout, as long as its Lease takes to expire. An
# idle agent is pinged every 20 s besides, so that it asks once between two pings.
CHANNEL_OPTIONS = [
    ("grpc.ssl_target_name_override", TLS_NAME),
    ("grpc.keepalive_time_ms", 12_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
]


async def _nothing() -> None:
    """A link without an inventory."""


class Link:
    """Keeps one stream to the leader open for `agent`; `hello` is sent with the sessions of the moment.

    address: overrides the leader's own. look: publishes what the node has, and returns when it is there.
    silence_seconds: a leader pings; one that says nothing for so long is gone.
    """

    def __init__(
        self,
        agent: Agent,
        api: AgentApi,
        hello: AgentHello,
        token_file: Path,
        metrics: AgentMetrics,
        address: str = "",
        look: Callable[[], Awaitable[None]] = _nothing,
        silence_seconds: float = 30.0,
        token_seconds: float = TOKEN_SECONDS,
    ):
        self._agent, self._api, self._hello, self._token_file = agent, api, hello, token_file
        self._look, self._looks = look, set[asyncio.Task[None]]()
        self._metrics, self._address, self._silence_seconds = metrics, address, silence_seconds
        self._token_seconds = token_seconds
        self._writing = asyncio.Lock()  # grpc takes one message at a time
        self._reporting = asyncio.Lock()  # nobody says farewell between reports that were taken together
        self._leaving = self._told = False  # that this agent is to end; that the operator was told so on this stream
        self._call: Any = None  # the stream, once the operator has said Welcome on it
        self._over = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether an operator that leads has said Welcome, and the stream stands. Any thread."""
        return self._call is not None

    def leave(self) -> None:
        """Tell the operator, on this stream and on every later one, that nothing new is to begin here."""
        self._leaving = True
        self._agent.nudge()

    @property
    def unsaid(self) -> bool:
        """Whether the operator is still to be told something."""
        return self._agent.unsaid or self._told != self._leaving

    async def farewell(self) -> None:
        """End the stream so that the operator has read all of it: the last it hears is how the sessions ended."""
        if self._call is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                async with self._reporting, self._writing:
                    await self._call.done_writing()
                await self._over.wait()

    async def run(self) -> None:
        """Dial, and dial again after every end; until cancelled."""
        backoff = FIRST_BACKOFF
        while True:
            try:
                leader = await self._api.leader()
                if leader is None:
                    log.info("no operator leads yet")
                else:
                    await self._talk(leader)
                    backoff = FIRST_BACKOFF
            except grpc.aio.AioRpcError as error:
                self._metrics.dials.labels("error").inc()
                log.warning("operator stream ended", code=error.code().name, details=error.details())
            except ApiException as error:
                self._metrics.dials.labels("error").inc()
                if error.status == HTTPStatus.NOT_FOUND:  # the first leader has not published its certificate yet
                    log.info("no operator has led yet")
                else:
                    log.warning("API server does not tell who leads", status=error.status, reason=error.reason)
            except Exception as error:  # whatever ended the stream, the agent dials again
                self._metrics.dials.labels("error").inc()
                log.warning("operator not reached", error=str(error).partition("\n")[0] or type(error).__name__)
            finally:
                self._call = None
                self._metrics.connected.set(0)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LAST_BACKOFF)

    async def _talk(self, leader: Leader) -> None:
        if leader.epoch > self._agent.highest_epoch:  # the Lease is where epochs come from: no older leader is heard
            await self._agent.raise_epoch(wire.number(leader.epoch, "the Lease's epoch"))
        token = (await asyncio.to_thread(self._token_file.read_text)).strip()
        credentials = grpc.ssl_channel_credentials(root_certificates=leader.ca)
        address = self._address or leader.address
        async with grpc.aio.secure_channel(address, credentials, CHANNEL_OPTIONS) as channel:
            await asyncio.wait_for(channel.channel_ready(), CONNECT_SECONDS)
            call = agent_pb2_grpc.AgentLinkStub(channel).Connect(  # type: ignore[no-untyped-call]
                metadata=(("authorization", f"Bearer {token}"),)
            )
            # not a request iterator: grpc leaves it waiting when the stream ends, and it would take the next report
            parts = (self._send(call), self._receive(call, address), self._show_tokens(call, token))
            tasks = [asyncio.create_task(part) for part in parts]
            self._over.clear()
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.cancelled():
                        raise ConnectionError("the control stream was cancelled")
                    task.result()
            finally:
                self._over.set()
                call.cancel()
                for task in (*tasks, *self._looks):
                    task.cancel()
                await asyncio.gather(*tasks, *self._looks, return_exceptions=True)

    async def _send(self, call: Any) -> None:
        hello = wire.hello_to_wire(self._hello)
        hello.highest_epoch = self._agent.highest_epoch
        hello.sessions.extend(wire.report_to_wire(report) for report in self._agent.reports())
        await self._write(call, pb.AgentMessage(hello=hello))
        self._told = False
        while True:
            if self._leaving and not self._told:
                await self._write(call, pb.AgentMessage(leaving=pb.Leaving()))
                self._told = True
            reports = await self._agent.next_reports()
            async with self._reporting:  # a ping is answered in between
                for report in reports:
                    await self._write(call, pb.AgentMessage(report=wire.report_to_wire(report)))

    async def _show_tokens(self, call: Any, shown: str) -> None:
        """The kubelet replaces a token before its time is over; the operator looks at it for as long as it serves."""
        while True:
            await asyncio.sleep(self._token_seconds)
            try:
                token = (await asyncio.to_thread(self._token_file.read_text)).strip()
            except OSError as error:
                log.warning("token not read; the stream goes on", error=str(error))
                continue
            if token != shown and self.connected:
                await self._write(call, pb.AgentMessage(token=token))
                shown = token

    async def _write(self, call: Any, message: pb.AgentMessage) -> None:
        async with self._writing:
            await call.write(message)

    async def _receive(self, call: Any, address: str) -> None:
        while True:
            # the operator pings every few seconds: a connection without them leads nowhere
            try:
                async with asyncio.timeout(self._silence_seconds):
                    message = await call.read()
            except TimeoutError:
                seconds = self._silence_seconds
                raise ConnectionError(f"the operator at {address} has said nothing for {seconds:g} s") from None
            if message is grpc.aio.EOF:
                return
            if message.HasField("ping"):
                await self._write(call, pb.AgentMessage(pong=message.ping))
            elif message.HasField("look"):
                self._looks.add(task := asyncio.create_task(self._looked(call, message.look)))
                task.add_done_callback(self._looks.discard)
            else:
                await self._incoming(message, call, address)

    async def _looked(self, call: Any, number: int) -> None:
        await self._look()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the stream may have ended
            await self._write(call, pb.AgentMessage(looked=number))

    async def _incoming(self, message: pb.OperatorMessage, call: Any, address: str) -> None:
        if message.HasField("welcome"):
            await self._agent.raise_epoch(wire.number(message.welcome.epoch, "the leader's epoch"))
            self._metrics.dials.labels("ok").inc()
            self._metrics.connected.set(1)
            self._call = call
            log.info("connected", operator=address, epoch=message.welcome.epoch, node=message.welcome.node)
        elif message.HasField("command"):
            try:
                command = wire.command_from_wire(message.command)
            except ValueError as error:  # it alone; a leader that says such things still leads the others
                self._agent.refuse(message.command, f"a command cannot be read: {error}")
                return
            self._agent.take(command)


def hello(version: str, incarnation: str, instance: str, data_address: str) -> AgentHello:
    """What this agent says of itself on every connection."""
    return AgentHello(PROTOCOL_VERSION, version, incarnation, instance, data_address, 0)
