"""The bare minimum of a barrier: a small message to each of many gRPC streams over TLS 1.3, and every answer awaited.

A process with nothing but a grpc.aio server, and clients that answer at once, spread over as many processes as the
agents of a fleet are. Two rounds, A and B, are what two barriers cannot be had without.
"""

import argparse
import asyncio
import datetime
import json
import socket
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from devtools.processes import Child
from devtools.stack import python_path
from vfio_api.names import TLS_NAME
from vfio_operator.pki import Authority, ServerIdentity

ROOT = Path(__file__).resolve().parents[1]
METHOD = "/bench.Fanout/Connect"
MESSAGE = b"m" * 64
_MOMENT = struct.Struct("<d")  # of time.monotonic, at the client
CHANNEL_OPTIONS = [("grpc.ssl_target_name_override", TLS_NAME), ("grpc.use_local_subchannel_pool", 1)]
_Context = grpc.aio.ServicerContext[bytes, bytes]


class _Server:
    """Keeps the streams, and fans out when it is asked to."""

    def __init__(self) -> None:
        self.streams: list[_Context] = []
        self.enough = asyncio.Event()
        self._over = asyncio.Event()

    def service(self, _details: object) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """The one method, with messages as they are."""
        return grpc.stream_stream_rpc_method_handler(self._connect)

    async def _connect(self, _requests: AsyncIterator[bytes], context: _Context) -> None:
        await context.read()
        self.streams.append(context)
        self.enough.set()
        await self._over.wait()

    async def rounds(self) -> tuple[float, float, float]:
        """Seconds from before the first message of A is sent: to the last answer; to when the last client has B; to the
        last answer to B.
        """
        began = time.monotonic()
        await self._all()
        first = time.monotonic()
        there = await self._all()
        return first - began, there - began, time.monotonic() - began

    async def _all(self) -> float:
        """One round; when the last client had its message."""
        return max(await asyncio.gather(*(self._one(stream) for stream in self.streams)))

    @staticmethod
    async def _one(stream: _Context) -> float:
        await stream.write(MESSAGE)
        moment: float = _MOMENT.unpack_from(await stream.read())[0]
        return moment


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, server: _Server):
        self._server = server

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        return self._server.service(handler_call_details)


async def serve(spec: dict[str, Any], identity: ServerIdentity) -> None:
    """The server's process: answers {"samples": n} on a unix socket with n times what `_Server.rounds` gives."""
    bare, server = _Server(), grpc.aio.server()
    server.add_generic_rpc_handlers((_Handler(bare),))
    pair = [(identity.key, identity.certificate)]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
    await server.start()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        samples = json.loads(await reader.readline())["samples"]
        taken = [await bare.rounds() for _ in range(samples)]
        writer.write(json.dumps(taken).encode() + b"\n")
        await writer.drain()
        writer.close()

    control = await asyncio.start_unix_server(answer, spec["socket"])
    print(f"listening on {port}", flush=True)
    while len(bare.streams) < spec["streams"]:
        bare.enough.clear()
        await bare.enough.wait()
    print("all connected", flush=True)
    async with control:
        await control.serve_forever()


async def answer_all(spec: dict[str, Any], authority: bytes) -> None:
    """A process of clients, each on a connection of its own, which answer whatever comes at once."""
    credentials = grpc.ssl_channel_credentials(root_certificates=authority)

    async def client() -> None:
        async with grpc.aio.secure_channel(f"127.0.0.1:{spec['port']}", credentials, CHANNEL_OPTIONS) as channel:
            call: Any = channel.stream_stream(METHOD)()
            await call.write(MESSAGE)
            while (said := await call.read()) is not grpc.aio.EOF:
                await call.write(_MOMENT.pack(time.monotonic()) + said[_MOMENT.size :])

    await asyncio.gather(*(client() for _ in range(spec["streams"])))


class Fanout:
    """The bare fan-out on `streams` streams, whose clients are spread over `processes` processes."""

    def __init__(self, streams: int, processes: int):
        self._streams, self._processes = streams, processes
        self._folder = tempfile.TemporaryDirectory(prefix="vb-")
        self._socket = Path(self._folder.name) / "socket"
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        ca = Path(self._folder.name) / "ca"
        said = {"streams": self._streams, "socket": str(self._socket), "ca": str(ca)}
        server = self._start("server", "--serve", said, "listening on ")
        port = int(server.text().partition("listening on ")[2].split()[0])
        for number in range(self._processes):
            streams = len(range(number, self._streams, self._processes))
            self._start(f"clients-{number}", "--answer", {"streams": streams, "port": port, "ca": str(ca)}, "")
        server.wait_for("all connected", 60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.kill()
        self._folder.cleanup()

    def _start(self, name: str, option: str, spec: dict[str, Any], ready: str) -> Child:
        argv = [sys.executable, str(ROOT / "bench/fanout.py"), option, json.dumps(spec)]
        child = Child(f"bare {name}", argv, Path(self._folder.name) / f"{name}.log", python_path(), ready)
        self._children.append(child)
        return child

    def samples(self, count: int) -> list[tuple[float, float, float]]:
        """`count` times: seconds of round A; until the last client has the message of B; until B's last answer."""
        with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rw") as file:
            sock.connect(str(self._socket))
            file.write(json.dumps({"samples": count}) + "\n")
            file.flush()
            return [(a, there, b) for a, there, b in json.loads(file.readline())]


def main() -> None:
    """One process of the bare fan-out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=json.loads)
    parser.add_argument("--answer", type=json.loads)
    said = parser.parse_args()
    if said.serve:
        identity = Authority().issue(86400, datetime.datetime.now(datetime.UTC))
        Path(said.serve["ca"]).write_bytes(identity.authority)
        asyncio.run(serve(said.serve, identity))
    else:
        asyncio.run(answer_all(said.answer, Path(said.answer["ca"]).read_bytes()))


if __name__ == "__main__":
    main()
