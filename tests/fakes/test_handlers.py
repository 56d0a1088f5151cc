"""kopf is used so that a standby replica writes nothing: only handlers without patches, finalizers and Events."""

from pathlib import Path
from typing import Any

import kopf
import pytest

from vfio_operator.handlers import in_cluster, kopf_settings, registry_for
from vfio_operator.settings import OperatorSettings

SETTINGS = OperatorSettings(pod_name="operator-0", advertise_host="127.0.0.1", kubeconfig=Path("unused"))
PATCHING = ("_changing", "_spawning", "_webhooks")  # on.create/update/delete/resume, daemons and timers, admission


class _NoCoordinator:
    """The handlers are only registered here, never called."""


def _handlers(registry: Any, kind: str) -> list[Any]:
    return list(getattr(registry, kind).get_all_handlers())


def test_only_event_and_login_handlers_are_registered() -> None:
    registry = registry_for(_NoCoordinator(), SETTINGS)  # type: ignore[arg-type]
    for kind in PATCHING:
        assert _handlers(registry, kind) == []
    assert {h.fn.__name__ for h in _handlers(registry, "_watching")} == {
        "device",
        "evacuation",
        "migration",
        "pod",
        "policy",
    }
    assert {h.fn.__name__ for h in _handlers(registry, "_activities")} == {"login"}


def test_kopf_posts_no_events_and_leaves_finished_objects_out() -> None:
    settings = kopf_settings(SETTINGS)
    assert settings.posting.enabled is False
    assert settings.scanning.disabled is True
    selectors = settings.watching.label_selectors["vfiomigration.io", "v1alpha1", "vfiomigrations"]
    assert selectors == "!vfiomigration.io/finished"
    # of all the cluster's pods only those that are being moved
    assert settings.watching.label_selectors["", "v1", "pods"] == "vfiomigration.io/migration"


@pytest.mark.parametrize(
    ("host", "server"), [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_a_pod_logs_in_at_the_address_it_was_given(monkeypatch: pytest.MonkeyPatch, host: str, server: str) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    named = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="secret")
    login = in_cluster(named)
    assert login is not None
    assert (login.server, login.token) == (server, "secret")
    assert in_cluster(None) is None
