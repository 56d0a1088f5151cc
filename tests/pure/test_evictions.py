"""Which migrations keep a pod from being evicted: those that move it, or bring it."""

from typing import Any

import pytest

from vfio_operator.observe import moves

Json = dict[str, Any]


def migration(spec: Json, status: Json | None = None, namespace: str = "team") -> Json:
    return {"metadata": {"namespace": namespace, "name": "m"}, "spec": spec, "status": status or {}}


SOURCE: Json = {"source": {"podName": "web"}, "target": {"nodeName": "node-b"}}
FINISHED = {"conditions": [{"type": "Finished", "status": "True"}]}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (migration(SOURCE), True),
        (migration({"source": {"podName": "other"}}, {"workload": {"targetPod": {"name": "web"}}}), True),
        (migration({"source": {"podName": "other"}, "target": {"podName": "web"}}), True),
        (migration(SOURCE, FINISHED), False),
        (migration(SOURCE, namespace="elsewhere"), False),
        (migration({"source": {"podName": "other"}, "target": {"nodeName": "node-b"}}), False),
        (migration({"source": {"nodeName": "web"}, "target": {"nodeName": "node-b"}}), False),
        (migration({"devices": []}), False),
    ],
)
def test_a_pod_at_either_end_of_a_migration_under_way(body: Json, expected: bool) -> None:
    assert moves(body, "team", "web") is expected
