"""Ports that can be listened on again after a restart."""

import secrets
import socket
from pathlib import Path

LOWEST = 10_000
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
TRIES = 100


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, and that the kernel gives to nobody's outgoing connection.

    So whoever listens on it finds it free also after having been down for a while. It is drawn at random, since
    others look for ports at the same time. Raises OSError if there is none.
    """
    below = int(RANGE.read_text().split()[0])
    lowest = min(LOWEST, below // 2)
    for _ in range(TRIES):
        port = lowest + secrets.randbelow(below - lowest)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port of 127.0.0.1 below {below} was free in {TRIES} tries")
