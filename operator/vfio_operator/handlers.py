"""kopf's part: five watches. Only event handlers, login, start-up and clean-up are used, so that kopf writes nothing.

kopf's own finalizers, patches and Events would be written by a standby replica too; the leader writes ours itself.
"""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import kopf
from kopf._cogs.structs.references import Insights  # what kopf.operator takes and fills

from vfio_api import API_GROUP, API_VERSION
from vfio_api.names import FINISHED_LABEL, MIGRATION_LABEL
from vfio_operator.coordinator import Coordinator
from vfio_operator.settings import OperatorSettings

KINDS = frozenset({"vfiodevices", "vfioevacuations", "vfiomigrations", "vfiomigrationpolicies", "pods"})


class NothingKept(kopf.DiffBaseStorage):
    """Nobody asks what of an object has changed since it was handled last: it is not copied with each of its events."""

    def build(self, *, body: kopf.Body, extra_fields: Iterable[kopf.FieldSpec] | None = None) -> kopf.BodyEssence:
        """What of an object matters: nothing."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """What mattered when it was handled last: nothing."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Nothing is written into the object."""


async def not_watched(insights: Insights) -> frozenset[str]:
    """Once kopf knows what the API server serves: the kinds that it does not watch, and will not.

    It asks once. A server that has just started serves, for a moment, everything but custom resources.
    """
    await insights.ready_resources.wait()
    return KINDS - {resource.plural for resource in insights.watched_resources}


def in_cluster(login: kopf.ConnectionInfo | None) -> kopf.ConnectionInfo | None:
    """A pod's login at the address that the kubelet gives every pod: kopf's own, a name, needs a DNS that works."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if login is None or not host:
        return login
    return dataclasses.replace(login, server=f"https://{f'[{host}]' if ':' in host else host}:{port}")


def registry_for(coordinator: Coordinator, settings: OperatorSettings) -> kopf.OperatorRegistry:
    """A registry whose handlers feed `coordinator`."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> Any:
        if settings.kubeconfig is not None:
            return kopf.login_with_kubeconfig(**kwargs)
        return in_cluster(kopf.login_with_service_account(**kwargs))

    @kopf.on.event(API_GROUP, API_VERSION, "vfiodevices", registry=registry)
    async def device(event: kopf.RawEvent, **_: Any) -> None:
        coordinator.device(event["object"], deleted=event["type"] == "DELETED")

    @kopf.on.event(API_GROUP, API_VERSION, "vfiomigrations", registry=registry)
    async def migration(event: kopf.RawEvent, **_: Any) -> None:
        coordinator.migration(event["object"], deleted=event["type"] == "DELETED")

    @kopf.on.event(API_GROUP, API_VERSION, "vfioevacuations", registry=registry)
    async def evacuation(event: kopf.RawEvent, **_: Any) -> None:
        coordinator.evacuation(event["object"], deleted=event["type"] == "DELETED")

    @kopf.on.event(API_GROUP, API_VERSION, "vfiomigrationpolicies", registry=registry)
    async def policy(event: kopf.RawEvent, **_: Any) -> None:
        coordinator.policy(event["object"], deleted=event["type"] == "DELETED")

    @kopf.on.event("", "v1", "pods", labels={MIGRATION_LABEL: kopf.PRESENT}, registry=registry)
    async def pod(event: kopf.RawEvent, **_: Any) -> None:
        coordinator.pod(event["object"], deleted=event["type"] == "DELETED")

    return registry


def kopf_settings(settings: OperatorSettings) -> kopf.OperatorSettings:
    """kopf, quiet and quick: no Events, no progress in the objects, short queues, finished objects left out."""
    made = kopf.OperatorSettings()
    made.posting.enabled = False
    made.posting.loggers = False
    made.scanning.disabled = True  # no watch on CRDs or namespaces: see `not_watched`
    made.persistence.diffbase_storage = NothingKept()
    made.watching.chunk_size = 500
    made.watching.label_selectors[API_GROUP, API_VERSION, "vfiomigrations"] = f"!{FINISHED_LABEL}"
    made.watching.label_selectors["", "v1", "pods"] = MIGRATION_LABEL
    made.networking.request_timeout = 30
    made.networking.connect_timeout = 5
    made.networking.error_backoffs = (0.2, 0.5, 1, 2, 4)
    made.queueing.idle_timeout = 0.5
    made.queueing.exit_timeout = 0.5
    made.process.ultimate_exiting_timeout = 10
    return made
