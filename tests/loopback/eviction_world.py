"""The eviction webhook's server on loopback, with a little API server that remembers what was created."""

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp

from vfio_api.models import device_object_name
from vfio_api.names import TLS_NAME
from vfio_operator.eviction import Evictions, Sight
from vfio_operator.kube import OperatorApi
from vfio_operator.kube_evacuations import KubeEvacuations
from vfio_operator.kube_lists import Lists
from vfio_operator.kube_pods import KubePods
from vfio_operator.observe import device_of
from vfio_operator.pki import Authority
from vfio_operator.webhook import Credentials, EvictionServer

Json = dict[str, Any]
GROUP = "/apis/vfiomigration.io/v1alpha1"
MIGRATIONS = f"{GROUP}/namespaces/team/vfiomigrations"
PATIENCE = 30.0


def device(node: str, address: str, pod: str = "", *, migratable: bool = True, **spec: Any) -> Json:
    """A VFIODevice; pod: of namespace team, that uses it."""
    user = {"holder": f"pod team/{pod}", "pod": {"uid": f"uid-{pod}", "namespace": "team", "name": pod}} if pod else {}
    return {
        "metadata": {"name": device_object_name(node, address)},
        "spec": {"nodeName": node, "address": address, **spec},
        "status": {"driver": "sim", "model": "vf", "migratable": migratable, **user},
    }


@dataclass
class FakeApi:
    """What the API server has, by path. gate: what its answers wait for."""

    objects: dict[str, Json] = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def node(self, name: str, **spec: Any) -> None:
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        self.objects[f"/api/v1/nodes/{name}"] = {"metadata": {"name": name}, "spec": spec, "status": ready}

    def pod(self, name: str, **metadata: Any) -> None:
        found = {"name": name, "namespace": "team", "uid": f"uid-{name}", **metadata}
        spec = {"containers": [{"name": "c"}]}
        self.objects[f"/api/v1/namespaces/team/pods/{name}"] = {"metadata": found, "spec": spec}

    def migrations(self) -> list[Json]:
        return [body for path, body in self.objects.items() if path.startswith(MIGRATIONS)]

    def finish(self, number: int, reason: str, *, succeeded: bool = False) -> None:
        """The migration with this number ends, long ago enough to be tried again."""
        ended = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
        kinds = {"Finished": "True", "Succeeded": str(succeeded)}
        conditions = [{"type": kind, "status": status, "lastTransitionTime": ended} for kind, status in kinds.items()]
        self.migrations()[number]["status"] = {"conditions": conditions, "message": reason, "phase": "Failed"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: FakeApi

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.api.gate.wait(PATIENCE)
        if path == f"{GROUP}/vfiodevices":
            items = [body for key, body in self.api.objects.items() if key.startswith(f"{GROUP}/vfiodevices/")]
            return self._answer(200, {"items": items, "metadata": {}})
        found = self.api.objects.get(path)
        return self._answer(200, found) if found else self._answer(404, {"message": f"{path} not found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = f"{self.path.partition('?')[0]}/{body['metadata']['name']}"
        if self.api.objects.setdefault(path, body) is body:
            return self._answer(201, body)
        return self._answer(409, {"message": "it exists"})

    def _answer(self, code: int, body: Json) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextlib.contextmanager
def _serving(api: FakeApi, folder: Path) -> Iterator[Path]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "none"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    try:
        yield path
    finally:
        api.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


def store(folder: Path, authority: Authority) -> None:
    """A certificate of this authority, as a mounted Secret has it."""
    folder.mkdir(exist_ok=True)
    made = authority.issue(3600.0, datetime.now(UTC))
    (folder / "tls.crt").write_bytes(made.certificate)
    (folder / "tls.key").write_bytes(made.key)


@dataclass
class Webhook:
    """A server that listens, and who asks it."""

    api: FakeApi
    folder: Path
    authority: Authority
    evictions: Evictions
    credentials: Credentials
    port: int
    session: aiohttp.ClientSession
    moving: dict[tuple[str, str], Json]
    emptied: set[str]
    inventory: dict[tuple[str, str], Any]

    def trusting(self, authority: Authority | None = None) -> ssl.SSLContext:
        """A client's context."""
        pem = (authority or self.authority).certificate.decode()
        return ssl.create_default_context(cadata=pem)

    async def post(self, body: object, path: str = "/evict", **options: Any) -> tuple[int, str]:
        """Post JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": options.pop("kind", "application/json")}
        context = self.trusting(options.pop("authority", None))
        url = f"https://127.0.0.1:{self.port}{path}"
        async with self.session.post(
            url, data=data, headers=headers, ssl=context, server_hostname=TLS_NAME, **options
        ) as answer:
            return answer.status, await answer.text()

    async def evict(self, name: str, **request: Any) -> Json:
        """The response to a review of the eviction of a pod of namespace team."""
        status, text = await self.post(review(name, **request))
        assert status == 200, text
        made: Json = json.loads(text)
        assert (made["apiVersion"], made["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
        assert made["response"]["uid"] == "review-1"
        response: Json = made["response"]
        return response

    def see(self, *devices: Json) -> None:
        """The watches show devices, as the API server has them."""
        for body in devices:
            self.api.objects[f"{GROUP}/vfiodevices/{body['metadata']['name']}"] = body
            record = device_of(body)
            self.inventory[record.node, record.address] = record


def review(name: str, **request: Any) -> Json:
    """An AdmissionReview, as kube-apiserver writes it."""
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "review-1",
            "kind": {"group": "policy", "version": "v1", "kind": "Eviction"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "subResource": "eviction",
            "operation": "CREATE",
            "namespace": "team",
            "name": name,
            "object": {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "team"}},
            "dryRun": False,
            **request,
        },
    }


@contextlib.asynccontextmanager
async def webhook(
    folder: Path, *, client_seconds: float = 10.0, answer_seconds: float = 10.0
) -> AsyncIterator[Webhook]:
    """A server on which nothing runs beside: see `Evictions.run` and `Credentials.run`."""
    api, authority = FakeApi(), Authority()
    store(folder / "tls", authority)
    inventory: dict[tuple[str, str], Any] = {}
    moving: dict[tuple[str, str], Json] = {}
    emptied: set[str] = set()
    with _serving(api, folder) as kubeconfig:
        client = await OperatorApi.connect(kubeconfig, "vfio-migration", "operator-0")
        sight = Sight(inventory, lambda: frozenset(emptied), lambda namespace, pod: moving.get((namespace, pod)))
        kube, pods, lists = KubeEvacuations(client), KubePods(client), Lists(client)
        evictions = Evictions(kube, pods, lists, sight, answer_seconds)
        credentials = Credentials(folder / "tls")
        server = EvictionServer(evictions, credentials, client_seconds)
        port = await server.start("127.0.0.1", 0)
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE))
        try:
            yield Webhook(
                api, folder / "tls", authority, evictions, credentials, port, session, moving, emptied, inventory
            )
        finally:
            await session.close()
            await server.close(0.0)
            await client.close()


async def until(condition: Any, *, what: str) -> None:
    """Look again until it is so, whatever that takes on a busy machine."""
    for _ in range(int(PATIENCE * 50)):
        if await condition():
            return
        await asyncio.sleep(0.02)
    raise TimeoutError(what)
