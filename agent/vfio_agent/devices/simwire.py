"""What the simulator and its clients say to each other over Unix SOCK_SEQPACKET sockets.

Requests carry the socket for their reply with them (SCM_RIGHTS). Duplicates of a device fd are used by
several processes, and a process may be killed between its request and the reply: with replies on the shared
socket the next user would take a stranger's reply for its own. An ioctl has no such trouble, so neither has
this.
"""

import contextlib
import errno
import json
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any

from vfio_agent.devices.simstate import os_error

# The data stream: request (operation, length), for a write followed by the data; reply (errno, flags, two numbers),
# for a read followed by the data.
DATA_REQUEST = struct.Struct("<II")
DATA_REPLY = struct.Struct("<iIQQ")
FLAG_REINIT = 1
OP_READ, OP_WRITE, OP_INFO = range(3)
MAX_CHUNK = 128 * 1024

_MAX_REQUEST = 64 * 1024
_PART = 64 * 1024
# A whole chunk must fit a socket buffer, or the packet is refused.
_SOCKET_BUFFER = 4 * MAX_CHUNK


def seqpacket() -> socket.socket:
    """A new Unix socket that keeps packets apart."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def data_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that take whole chunks."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
    return pair


def call(sock: socket.socket, request: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    """Send a request and wait for its reply, with the fd that came with it.

    Safe from several threads and processes at once. Raises OSError as the other side says, ENODEV if it is
    gone.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    received: list[int] = []
    with ours:
        with theirs:
            try:
                socket.send_fds(sock, [json.dumps(request).encode()], [theirs.fileno()])
            except (BrokenPipeError, ConnectionResetError) as e:
                raise os_error(errno.ENODEV, "the simulator is gone") from e
        parts = []
        while True:
            part, fds, _, _ = socket.recv_fds(ours, _PART, 1, socket.MSG_CMSG_CLOEXEC)
            received += fds
            if not part:
                break
            parts.append(part)
    if not parts:
        raise os_error(errno.ENODEV, "the simulator is gone")
    reply = json.loads(b"".join(parts))
    if reply["errno"]:
        raise OSError(reply["errno"], reply["error"])
    return reply, received[0] if received else None


def receive(sock: socket.socket) -> tuple[dict[str, Any], socket.socket] | None:
    """The next request and the socket for its reply; None: the last duplicate of the other end was closed.

    A packet that is no request is dropped.
    """
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(sock, _MAX_REQUEST, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return None
        if not data:
            return None
        if not fds:
            continue
        reply_to = socket.socket(fileno=fds[0])
        with contextlib.suppress(ValueError):
            request = json.loads(data)
            if isinstance(request, dict):
                return request, reply_to
        reply_to.close()


def reply(reply_to: socket.socket, body: Mapping[str, Any], fd: int | None = None) -> None:
    """Answer a request: in packets, as the account of many devices is larger than one. Closes the socket.

    Whoever asked may be dead; that is not the device's concern.
    """
    data = memoryview(json.dumps({"errno": 0, **body}).encode())
    with reply_to, contextlib.suppress(OSError):
        socket.send_fds(reply_to, [data[:_PART]], [] if fd is None else [fd])
        for start in range(_PART, len(data), _PART):
            reply_to.send(data[start : start + _PART])


def failure(error: OSError) -> dict[str, Any]:
    """The reply body for an error."""
    code = error.errno or errno.EIO
    return {"errno": code, "error": error.strerror or os.strerror(code)}
