"""The broker's socket: whatever a workload says costs an answer, never the agent."""

import asyncio
import json
import socket
from pathlib import Path

import pytest

from vfio_agent.broker import Broker
from vfio_agent.devices.simulated import SimulatedBackend
from vfio_agent.holdings import Holdings
from vfio_agent.keeper import KeeperClient
from vfio_agent.pods import Pods

NAME_TOO_LONG = json.dumps({"open": "x" * 254}).encode()
GARBAGE = [
    b"",
    b"no json",
    b"[" * 4000,
    b'{"open":' * 400,
    b"1",
    b"null",
    b'["close"]',
    b'"close"',
    b"{}",
    b'{"open": 1}',
    b'{"open": {"a": 1}}',
    b'{"close": null}',
    b'{"open": "sim0", "workload": []}',
    b"\xff\xfe",
    b'["take"]',
    b'"take"',
    b'{"take": false}',
    b'{"take": 1}',
    b'{"take": "true"}',
    b'{"adopt": "sim0"}',
    b'{"adopt": "sim0", "fd": -1}',
    b'{"adopt": "sim0", "fd": true}',
    b'{"adopt": "sim0", "fd": "3"}',
    b'{"adopt": "sim0", "fd": 1048576}',
    b'{"adopt": ["sim0"], "fd": 3}',
    b'{"close": "sim0"}' + b" " * 4096,
    NAME_TOO_LONG,
]


def ask(path: Path, said: bytes) -> dict[str, str]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.send(said or b" ")
        reply: dict[str, str] = json.loads(sock.recv(4096))
    return reply


def leave(path: Path) -> None:
    """Connect, and go without a word."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(path))


@pytest.mark.parametrize("said", GARBAGE, ids=lambda said: said[:24].decode(errors="replace"))
def test_what_is_no_request_is_answered_and_the_broker_goes_on(tmp_path: Path, said: bytes) -> None:
    path = tmp_path / "broker.sock"

    async def scene() -> None:
        absent = Holdings(
            {"simulated": SimulatedBackend(tmp_path / "no-simulator")}, KeeperClient(tmp_path / "no-keeper"), "boot"
        )
        broker = Broker(path, absent, Pods(), lambda: None, lambda _address: "", lambda _pod: None)
        running = asyncio.create_task(broker.run())
        await asyncio.to_thread(leave, path)
        reply = await asyncio.to_thread(ask, path, said)
        assert reply["error"].startswith("not a request")
        assert reply["reason"] == "CommandRefused"
        reply = await asyncio.to_thread(ask, path, b'{"close": "sim0"}')  # a real one
        assert "not a request" not in reply.get("error", "")
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scene())
