"""What the plugin asks of the API server: objects as they are, and one line for whatever goes wrong."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
from kubernetes import client, watch

from vfio_api import API_GROUP, API_VERSION
from vfio_cli.fields import phase_of
from vfio_cli.kubeconfig import Login
from vfio_cli.problems import UserError, refused, unreachable

Json = dict[str, Any]
CONNECT_SECONDS, READ_SECONDS = 5.0, 30.0
# A watch is short, so that an API server that hangs is noticed soon after the time that it was asked for.
WATCH_SECONDS, SILENT_SECONDS = 10, 5.0
AGAIN_SECONDS, AGAIN_TIMES = 1.0, 30
GONE = 410
MERGE = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind as the API server's paths have it."""

    root: str
    plural: str
    noun: str

    def path(self, name: str = "", namespace: str = "") -> str:
        """The path of one object, or of all of a namespace, or of all."""
        parts = [self.root, *(["namespaces", quote(namespace, safe="")] if namespace else []), self.plural]
        return "/".join([*parts, *([quote(name, safe="")] if name else [])])

    def called(self, name: str = "", namespace: str = "") -> str:
        """As messages call it."""
        return " ".join([self.noun, "/".join(part for part in (namespace, name) if part)]).strip()


_watch: Any = watch  # it has no types
_OURS = f"/apis/{API_GROUP}/{API_VERSION}"
_ADMISSION = "/apis/admissionregistration.k8s.io/v1"
MIGRATIONS = Kind(_OURS, "vfiomigrations", "VFIOMigration")
SWITCHOVERS = Kind(_OURS, "vfioswitchovers", "VFIOSwitchover")
DEVICES = Kind(_OURS, "vfiodevices", "VFIODevice")
EVACUATIONS = Kind(_OURS, "vfioevacuations", "VFIOEvacuation")
MIGRATION_POLICIES = Kind(_OURS, "vfiomigrationpolicies", "VFIOMigrationPolicy")
EVENTS = Kind("/apis/events.k8s.io/v1", "events", "Event")
NODES = Kind("/api/v1", "nodes", "Node")
PODS = Kind("/api/v1", "pods", "Pod")
CONFIGMAPS = Kind("/api/v1", "configmaps", "ConfigMap")
NAMESPACES = Kind("/api/v1", "namespaces", "Namespace")
CRDS = Kind("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition")
POLICIES = Kind(_ADMISSION, "validatingadmissionpolicies", "ValidatingAdmissionPolicy")
WEBHOOKS = Kind(_ADMISSION, "validatingwebhookconfigurations", "ValidatingWebhookConfiguration")
BINDINGS = Kind(_ADMISSION, "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding")
MUTATIONS = Kind(_ADMISSION, "mutatingadmissionpolicies", "MutatingAdmissionPolicy")
MUTATION_BINDINGS = Kind(_ADMISSION, "mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding")
LEASES = Kind("/apis/coordination.k8s.io/v1", "leases", "Lease")
DEPLOYMENTS = Kind("/apis/apps/v1", "deployments", "Deployment")
DAEMONSETS = Kind("/apis/apps/v1", "daemonsets", "DaemonSet")
REVIEWS = Kind("/apis/authorization.k8s.io/v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview")


def _say_nothing(_: UserError, __: float) -> None:
    """What is told of an API server that is away, if nobody asks."""


