"""What ends an operator before it could lead is said in one line, by the process itself."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loopback.agents_world import environment
from vfio_operator.pki import Authority

SECONDS = 120


class Broken(BaseHTTPRequestHandler):
    """An API server that answers everything with 503."""

    def do_GET(self) -> None:
        body = json.dumps({"kind": "Status", "code": 503, "message": "etcd is away", "status": "Failure"}).encode()
        self.send_response(503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    path = tmp_path / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {"token": "none"}}],
            }
        )
    )
    yield path
    server.shutdown()
    server.server_close()
    thread.join()


def last_words(kubeconfig: Path, **settings: str) -> tuple[int, list[str]]:
    """Exit code of an operator, and the lines that are no log entries."""
    every = {
        "POD_NAME": "operator-0",
        "KUBECONFIG": str(kubeconfig),
        "ADVERTISE_HOST": "127.0.0.1",
        "LISTEN_HOST": "127.0.0.1",
        "METRICS_HOST": "127.0.0.1",
        "METRICS_PORT": "0",
        **settings,
    }
    made = subprocess.run(
        [sys.executable, "-m", "vfio_operator"],
        env={**environment(), **{f"VFIO_OPERATOR_{key}": value for key, value in every.items()}},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    lines = (made.stdout + made.stderr).splitlines()
    return made.returncode, [line for line in lines if line and not line.startswith("{")]


def test_an_api_server_that_answers_with_errors_ends_it_with_one_line(kubeconfig: Path) -> None:
    code, lines = last_words(kubeconfig)
    (line,) = lines
    assert code == 1
    assert line.startswith("vfio-operator: the API server did not tell what it serves")
    assert "expected an answer, found HTTP 503: etcd is away" in line
    assert line.endswith("look at the API server, a restart asks again")


def test_certificates_that_do_not_do_end_it_with_one_line(kubeconfig: Path, tmp_path: Path) -> None:
    code, lines = last_words(kubeconfig, TLS_DIR=str(tmp_path))
    (line,) = lines
    assert code == 1
    assert line.startswith(f"vfio-operator: cannot run: {tmp_path / 'tls.crt'} cannot be read: No such file")


def test_a_certificate_of_the_eviction_webhook_that_does_not_do_ends_it_with_one_line(
    kubeconfig: Path, tmp_path: Path
) -> None:
    code, lines = last_words(kubeconfig, EVICTION_TLS_DIR=str(tmp_path))
    (line,) = lines
    assert code == 1
    assert line.startswith(f"vfio-operator: cannot run: {tmp_path / 'tls.crt'} cannot be read: No such file")
    assert "expected a certificate for the webhook's Service" in line


def test_a_port_that_is_taken_ends_it_with_one_line(kubeconfig: Path) -> None:
    port = json.loads(kubeconfig.read_text())["clusters"][0]["cluster"]["server"].rpartition(":")[2]
    code, lines = last_words(kubeconfig, METRICS_PORT=port)
    assert code == 1
    (line,) = lines
    assert line.startswith(f"vfio-operator: cannot run: [Errno 98] cannot listen on 127.0.0.1:{port}")


def test_an_authority_alone_is_no_certificate(kubeconfig: Path, tmp_path: Path) -> None:
    for name in ("tls.crt", "ca.crt"):
        (tmp_path / name).write_bytes(Authority().certificate)
    (tmp_path / "tls.key").write_bytes(b"")
    code, lines = last_words(kubeconfig, TLS_DIR=str(tmp_path))
    assert code == 1
    assert "Traceback" not in lines[0]
    assert len(lines) == 1
