"""The least that a switchover can take: bare round trips on TLS streams, and one patch of a status. It changes never.

    floor.py operator KUBECONFIG NAMESPACE   and, for each line "K ROUNDS" on its input, K samples as a line of JSON
    floor.py agent PORT CERTIFICATE          answers whatever comes, at once

One process for the operator and one for each agent, as in a cluster: gRPC's bidirectional streams over TLS 1.3 on
loopback, some bytes there and back. A sample with two rounds: a round trip to the first agent, the patch of the
decision of a VFIOSwitchover on the real API server, a round trip to the second. With four: two fan-outs to both, the
patch, two fan-outs.
"""

import asyncio
import datetime
import ipaddress
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kubernetes.aio import client, config

METHOD = "/floor.Floor/Connect"
PAYLOAD = b"x" * 200
AGENTS = 2
GROUP, VERSION = "vfiomigration.io", "v1alpha1"
Json = dict[str, Any]


def certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate for 127.0.0.1 and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "floor")])
    moment = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - datetime.timedelta(days=1))
        .not_valid_after(moment + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM), private


class Streams:
    """The agents' streams, in the order in which they came."""

    def __init__(self) -> None:
        self.contexts: list[Any] = []
        self.iterators: list[AsyncIterator[bytes]] = []
        self.there = asyncio.Event()

    async def connect(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """The handler of the method."""
        self.contexts.append(context)
        self.iterators.append(aiter(requests))
        if len(self.contexts) == AGENTS:
            self.there.set()
        await asyncio.Event().wait()

    async def round_trip(self, number: int) -> None:
        """To one agent and back."""
        await self.contexts[number].write(PAYLOAD)
        await anext(self.iterators[number])

    async def fan_out(self) -> None:
        """To all and back from all."""
        await asyncio.gather(*(self.round_trip(number) for number in range(AGENTS)))


async def serve(kubeconfig: str, namespace: str) -> None:
    """The operator's part."""
    pem, key = certificate()
    streams = Streams()
    server = grpc.aio.server()
    handler: Any = grpc.stream_stream_rpc_method_handler(streams.connect)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor.Floor", {"Connect": handler}),))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, pem)]))
    await server.start()
    print(json.dumps({"port": port, "certificate": pem.decode()}), flush=True)
    await streams.there.wait()
    settings: Any = client.Configuration()
    await config.load_kube_config(kubeconfig, client_configuration=settings)  # type: ignore[no-untyped-call]
    settings.client_session_kwargs = {"trust_env": False}  # no look-up of ~/.netrc and proxies for each request
    async with client.ApiClient(settings) as connection:
        objects: Any = client.CustomObjectsApi(connection)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            count, rounds = map(int, line.split())
            samples = [await sample(objects, streams, namespace, rounds) for _ in range(count)]
            print(json.dumps(samples), flush=True)


async def sample(objects: Any, streams: Streams, namespace: str, rounds: int) -> dict[str, float]:
    """Seconds of one sample as a whole, and of its patch. Its VFIOSwitchover stays: nobody may delete one."""
    name = str(uuid.uuid4())
    where = (GROUP, VERSION, namespace, "vfioswitchovers")
    spec = {
        "migrationName": "floor", "migrationUID": name, "epoch": 1,
        "sourceNodes": ["node-a"], "targetNodes": ["node-b"], "timeoutSeconds": 30,
    }  # fmt: skip
    metadata = {"name": name, "namespace": namespace}
    body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "VFIOSwitchover", "metadata": metadata, "spec": spec}
    await objects.create_namespaced_custom_object(*where, body)
    began = time.perf_counter()
    for number in range(rounds // 2):
        await (streams.round_trip(number) if rounds == 2 else streams.fan_out())
    patch_began = time.perf_counter()
    moment = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    decision = {"status": {"decision": {"outcome": "Commit", "by": "floor", "time": moment}}}
    await objects.patch_namespaced_custom_object_status(
        *where, name, decision, _content_type="application/merge-patch+json"
    )
    patched = time.perf_counter()
    for number in range(rounds // 2):
        await (streams.round_trip(1 - number) if rounds == 2 else streams.fan_out())
    ended = time.perf_counter()
    return {"whole": ended - began, "patch": patched - patch_began}


async def answer(port: str, pem: str) -> None:
    """An agent's part."""
    credentials = grpc.ssl_channel_credentials(root_certificates=pem.encode())
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        call: Any = channel.stream_stream(METHOD)()
        while (said := await call.read()) is not grpc.aio.EOF:
            await call.write(said)


def main() -> None:
    """See the module."""
    role, *rest = sys.argv[1:]
    asyncio.run(serve(*rest) if role == "operator" else answer(*rest))


if __name__ == "__main__":
    main()