class Cluster:
    """One API server and who asks it; every method raises UserError if it does not get what it asks for."""

    def __init__(self, login: Login, *, read_seconds: float = READ_SECONDS):
        self._api, self.namespace, self.context = login.api, login.namespace, login.context
        self.server = str(login.api.configuration.host)
        self.date: datetime | None = None  # of the last answer, by the API server's clock
        self._timeout = (min(CONNECT_SECONDS, read_seconds), read_seconds)

    def list(self, kind: Kind, namespace: str = "", **selectors: str) -> list[Json]:
        """All objects of a namespace, or of all of them. selectors: fieldSelector, labelSelector."""
        answer = self._ask("GET", kind.path("", namespace), kind.called("", namespace), query=selectors)
        return list(answer.get("items", []))

    def get(self, kind: Kind, name: str, namespace: str = "") -> Json:
        """One object."""
        return self._ask("GET", kind.path(name, namespace), kind.called(name, namespace))

    def find(self, kind: Kind, name: str, namespace: str = "") -> Json | None:
        """One object; None if there is none of that name."""
        try:
            return self.get(kind, name, namespace)
        except UserError as problem:
            if problem.status == 404:
                return None
            raise

    def create(self, kind: Kind, body: Json, namespace: str = "", *, dry_run: bool = False) -> Json:
        """A new object, as it is stored. dry_run: only checked, by the API server and by admission."""
        metadata = body.get("metadata", {})
        called = kind.called(metadata.get("name") or metadata.get("generateName", ""), namespace)
        query = {"fieldManager": "kubectl-vfio", "fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        return self._ask("POST", kind.path("", namespace), called, query=query, body=body)

    def change(self, kind: Kind, name: str, namespace: str, change: Json) -> Json:
        """A merge patch; the object as it is then."""
        query = {"fieldManager": "kubectl-vfio"}
        return self._ask(
            "PATCH", kind.path(name, namespace), kind.called(name, namespace), query=query, body=change, content=MERGE
        )

    def delete(self, kind: Kind, name: str, namespace: str) -> None:
        """Delete it; that it is gone already is as good."""
        with contextlib.suppress(GoneError):
            self._ask("DELETE", kind.path(name, namespace), kind.called(name, namespace))

    def now(self) -> datetime:
        """The time by the API server's clock, as of its last answer; ages must not depend on the clock here."""
        return self.date or datetime.now(UTC)

    def raw(self, path: str) -> Json:
        """What the API server says at a path, such as /version."""
        return self._ask("GET", path, path)

    def follow(
        self,
        name: str,
        namespace: str,
        *,
        kind: Kind = MIGRATIONS,
        seconds: float | None = None,
        away: Callable[[UserError, float], None] = _say_nothing,
    ) -> Iterator[Json]:
        """An object of ours now and after every change, for as long as the caller wants to see more.

        An API server that goes away meanwhile is waited for, since that is when people watch: `away` is told each
        time, with the seconds since its last answer, and the object is shown again when it is back. Raises UserError
        if the object is deleted, or if the caller has not left after `seconds`.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        body = self.get(kind, name, namespace)
        uid, missed, heard = body["metadata"]["uid"], 0, time.monotonic()
        yield body
        while deadline is None or time.monotonic() < deadline:
            try:
                if not missed:
                    version = body["metadata"]["resourceVersion"]
                    for found in self._changes(kind, name, namespace, version, _left(deadline)):
                        body, heard = found, time.monotonic()
                        yield body
                newest = self.get(kind, name, namespace)
            except UserError as problem:
                if not problem.passing or missed >= AGAIN_TIMES:
                    raise
                missed += 1
                away(problem, time.monotonic() - heard)
                time.sleep(AGAIN_SECONDS)
                continue
            if newest["metadata"]["uid"] != uid:
                raise _deleted(kind, name, namespace)
            again = missed or newest["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]
            body, missed, heard = newest, 0, time.monotonic()
            if again:
                yield body
        raise _overdue(kind, body, seconds or 0.0)

    def _changes(self, kind: Kind, name: str, namespace: str, version: str, seconds: int) -> Iterator[Json]:
        """Changes of one object after a version, for so long; ends early if the version is too old."""
        objects: Any = client.CustomObjectsApi(self._api)
        listed = objects.list_namespaced_custom_object if namespace else objects.list_cluster_custom_object
        with self._told(kind.called(name, namespace)):
            try:
                for event in _watch.Watch().stream(
                    listed,
                    API_GROUP,
                    API_VERSION,
                    *([namespace] if namespace else []),
                    kind.plural,
                    field_selector=f"metadata.name={name}",
                    resource_version=version,
                    timeout_seconds=seconds,
                    _request_timeout=(CONNECT_SECONDS, seconds + SILENT_SECONDS),
                ):
                    if event["type"] == "DELETED":
                        raise _deleted(kind, name, namespace)
                    yield event["object"]
            except client.ApiException as error:
                if error.status != GONE:
                    raise

    def _ask(
        self,
        method: str,
        path: str,
        called: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content: str = "application/json",
    ) -> Json:
        headers = {"Accept": "application/json", **({"Content-Type": content} if body is not None else {})}
        where = f"{path}?{urlencode(query)}" if query else path
        with self._told(called):
            request = self._api.param_serialize(
                method, where, header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            response = self._api.call_api(*request, _request_timeout=self._timeout)
            self.date = _date(response.headers.get("Date")) or self.date
            text = response.read().decode("utf-8", errors="replace")
            if not 200 <= response.status <= 299:
                raise _problem(response.status, response.reason, text, called)
            answer: Json = json.loads(text)
            return answer

    @contextlib.contextmanager
    def _told(self, called: str) -> Iterator[None]:
        try:
            yield
        except client.ApiException as error:
            if not error.status:
                raise unreachable(self.server, _cause(error.__context__ or error), self.context) from error
            raise _problem(error.status, error.reason, error.body or "", called) from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise unreachable(self.server, _cause(error), self.context) from error


class GoneError(UserError):
    """There is no such object."""


def _problem(status: int, reason: str | None, body: str, called: str) -> UserError:
    made = refused(status, reason or "", body, called)
    if status != 404:
        return made
    return GoneError(made.subject, made.found, made.next_step, status=status, passing=made.passing)


def _date(header: str | None) -> datetime | None:
    try:
        return parsedate_to_datetime(header) if header else None
    except ValueError:
        return None


def _left(deadline: float | None) -> int:
    """Whole seconds for one watch."""
    if deadline is None:
        return WATCH_SECONDS
    return max(1, min(WATCH_SECONDS, math.ceil(deadline - time.monotonic())))


def _deleted(kind: Kind, name: str, namespace: str) -> UserError:
    found = "expected it to finish, found it deleted"
    return UserError(kind.called(name, namespace), found, "look at its Events: kubectl get events", status=404)


def _overdue(kind: Kind, body: Json, seconds: float) -> UserError:
    """It has not ended in time; nothing is done about that here."""
    name, namespace = body["metadata"]["name"], body["metadata"].get("namespace", "")
    within = f"expected it to finish within {seconds:g} s" if seconds else "expected one that has finished"
    found = f"{within}, found it in {phase_of(body)}"
    if not body.get("status"):
        next_step = "no operator has taken it up: kubectl vfio doctor"
    elif kind is EVACUATIONS:
        next_step = f"it goes on: kubectl vfio evacuate {body['spec']['nodeName']}"
    elif body["spec"].get("cancel"):
        next_step = f"it is told to cancel, and goes on with that: kubectl vfio explain {name} -n {namespace}"
    else:
        next_step = f"it goes on: kubectl vfio watch {name} -n {namespace}"
    return UserError(kind.called(name, namespace), found, next_step)


def _cause(error: BaseException) -> str:
    """The last word of a chain of errors: the operating system's or the TLS library's."""
    seen = error
    while (inner := getattr(seen, "reason", None) or seen.__cause__ or seen.__context__) and isinstance(
        inner, BaseException
    ):
        seen = inner
    return getattr(seen, "strerror", None) or str(seen) or type(seen).__name__
