"""The proxy that disturbs links in the fault matrix does to a connection what it says, and passes bytes otherwise."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from devtools.faults.proxy import Proxy

PATIENCE = 10.0
NOTHING_SECONDS = 0.2  # for what must not come; too short could only hide a fault, never make one


class Echo:
    """A server that sends back what it gets, and counts who connected."""

    def __init__(self) -> None:
        self.accepted = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    @staticmethod
    def _serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(4096):
                connection.sendall(data)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    made = Proxy(lambda: ("127.0.0.1", echo.port))
    yield made
    made.close()


@contextmanager
def connected(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as client:
        yield client


def said(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return received(client, len(data))


def received(client: socket.socket, length: int) -> bytes:
    found = b""
    while len(found) < length and (part := client.recv(length - len(found))):
        found += part
    return found


def assert_silent(client: socket.socket) -> None:
    client.settimeout(NOTHING_SECONDS)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(PATIENCE)


def test_it_passes_bytes_on_both_ways(proxy: Proxy) -> None:
    with connected(proxy) as client:
        assert said(client, b"hello") == b"hello"
        assert proxy.connections == 1
        assert proxy.corrupted == 0


def test_a_cut_ends_the_connection_and_the_next_one_passes(proxy: Proxy) -> None:
    with connected(proxy) as client:
        assert said(client, b"a") == b"a"
        proxy.cut()
        assert client.recv(1) == b""
    with connected(proxy) as client:
        assert said(client, b"b") == b"b"


def test_who_connects_while_it_refuses_is_turned_away(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as client:
        assert said(client, b"a") == b"a"
        proxy.refuse()
        assert client.recv(1) == b""
    with connected(proxy) as client:
        assert client.recv(1) == b""
    assert echo.accepted == 1
    proxy.clear()
    with connected(proxy) as client:
        assert said(client, b"b") == b"b"


@pytest.mark.parametrize(("up", "down"), [(True, True), (True, False), (False, True)])
def test_what_is_frozen_stays_connected_and_comes_later(proxy: Proxy, up: bool, down: bool) -> None:
    with connected(proxy) as client:
        assert said(client, b"a") == b"a"
        proxy.freeze(up=up, down=down)
        client.sendall(b"later")
        assert_silent(client)
        assert proxy.connections == 1
        proxy.clear()
        assert received(client, 5) == b"later"


def test_a_connection_that_is_cut_while_it_is_frozen_ends(proxy: Proxy) -> None:
    with connected(proxy) as client:
        assert said(client, b"a") == b"a"
        proxy.freeze()
        client.sendall(b"never")
        proxy.cut()
        assert client.recv(1) == b""
    proxy.clear()
    with connected(proxy) as client:
        assert said(client, b"b") == b"b"


def test_one_bit_of_what_comes_next_is_turned_and_nothing_after(proxy: Proxy) -> None:
    with connected(proxy) as client:
        proxy.corrupt()
        assert proxy.corrupted == 0
        found = said(client, b"\x00" * 9)
        assert sorted(found) == [0] * 8 + [1]
        assert proxy.corrupted == 1
        assert said(client, b"\x00" * 9) == b"\x00" * 9


def test_what_is_delayed_arrives_whole(proxy: Proxy) -> None:
    with connected(proxy) as client:
        proxy.delay(0.05)
        assert said(client, b"slowly") == b"slowly"


def test_it_goes_where_the_target_is_at_that_time(echo: Echo) -> None:
    """As the link to the operator does, which follows the leader."""
    other = Echo()
    target = [echo.port]
    proxy = Proxy(lambda: ("127.0.0.1", target[0]))
    try:
        with connected(proxy) as client:
            assert said(client, b"a") == b"a"
        target[0] = other.port
        with connected(proxy) as client:
            assert said(client, b"b") == b"b"
        assert (echo.accepted, other.accepted) == (1, 1)
        other.close()
        with connected(proxy) as client:  # nobody listens there
            assert client.recv(1) == b""
    finally:
        proxy.close()
