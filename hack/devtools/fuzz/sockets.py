"""Requests to the keeper and to the broker, with file descriptors beside them."""

import json
import os
import random
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, redirect_stderr, suppress
from pathlib import Path
from typing import Any

from devtools.fuzz.base import Feed, insist
from devtools.fuzz.devices import Memory
from devtools.fuzz.mutate import json_bytes
from devtools.fuzz.pods import RUNS, FewPods
from vfio_agent import broker as broking
from vfio_agent import keeper as keeping
from vfio_agent.broker import Broker
from vfio_agent.holdings import Holdings
from vfio_agent.keeper import MAX_FDS, MAX_MESSAGE, Keeper, KeeperClient
from vfio_agent.pods import NodeFolders, Pods

NAMES = ("mem0", "mem1", "0000:3b:00.2")
REQUESTS: tuple[dict[str, Any], ...] = (
    {"op": "store", "name": "mem0", "meta": {"backend": "memory", "incarnation": "boot/1", "holder": "x"}},
    {"op": "take", "name": "mem0"},
    {"op": "note", "name": "mem0", "meta": {"holder": "y"}},
    {"op": "drop", "name": "mem0"},
    {"op": "list"},
)


def open_files() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


class KeeperWorld:
    """A keeper, and what is known of what it holds: nothing may be lost, and nothing leak."""

    def __init__(self) -> None:
        self._keeper = Keeper()
        self._file = os.open("/dev/null", os.O_RDONLY)
        self._before = open_files()
        self._held: dict[str, int] = {}

    def feed(self, rng: random.Random) -> None:
        """One connection: a request, and descriptors that may not belong to it."""
        request = {**rng.choice(REQUESTS)}
        if "name" in request:
            request["name"] = rng.choice(NAMES)
        whole = rng.random() < 0.3
        raw = json.dumps(request).encode() if whole else json_bytes(rng, request)
        fds = [self._file] * rng.choice((0, 0, 1, 3, MAX_FDS, MAX_FDS + 3))
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with mine, theirs:
            socket.send_fds(mine, [raw or b" "], fds)
            if rng.random() < 0.05:
                mine.close()  # it does not wait for its answer
            keeping._serve_one(self._keeper, theirs)
            if mine.fileno() >= 0:
                self._answer(mine, request if whole else {}, fds)
        self._count()
        if rng.random() < 0.02:
            for name in self._ask("list")["devices"]:
                self._ask("drop", name)
            insist(open_files() == self._before, f"{open_files() - self._before} descriptors leaked")

    def _ask(self, operation: str, name: str = "") -> Any:
        return self._keeper.answer({"op": operation, "name": name}, [])[0]

    def _answer(self, mine: socket.socket, request: dict[str, Any], fds: list[int]) -> None:
        mine.setblocking(False)
        try:
            raw, got, flags, _ = socket.recv_fds(mine, MAX_MESSAGE, MAX_FDS)
        except BlockingIOError:
            insist(not request or len(fds) > MAX_FDS, f"{request} has no answer")
            return
        for fd in got:
            os.close(fd)
        insist(not flags & socket.MSG_TRUNC, "an answer is longer than who asks can take")
        reply = json.loads(raw)
        insist(isinstance(reply, dict), f"the answer is {reply!r}")
        if request.get("op") == "take" and "error" not in reply:
            insist(bool(got), "a device was given without its descriptors")

    def _count(self) -> None:
        there = self._ask("list")["devices"]
        insist(len(there) <= keeping.MAX_DEVICES, f"{len(there)} devices are held")
        held = open_files() - self._before
        insist(len(there) <= held <= MAX_FDS * len(there), f"{held} descriptors for {len(there)} devices")

    def close(self) -> None:
        """Nothing is left open."""
        for name in self._ask("list")["devices"]:
            self._ask("drop", name)
        os.close(self._file)


@asynccontextmanager
async def keeper(_scratch: Path) -> AsyncIterator[Feed]:
    """The process that must not end: requests of any kind, one connection each."""
    # it says of every request that it drops it
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), closing(KeeperWorld()) as world:  # noqa: ASYNC230

        async def feed(rng: random.Random) -> int:
            world.feed(rng)
            return 1

        yield feed


def serve_keeper(path: Path) -> tuple[socket.socket, threading.Thread]:
    """A keeper in a thread of this process, for as long as the socket is open."""
    listener, kept = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), Keeper()
    listener.bind(str(path))
    listener.listen(16)

    def run() -> None:
        with suppress(OSError):  # it was shut down
            while True:
                connection, _ = listener.accept()
                with connection:
                    keeping._serve_one(kept, connection)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return listener, thread


def end_keeper(listener: socket.socket, thread: threading.Thread) -> None:
    """Have it end."""
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def _converse(serving: Broker, raw: bytes, *, leaves: bool) -> tuple[bool, Any]:
    """Whether descriptors came, and the last answer. leaves: who asks does not wait."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    got, reply = False, {"error": "none"}
    with mine:
        mine.send(raw or b" ")
        if leaves:
            mine.shutdown(socket.SHUT_WR)
        with theirs:
            serving._serve(theirs)
        while True:
            answer, fds, _, _ = socket.recv_fds(mine, 4096, 8)
            if not answer:
                return got, reply
            reply = json.loads(answer)
            got = got or bool(fds)
            for fd in fds:
                os.close(fd)


@asynccontextmanager
async def broker(scratch: Path) -> AsyncIterator[Feed]:
    """What a workload asks of the agent."""
    listener, thread = serve_keeper(scratch / "keeper.sock")
    backend, pods = Memory(4), FewPods(scratch)
    holdings = Holdings({backend.name: backend}, KeeperClient(scratch / "keeper.sock"), "boot-1")
    serving = Broker(
        scratch / "broker.sock",
        holdings,
        Pods(NodeFolders(proc=scratch)),
        lambda: None,
        lambda address: "team/m" if address == "mem3" else "",
        pods.incoming,
    )
    samples: list[dict[str, object]] = [
        {"open": "mem0", "workload": "w"},
        {"close": "mem0"},
        {"open": "mem3"},
        {"close": "mem3"},
        {"open": "mem1"},
        {"close": "mem1"},
        {"adopt": "mem1", "fd": 0},
        {"take": True},
    ]

    async def feed(rng: random.Random) -> int:
        request = rng.choice(samples)
        raw = json.dumps(request).encode() if rng.random() < 0.2 else json_bytes(rng, request)
        pods.shuffle(rng)
        before = {address: held.pod for address, held in holdings.all().items()}
        fds, reply = _converse(serving, raw, leaves=rng.random() < 0.2)
        insist("error" in reply or "running" in reply or fds == ("backend" in reply), f"{request}: {reply}")
        insist(set(holdings.all()) <= {f"mem{n}" for n in range(4)}, "a device that is none is open")
        for address, owner in before.items():
            if owner == RUNS and pods.peer not in (owner, ""):
                held = holdings.get(address)
                insist(held is not None and held.pod == owner, f"a pod took another's device: {request}")
        insist(not serving._takers, f"{serving._takers} wait for ever")
        # the keeper's thread may not have hung up yet
        insist(open_files() - len(holdings.all()) * 2 <= files + 2, "descriptors leaked")
        return 1

    files, patience = open_files(), broking.LOOK_SECONDS
    broking.LOOK_SECONDS = 0.0001
    try:
        yield feed
    finally:
        broking.LOOK_SECONDS = patience
        for address in list(holdings.all()):
            holdings.release(address)
        serving._listener.close()
        end_keeper(listener, thread)
