"""Hosts and ports, in clusters of IPv4, IPv6 or both."""

import os
import socket
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

BACKLOG = 128


def everywhere(host: str) -> str:
    """The address to listen on: `host`, or for "" every one of this host, IPv6 and IPv4 where it has both.

    0.0.0.0 would be deaf in a pod that has IPv6 only, and :: cannot be had where the kernel has none.
    """
    if host:
        return host
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - what is asked for


def listener(host: str, port: int, backlog: int = BACKLOG) -> socket.socket:
    """A listening TCP socket; host as of `everywhere`, port 0 for any. Raises OSError that says where."""
    where = everywhere(host)
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    try:
        return socket.create_server((where, port), family=family, backlog=backlog, dualstack_ipv6=where == "::")
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)  # its own text has the address once more
        raise OSError(error.errno, f"cannot listen on {joined(where, port)}: {why}") from error


def joined(host: str, port: int) -> str:
    """ "host:port", with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def find_way_once(settings: Any) -> None:
    """Have a client of the API server (its Configuration) look once for a proxy that the environment names.

    Otherwise aiohttp does so anew for each request, and looks for ~/.netrc, each in another thread: two changes of
    thread for every request, also for those that are made while devices are down.
    """
    where = urlsplit(settings.host)
    if not settings.proxy and not proxy_bypass(where.hostname or ""):
        settings.proxy = getproxies().get(where.scheme)
    settings.client_session_kwargs = {"trust_env": False}
