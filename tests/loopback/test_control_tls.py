"""The control channel's certificates, on real gRPC: renewed and replaced under streams that live on."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from devtools.stack import AGENT_NAMESPACE
from vfio_api import PROTOCOL_VERSION
from vfio_api.names import AGENT_SERVICE_ACCOUNT, TLS_NAME
from vfio_api.v1 import agent_pb2 as pb
from vfio_api.v1 import agent_pb2_grpc
from vfio_operator.certificates import Certificates, Folder, OwnAuthority, Source
from vfio_operator.channel import AgentLink, Agents, start_server
from vfio_operator.history import History
from vfio_operator.kube import Caller
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.pki import FILES, Authority, ServerIdentity

Scene = Callable[["Leader"], Awaitable[None]]
PATIENCE = 30.0
DAY = 86400.0


class ConfigMap:
    """What agents trust, as the API server has it; everything that was ever written is kept."""

    def __init__(self) -> None:
        self.bundles: list[bytes] = []
        self.away = False

    async def publish(self, authorities: tuple[bytes, ...], keep: bool) -> None:
        if self.away:
            raise ConnectionError("the API server is away")
        newest = self.bundles[-1].partition(END)[0] + END if keep and self.bundles else b""
        self.bundles.append(b"".join(authorities) + newest)

    def read(self) -> bytes:
        return self.bundles[-1]


END = b"-----END CERTIFICATE-----\n"


class Given:
    """A source whose certificates a test hands out."""

    every_seconds = 0.01

    def __init__(self) -> None:
        self.authority = Authority()
        self.now = self.issue()

    def issue(self) -> ServerIdentity:
        return self.authority.issue(DAY, datetime.now(UTC))

    def look(self) -> ServerIdentity:
        return self.now

    def renew(self) -> ServerIdentity:
        self.now = self.issue()
        return self.now

    def replace(self) -> ServerIdentity:
        self.authority = Authority()
        return self.renew()


class _Api:
    """The API server: every token is a node's name."""

    async def review_token(self, token: str) -> Caller:
        return Caller(f"system:serviceaccount:{AGENT_NAMESPACE}:{AGENT_SERVICE_ACCOUNT}", token, "pod")


class _Lease:
    leading, epoch = True, 5


class Leader:
    """An operator's end of the channel."""

    def __init__(self, certificates: Certificates, config_map: ConfigMap, agents: Agents, port: int):
        self.certificates, self.config_map, self.agents, self.port = certificates, config_map, agents, port

    @contextlib.asynccontextmanager
    async def dial(self, node: str, bundle: bytes | None = None) -> AsyncIterator[Any]:
        """A stream on which the operator has said Welcome; by default as an agent dials: with what is published now."""
        trusted = self.config_map.read() if bundle is None else bundle
        credentials = grpc.ssl_channel_credentials(root_certificates=trusted)
        options = [("grpc.ssl_target_name_override", TLS_NAME), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options) as channel:
            stub = agent_pb2_grpc.AgentLinkStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Connect(metadata=(("authorization", f"Bearer {node}"),), timeout=PATIENCE)
            hello = pb.Hello(protocol=PROTOCOL_VERSION, version="1", instance=node, data_address="127.0.0.1:1")
            await call.write(pb.AgentMessage(hello=hello))
            assert (await call.read()).welcome.node == node
            yield call
            call.cancel()

    async def shows(self, identity: ServerIdentity) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.certificates.shown != identity:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def alive(call: Any) -> None:
    """The stream is read on: a ping is answered by the next ping, sooner or later."""
    ping = await call.read()
    assert ping is not grpc.aio.EOF
    await call.write(pb.AgentMessage(pong=ping.ping))


async def at_once() -> None:
    """No agent is about to dial."""


def play(source: Source, scene: Scene, overlap: Callable[[], Awaitable[object]] = at_once) -> None:
    async def run() -> None:
        config_map, metrics = ConfigMap(), OperatorMetrics("test")
        api: Any = _Api()
        lease: Any = _Lease()
        agents = Agents(lambda _uid: None, metrics, History())
        seconds = {"heartbeat_seconds": 0.05, "dead_seconds": PATIENCE, "review_seconds": PATIENCE}
        link = AgentLink(agents, api, lease, metrics, agent_namespace=AGENT_NAMESPACE, **seconds)
        certificates = Certificates(source, config_map.publish, overlap)
        server, port = await start_server(link, certificates.credentials(), "127.0.0.1", 0)
        await certificates.elected()
        renewing = asyncio.create_task(certificates.run())
        try:
            await scene(Leader(certificates, config_map, agents, port))
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await server.stop(None)

    asyncio.run(run())


def test_a_certificate_is_renewed_under_a_stream_that_lives_on() -> None:
    source = Given()

    async def scene(leader: Leader) -> None:
        first = leader.certificates.shown
        async with leader.dial("a") as living:
            await alive(living)
            await leader.shows(source.renew())
            assert leader.certificates.shown.certificate != first.certificate
            await alive(living)
            async with leader.dial("b") as another:
                await alive(another)
            await alive(living)
        assert leader.config_map.bundles == [first.authority]  # nothing is to be published for that

    play(source, scene)


