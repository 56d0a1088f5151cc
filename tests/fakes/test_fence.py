"""A replica whose lease is not certainly its own writes nothing: asked of every method that could."""

import asyncio
import inspect
import time
from typing import Any

import pytest

from vfio_api.types import MigrationKey, Outcome
from vfio_operator.kube import NotLeadingError, OperatorApi
from vfio_operator.kube_lists import Lists
from vfio_operator.leader import Leadership
from vfio_operator.observed import Observed, Wish

KEY = MigrationKey("uid", "team", "move")
BODY = {"metadata": {"uid": "uid", "name": "move", "namespace": "team", "resourceVersion": "1"}}
# what changes nothing: reads, and reviews that are answered and not kept
READS = {
    "OperatorApi": {"migration", "device", "switchover", "node_exists", "review_token", "access", "close"},
    "Lists": {"finished_migrations", "migration_of", "switchover_of"},
}
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "apply_status": (KEY, {}),
    "add_finalizer": (KEY, BODY),
    "finished": (KEY,),
    "release_switchover": (KEY,),
    "set_claim": ("a", "1", None),
    "create_switchover": (Observed(KEY, Wish(())), 1),
    "decide": (KEY, Outcome.COMMIT),
    "publish_ca": (b"",),
    "event": (KEY, "Reason", "message"),
    "delete_migration": (BODY,),
    "unlabel": (KEY,),
}
KEYWORDS = {"finished": {"switchover": True}}


class _Untouched:
    """A client that must not be used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the API server was asked: {name}")


def deposed() -> OperatorApi:
    api = OperatorApi.__new__(OperatorApi)
    api.client, api.namespace, api.instance = _Untouched(), "vfio-migration", "operator-0"
    for name in ("_objects", "_core", "_authn", "_authz", "_events"):
        setattr(api, name, _Untouched())

    def refuse() -> None:
        raise NotLeadingError("the lease is not fresh")

    api.may_write = refuse
    return api


def writers() -> list[tuple[type, str]]:
    return [
        (kind, name)
        for kind in (OperatorApi, Lists)
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if (inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member))
        and not name.startswith("_")
        and name not in READS[kind.__name__]
    ]


@pytest.mark.parametrize(("kind", "name"), [each for each in writers() if each[1] not in ("connect",)])
def test_every_write_insists_on_the_lease(kind: type, name: str) -> None:
    api = deposed()
    owner: Any = api
    if kind is Lists:
        owner = Lists.__new__(Lists)
        owner._api, owner._objects = api, _Untouched()
    with pytest.raises(NotLeadingError):
        asyncio.run(getattr(owner, name)(*ARGUMENTS[name], **KEYWORDS.get(name, {})))


def test_a_lease_is_its_own_for_its_duration_from_before_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    leadership = Leadership(None, "ns", "me", "", lease_seconds=5, renew_deadline_seconds=3, retry_seconds=1)
    clock = [100.0]
    monkeypatch.setattr(time, "clock_gettime", lambda _which: clock[0])
    leadership.epoch, leadership._fresh_from = 7, 100.0
    clock[0] = 104.9
    leadership.insist()
    clock[0] = 105.0  # others may take it from here on
    with pytest.raises(NotLeadingError, match="lease vfio-operator is not fresh"):
        leadership.insist()
