"""The HTTPS server that the API server asks whether a pod may be evicted (a ValidatingWebhookConfiguration).

Whoever reaches the port can ask: the API server shows no certificate. So nothing that a review says is taken for true
but the name of a pod; see `eviction`. What is no review is answered with an error, which the API server ignores.
"""

import asyncio
import json
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from vfio_api.addresses import listener
from vfio_operator.eviction import Answer, Evictions
from vfio_operator.kube import Json

log = structlog.get_logger()
PATH = "/evict"
FILES = ("tls.crt", "tls.key")
MAX_REVIEW_BYTES = 256 << 10
CLIENT_SECONDS = 5.0
LOOK_SECONDS = 10.0  # how often the certificate's files are looked at
LINGER_SECONDS = 5.0  # until nobody takes this replica for one of the Service's any more: who is not answered evicts
RETRY_AFTER_SECONDS = 1  # clients of Kubernetes ask again by themselves, some times, before they complain
TOO_MANY_REQUESTS = "TooManyRequests"  # metav1.StatusReason, which clients look at; none of a migration's
API_VERSION = "admission.k8s.io/v1"


def pod_of_review(review: object) -> tuple[str, str, bool]:
    """Namespace and name of the pod that is to be evicted, and whether it is only asked for.

    Raises ValueError that says what is wrong with what is no review of an eviction.
    """
    if not isinstance(review, Mapping) or (review.get("apiVersion"), review.get("kind")) != (
        API_VERSION,
        "AdmissionReview",
    ):
        raise ValueError(f"expected an AdmissionReview of {API_VERSION}")
    request = review.get("request")
    if not isinstance(request, Mapping) or not isinstance(request.get("uid"), str):
        raise ValueError("expected an AdmissionReview with request.uid")
    resource, eviction = request.get("resource"), request.get("object")
    what = resource.get("resource") if isinstance(resource, Mapping) else None
    if (what, request.get("subResource"), request.get("operation")) != ("pods", "eviction", "CREATE"):
        raise ValueError(
            f"expected CREATE of pods/eviction, found {request.get('operation')} of {what}/{request.get('subResource')}"
        )
    namespace, name = request.get("namespace"), request.get("name")
    if not isinstance(namespace, str) or not isinstance(name, str) or not namespace or not name:
        raise ValueError("expected request.namespace and request.name of a pod")
    options = eviction.get("deleteOptions") if isinstance(eviction, Mapping) else None
    asked = options.get("dryRun") if isinstance(options, Mapping) else None
    return namespace, name, bool(request.get("dryRun") or asked)


def response_to(review: Mapping[str, Any], answer: Answer) -> Json:
    """The AdmissionReview that answers another one."""
    response: Json = {"uid": review["request"]["uid"], "allowed": answer.allowed}
    if answer.warning:
        response["warnings"] = [answer.warning]
    if not answer.allowed:
        response["status"] = {
            "status": "Failure",
            "code": int(HTTPStatus.TOO_MANY_REQUESTS),
            "reason": TOO_MANY_REQUESTS,
            "message": answer.message,
            "details": {"retryAfterSeconds": RETRY_AFTER_SECONDS},
        }
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}


class Credentials:
    """The certificate in a folder (a mounted Secret); each new connection gets what is there then.

    context: for the server. Raises OSError that says what is wrong with the files, if there is none to begin with.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._seen = _read(folder)
        self.context = self._newest = _context(folder)
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest

    async def run(self, every_seconds: float = LOOK_SECONDS) -> None:
        """Look again and again until cancelled. What does not do is said once, and the one before shown until then."""
        said = ""
        while True:
            await asyncio.sleep(every_seconds)
            try:
                found = await asyncio.to_thread(_read, self._folder)
                if found != self._seen:
                    self._newest = await asyncio.to_thread(_context, self._folder)
                    self._seen = found
                    log.info("certificate of the eviction webhook renewed")
                said = ""
            except OSError as error:
                if str(error) != said:
                    log.error("certificate of the eviction webhook not renewed; it is tried again", error=str(error))
                said = str(error)


def _read(folder: Path) -> tuple[bytes, ...]:
    try:
        return tuple((folder / name).read_bytes() for name in FILES)
    except OSError as error:
        raise OSError(f"{error.filename} cannot be read: {error.strerror}; {_EXPECTED}") from error


def _context(folder: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        made.load_cert_chain(folder / FILES[0], folder / FILES[1])
    except (OSError, ValueError) as error:
        raise OSError(f"certificate in {folder} cannot be used: {error}; {_EXPECTED}") from error
    return made


_EXPECTED = f"expected a certificate for the webhook's Service and its key ({', '.join(FILES)}): look at its Secret"


class EvictionServer:
    """Serves from `start` until `close`. client_seconds: for a handshake, for a whole request, and twice for both."""

    def __init__(self, evictions: Evictions, credentials: Credentials, client_seconds: float = CLIENT_SECONDS):
        self._evictions, self._credentials, self._client_seconds = evictions, credentials, client_seconds
        application = web.Application(client_max_size=MAX_REVIEW_BYTES)
        application.router.add_post(PATH, self._review)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=client_seconds)
        self._unheard: set[asyncio.BaseProtocol] = set()  # who has connected, and not sent a whole request yet
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError if it cannot be had."""
        socket = listener(host, port)
        await self._runner.setup()
        self._server = await asyncio.get_running_loop().create_server(
            self._connection, sock=socket, ssl=self._credentials.context, ssl_handshake_timeout=self._client_seconds
        )
        return int(socket.getsockname()[1])

    def ready(self) -> str:
        """See Evictions."""
        return self._evictions.ready()

    async def run(self) -> None:
        """What is to be done beside answering, until cancelled."""
        await asyncio.gather(self._evictions.run(), self._credentials.run())

    async def close(self, linger_seconds: float = LINGER_SECONDS) -> None:
        """Answer on for a while, take no more connections then, and end those that there are once they are answered."""
        await asyncio.sleep(linger_seconds)
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    def _connection(self) -> asyncio.BaseProtocol:
        serve = self._runner.server
        assert serve is not None, "set up before it listens"
        handler = serve()
        self._unheard.add(handler)
        asyncio.get_running_loop().call_later(2 * self._client_seconds, self._hang_up, handler)
        return handler

    def _hang_up(self, handler: web.RequestHandler) -> None:
        """On who took too long; for what comes after a first request, aiohttp's own times count."""
        if handler in self._unheard and handler.transport is not None:
            handler.transport.abort()
        self._unheard.discard(handler)

    async def _review(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            return _refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"expected application/json: {request.content_type}")
        try:
            async with asyncio.timeout(self._client_seconds):
                body = await request.read()
        except TimeoutError:
            return _refusal(HTTPStatus.REQUEST_TIMEOUT, f"expected the whole review within {self._client_seconds:g} s")
        self._unheard.discard(request.protocol)
        try:
            review = json.loads(body)
            namespace, name, dry_run = pod_of_review(review)
        except (ValueError, RecursionError) as error:  # of no JSON, and of no review
            return _refusal(HTTPStatus.BAD_REQUEST, str(error))
        answer = await self._evictions.answer(namespace, name, dry_run=dry_run)
        return web.json_response(response_to(review, answer))


def _refusal(status: HTTPStatus, why: str) -> web.Response:
    return web.Response(status=status, text=f"{why}\n")
