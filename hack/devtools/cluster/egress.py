"""How an API server reaches kubelets in guests: an HTTP CONNECT proxy on a unix socket, which knows forwarded ports.

Source: Kubernetes' EgressSelectorConfiguration, proxyProtocol HTTPConnect. `kubectl logs` and `exec` need it.
"""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

REQUEST = re.compile(rb"CONNECT (\S+) HTTP/1\.1\r\n")
MAX_HEAD = 8192
DIAL_SECONDS = 10.0
BUFFER = 65536


class EgressProxy:
    """Listens from the start; leave its context, or `close` it, to end it.

    ports: "address:port" that is asked for -> port of 127.0.0.1 that it is at; whatever else is dialled as it is.
    """

    def __init__(self, folder: Path, ports: Mapping[str, int]):
        self._ports = dict(ports)
        path = folder / "egress.sock"
        self.config = folder / "egress.json"
        """The file for kube-apiserver's --egress-selector-config-file."""
        connection = {"proxyProtocol": "HTTPConnect", "transport": {"uds": {"udsName": str(path)}}}
        self.config.write_text(
            json.dumps(
                {
                    "apiVersion": "apiserver.k8s.io/v1beta1",
                    "kind": "EgressSelectorConfiguration",
                    "egressSelections": [{"name": "cluster", "connection": connection}],
                }
            )
        )
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True, name="egress").start()

    def __enter__(self) -> "EgressProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True, name="egress connection").start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head and len(head) < MAX_HEAD:
                if not (more := client.recv(BUFFER)):
                    return
                head += more
            asked = REQUEST.match(head)
            if asked is None:
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                return
            target = asked[1].decode()
            host, _, port = target.rpartition(":")
            address = ("127.0.0.1", self._ports[target]) if target in self._ports else (host, int(port))
            try:
                server = socket.create_connection(address, DIAL_SECONDS)
            except OSError:
                client.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
                return
            server.settimeout(None)
            with server:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server)
                back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(BUFFER):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
