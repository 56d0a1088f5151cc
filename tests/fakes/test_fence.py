"""A replica whose lease is not certainly its own writes nothing: asked of every method that could."""

import asyncio
import contextlib
import inspect
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientOSError, web

from vfio_api.names import HERITAGE_ANNOTATION
from vfio_api.types import MigrationKey, Outcome
from vfio_operator.fence import NotLeadingError
from vfio_operator.kube import OperatorApi
from vfio_operator.kube_claims import KubeClaims
from vfio_operator.kube_evacuations import KubeEvacuations
from vfio_operator.kube_lists import Lists
from vfio_operator.kube_pods import KubePods
from vfio_operator.leader import Leadership
from vfio_operator.observed import Observed, Wish

KEY = MigrationKey("uid", "team", "move")
BODY = {"metadata": {"uid": "uid", "name": "move", "namespace": "team", "resourceVersion": "1"}}
# what changes nothing: reads, and reviews that are answered and not kept
READS = {
    "OperatorApi": {
        "migration",
        "migration_or_none",
        "switchover",
        "namespace_labels",
        "node_exists",
        "review_token",
        "access",
        "close",
    },
    "KubeClaims": {"device"},
    "KubePods": {"get", "claims", "counterpart"},
    "KubeEvacuations": {"get", "migration", "node", "may_take"},
    "Lists": {"follow_finished", "migration_of", "switchover_of"},
}
HERITAGE = {HERITAGE_ANNOTATION: '{"labels":{},"ownerReferences":[]}'}
POD = {"metadata": {"uid": "u", "name": "web", "namespace": "team", "annotations": HERITAGE}}
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "apply_status": (KEY, {}),
    "add_finalizer": (KEY, BODY),
    "finished": (KEY,),
    "release_switchover": (KEY,),
    "KubeClaims.set_claim": ("a", "1", None),
    "KubeClaims.drop_claim": ("a", "uid"),
    "create_switchover": (Observed(KEY, Wish(())), 1),
    "decide": (KEY, Outcome.COMMIT),
    "publish_ca": ((b"",), False),
    "event": (KEY, "Reason", "message"),
    "delete_migration": (BODY,),
    "unlabel": (KEY,),
    "KubePods.mark": (POD, "uid"),
    "KubePods.unmark": ("team", "web", "u"),
    "KubePods.disown": ("team", "web", "u"),
    "KubePods.label": ("team", "web", "u", "uid"),
    "KubePods.create": (KEY, POD),
    "KubePods.adopt": (POD,),
    "KubePods.settle": ("team", "web", "u"),
    "KubePods.delete": ("team", "web", "u"),
    "KubeEvacuations.apply_status": (BODY, {}),
    "KubeEvacuations.create": (BODY,),
    "KubeEvacuations.cancel": ("team", "move"),
    "KubeEvacuations.delete": ("empty", "u"),
}
PARTS = (Lists, KubeClaims, KubePods, KubeEvacuations)  # each a part of the API server, by the client of an OperatorApi
KEYWORDS = {"finished": {"switchover": True}}


class _Untouched:
    """A client that must not be used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the API server was asked: {name}")


def deposed() -> OperatorApi:
    api = OperatorApi.__new__(OperatorApi)
    api.client, api.namespace, api.instance = _Untouched(), "vfio-migration", "operator-0"
    for name in ("_objects", "_urgent", "_core", "_authn", "_authz", "_events"):
        setattr(api, name, _Untouched())

    def refuse() -> None:
        raise NotLeadingError("the lease is not fresh")

    api.may_write = refuse
    return api


def writers() -> list[tuple[type, str]]:
    return [
        (kind, name)
        for kind in (OperatorApi, *PARTS)
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if (inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member))
        and not name.startswith("_")
        and name not in READS[kind.__name__]
    ]


@pytest.mark.parametrize(("kind", "name"), [each for each in writers() if each[1] not in ("connect",)])
def test_every_write_insists_on_the_lease(kind: type, name: str) -> None:
    api = deposed()
    owner: Any = api
    if kind in PARTS:
        owner = kind.__new__(kind)
        owner._api, owner._objects, owner._core = api, _Untouched(), _Untouched()
    arguments = ARGUMENTS.get(f"{kind.__name__}.{name}") or ARGUMENTS[name]
    with pytest.raises(NotLeadingError):
        asyncio.run(getattr(owner, name)(*arguments, **KEYWORDS.get(name, {})))


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


def test_a_request_that_waited_for_its_connection_is_not_sent_by_who_was_replaced_meanwhile(tmp_path: Path) -> None:
    """Its method had asked; it is asked once more when the connection is there. The Lease is not fenced by itself."""

    async def scene() -> list[str]:
        seen: list[str] = []

        async def answer(request: web.Request) -> web.Response:
            seen.append(f"{request.method} {request.path}")
            return web.json_response({"metadata": {}})

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(config_for(port)))
        api = await OperatorApi.connect(kubeconfig, "ns", "operator-0")
        try:
            refused = pytest.raises(ClientOSError, match="replaced meanwhile")
            for fresh, outcome in ((True, contextlib.nullcontext()), (False, refused)):
                left = iter([True, fresh])  # asked by the method, and again with the connection

                def insist(left: Iterator[bool] = left) -> None:
                    if not next(left):
                        raise NotLeadingError("replaced meanwhile")

                api.may_write = insist
                with outcome:
                    await KubeClaims(api).set_claim("device", "1", None)
            await api.client.call_api(
                "PUT", f"http://127.0.0.1:{port}/apis/coordination.k8s.io/v1/namespaces/ns/leases/x"
            )
            await api.migration(KEY)
        finally:
            await api.close()
            await runner.cleanup()
        return seen

    assert [line.partition(" ")[0] for line in asyncio.run(scene())] == ["PATCH", "PUT", "GET"]


def config_for(port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "none"}}],
    }
