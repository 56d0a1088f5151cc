"""A tiny process that holds the fds of open devices, so that they outlive the agent.

Closing the last fd of a vfio-pci function resets it, so whoever restarts must not be the only holder. The keeper
speaks JSON messages over a unix SOCK_SEQPACKET socket, fds as SCM_RIGHTS, one request and one reply at a time:
store NAME META + fds; take NAME -> META + duplicates; note NAME META; drop NAME; list. It imports nothing of the
project, decides nothing, and never holds data fds: a crash in mid-stream means abort.
"""

import argparse
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

MAX_MESSAGE = 64 * 1024
MAX_FDS = 8
SPARE_FDS = 16  # to go on answering: a connection, and what it brings
MAX_DEVICES = 1024
MAX_NAME = 56  # characters; the list of all names fits into a message
ACCEPT_RETRY_SECONDS = 0.1
MAX_META = 8 * 1024  # bytes as JSON

Json = dict[str, Any]


class KeeperError(RuntimeError):
    """The keeper refused a request or cannot be reached."""


class KeeperGoneError(KeeperError):
    """No keeper is there: whatever the last one held is closed."""


class Keeper:
    """The keeper's memory and how it answers."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Json, list[int]]] = {}

    def answer(self, request: Json, fds: list[int]) -> tuple[Json, list[int]]:
        """Reply and fds to send along for one request; fds received and not stored are closed."""
        operation, name, meta = request.get("op"), str(request.get("name", "")), request.get("meta", {})
        if not isinstance(meta, dict) or len(json.dumps(meta)) > MAX_META:
            for fd in fds:
                os.close(fd)
            return {"error": f"what is noted of a device is an object of at most {MAX_META} bytes"}, []
        if operation == "store":
            return self._store(name, meta, fds), []
        for fd in fds:
            os.close(fd)
        if operation == "list":
            return {"devices": list(self._held)}, []
        if name not in self._held:
            return {"error": f"{name} is not held here"}, []
        if operation == "take":
            meta, held_fds = self._held[name]
            return {"meta": meta}, held_fds
        if operation == "note":
            self._held[name] = (meta, self._held[name][1])
            return {}, []
        if operation == "drop":
            for fd in self._held.pop(name)[1]:
                os.close(fd)
            return {}, []
        return {"error": f"unknown operation {operation!r}"}, []

    def _store(self, name: str, meta: Json, fds: list[int]) -> Json:
        bad_name = not 0 < len(name) <= MAX_NAME or not name.isascii() or not name.isprintable()
        if bad_name or not fds or name in self._held or len(self._held) >= MAX_DEVICES:
            for fd in fds:
                os.close(fd)
            return {
                "error": f"cannot store {name[:MAX_NAME]!r}: no name of at most {MAX_NAME} characters, no fds, held "
                f"already, or {MAX_DEVICES} are held"
            }
        if max(fds) >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FDS:  # the lowest free ones are given out
            for fd in fds:
                os.close(fd)
            return {"error": f"cannot store {name!r}: this process may not have more open files; raise its limit"}
        self._held[name] = (meta, fds)
        return {}


class KeeperClient:
    """Asks the keeper at `path`; every call is one connection and blocks for at most `timeout` seconds.

    Raises KeeperError if it refuses or does not answer.
    """

    def __init__(self, path: Path, timeout: float = 5.0):
        self._path, self._timeout = path, timeout

    def store(self, name: str, meta: Json, fds: list[int]) -> None:
        """Give the keeper duplicates of `fds`."""
        self._ask({"op": "store", "name": name, "meta": meta}, fds)

    def take(self, name: str) -> tuple[Json, list[int]]:
        """Meta and fresh duplicates of the fds; the keeper goes on holding its own."""
        reply, fds = self._ask({"op": "take", "name": name})
        meta = reply.get("meta")
        if not isinstance(meta, dict) or not fds:
            for fd in fds:
                os.close(fd)
            raise KeeperError(f"keeper: no answer to take {name} that makes sense: {str(reply)[:200]}")
        return meta, fds

    def note(self, name: str, meta: Json) -> None:
        """Replace what is noted beside a device."""
        self._ask({"op": "note", "name": name, "meta": meta})

    def drop(self, name: str) -> None:
        """Close the keeper's fds of a device."""
        self._ask({"op": "drop", "name": name})

    def held(self) -> list[str]:
        """The names of everything held."""
        devices = self._ask({"op": "list"})[0].get("devices")
        if not isinstance(devices, list) or not all(isinstance(name, str) for name in devices):
            raise KeeperError(f"keeper: no answer to list that makes sense: {str(devices)[:200]}")
        return devices

    def _ask(self, request: Json, fds: list[int] | None = None) -> tuple[Json, list[int]]:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.settimeout(self._timeout)
                sock.connect(str(self._path))
                socket.send_fds(sock, [json.dumps(request).encode()], fds or [])
                raw, received, _, _ = socket.recv_fds(sock, MAX_MESSAGE, MAX_FDS)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise KeeperGoneError(f"no keeper serves {self._path}: {error}; start vfio-keeper") from error
        except OSError as error:
            raise KeeperError(f"keeper at {self._path} does not answer: {error}; is vfio-keeper running?") from error
        if not raw:
            raise KeeperError(f"keeper at {self._path} closed the connection without an answer")
        try:
            reply = json.loads(raw)
            if not isinstance(reply, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            for fd in received:
                os.close(fd)
            raise KeeperError(f"keeper at {self._path} answers what is no answer: {error}") from None
        if "error" in reply:
            raise KeeperError(f"keeper: {reply['error']}")
        return reply, received


def _same_user(connection: socket.socket) -> bool:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return bool(struct.unpack("3i", credentials)[1] == os.geteuid())


def _serve_one(keeper: Keeper, connection: socket.socket) -> None:
    """One request of one connection. A peer that stalls or lies costs at most a second and nothing held."""
    connection.settimeout(1.0)
    fds: list[int] = []
    try:
        if not _same_user(connection):
            return
        raw, fds, flags, _ = socket.recv_fds(connection, MAX_MESSAGE, MAX_FDS)
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):  # a device of which some fds are missing is none
            raise ValueError(f"it has more than {MAX_FDS} fds or {MAX_MESSAGE} bytes, or this process no room for them")
        request = json.loads(raw)
        if not isinstance(request, dict):
            raise ValueError("not an object")
        given, fds = fds, []
        reply, out = keeper.answer(request, given)
        socket.send_fds(connection, [json.dumps(reply).encode()], out)
    except (OSError, ValueError, RecursionError) as error:
        print(f"keeper: request dropped: {error}", file=sys.stderr, flush=True)
        for fd in fds:
            os.close(fd)


def main() -> None:
    """Entry point: vfio-keeper --socket PATH [--exit-on-stdin-eof]."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--exit-on-stdin-eof", action="store_true", help="end with the parent, for tests")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # it is there to hold many
    try:
        KeeperClient(arguments.socket, 1.0).held()
    except KeeperError:
        arguments.socket.unlink(missing_ok=True)
    else:
        sys.exit(f"vfio-keeper: another keeper serves {arguments.socket} and may hold devices: stop that one first")
    keeper, selector = Keeper(), selectors.DefaultSelector()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(arguments.socket))
        arguments.socket.chmod(0o600)
        listener.listen(16)
        selector.register(listener, selectors.EVENT_READ)
        if arguments.exit_on_stdin_eof:
            selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not listener:
                    if not os.read(0, 1):
                        return
                    continue
                try:
                    connection, _address = listener.accept()
                except OSError as error:  # whatever it is, it must not end with what is held
                    print(f"keeper: nobody accepted: {error}", file=sys.stderr, flush=True)
                    time.sleep(ACCEPT_RETRY_SECONDS)
                    continue
                with connection:
                    _serve_one(keeper, connection)


if __name__ == "__main__":
    main()