def test_another_authority_is_trusted_before_it_is_shown_and_the_old_one_no_more_afterwards() -> None:
    source, dialled = Given(), asyncio.Event()

    async def scene(leader: Leader) -> None:
        old = leader.config_map.read()
        async with leader.dial("a") as living:
            new = source.replace()
            published = [old]
            async with asyncio.timeout(PATIENCE):
                while leader.config_map.read() == old:
                    async with leader.dial("b"):  # a dial works at each moment
                        pass
            published.append(leader.config_map.read())
            assert leader.certificates.shown.authority == old  # published, and not shown yet
            async with leader.dial("c"), leader.dial("d", old):  # also who has read it before
                pass
            dialled.set()
            await leader.shows(new)
            async with leader.dial("e"), leader.dial("f", published[1]):
                pass
            async with asyncio.timeout(PATIENCE):
                while len(leader.config_map.bundles) < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert leader.config_map.bundles == [old, new.authority + old, new.authority]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async with leader.dial("g", old):
                    pass
            assert "CERTIFICATE_VERIFY_FAILED" in (refused.value.details() or "")
            await alive(living)

    play(source, scene, dialled.wait)


def test_while_the_api_server_is_away_the_trusted_certificate_goes_on_being_shown() -> None:
    source = Given()

    async def scene(leader: Leader) -> None:
        leader.config_map.away = True
        new = source.replace()
        for _ in range(20):
            async with leader.dial("a"):
                assert leader.certificates.shown != new
        leader.config_map.away = False
        await leader.shows(new)
        async with leader.dial("b"):
            pass

    play(source, scene)


def test_the_next_leader_is_trusted_beside_the_one_before() -> None:
    source = Given()

    async def scene(leader: Leader) -> None:
        old = leader.config_map.read()
        next_one = Certificates(Given(), leader.config_map.publish)
        await next_one.elected()
        assert leader.config_map.read() == next_one.shown.authority + old
        async with leader.dial("a"):
            pass

    play(source, scene)


def test_an_own_authority_issues_so_many_and_is_replaced_then() -> None:
    source = OwnAuthority(every_seconds=0.01, certificates=3)
    shown = [source.look() for _ in range(7)]
    assert [s.authority == shown[0].authority for s in shown] == [True] * 3 + [False] * 4
    assert len({s.authority for s in shown}) == 3
    assert len({s.certificate for s in shown}) == 7


def test_an_own_authority_is_trusted_at_each_moment_of_many_rotations() -> None:
    dials: list[str] = []

    async def dialled_again() -> None:
        """Who may have read the ConfigMap before is through: the dial after the next one has begun."""
        count = len(dials)
        while len(dials) < count + 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def scene(leader: Leader) -> None:
        async with leader.dial("a") as living:
            while len(leader.config_map.bundles) < 6:
                dials.append("b")
                async with leader.dial("b"):
                    await alive(living)

    play(OwnAuthority(every_seconds=0.2, certificates=2), scene, dialled_again)


def write(folder: Path, identity: ServerIdentity) -> None:
    for name, content in zip(FILES, (identity.certificate, identity.key, identity.authority), strict=True):
        (folder / name).write_bytes(content)


def test_what_is_stored_in_a_folder_is_shown_and_looked_at_again(tmp_path: Path) -> None:
    given = Given()
    write(tmp_path, given.now)

    async def scene(leader: Leader) -> None:
        async with leader.dial("a") as living:
            assert leader.config_map.read() == given.now.authority
            write(tmp_path, given.renew())
            await leader.shows(given.now)
            (tmp_path / "tls.key").write_bytes(b"half of it is written")
            async with leader.dial("b"):
                pass
            write(tmp_path, given.replace())
            await leader.shows(given.now)
            async with leader.dial("c"):
                await alive(living)

    play(Folder(tmp_path, 0.01), scene)


def test_a_stored_authority_can_be_joined_with_others_whatever_its_file_ends_with(tmp_path: Path) -> None:
    identity = OwnAuthority(60.0).look()
    write(tmp_path, dataclasses.replace(identity, authority=identity.authority.rstrip(b"\n")))
    assert Folder(tmp_path, 0.01).look().authority == identity.authority


def test_a_leader_that_shows_its_new_authority_too_early_is_refused() -> None:
    """The check of above can fail: this is what comes of publishing afterwards."""
    source = Given()

    async def scene(leader: Leader) -> None:
        leader.config_map.away = True
        leader.certificates.shown = source.replace()
        with pytest.raises(grpc.aio.AioRpcError):
            async with leader.dial("a"):
                pass

    play(source, scene)


def test_what_is_shown_is_for_the_fixed_name() -> None:
    leaf = x509.load_pem_x509_certificate(OwnAuthority(DAY).look().certificate)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [TLS_NAME]
