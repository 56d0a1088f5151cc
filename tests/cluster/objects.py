"""Objects of our kinds for the tests of this folder, and what is done with them."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from devtools.plane import KubectlError, Plane
from vfio_api.models import device_object_name

API_VERSION = "vfiomigration.io/v1alpha1"
NAMESPACE = "test-crds"
UID = "6f2f8a1e-7a3f-4a53-9d7e-0d6d5a1f6c01"
NOW, LATER = "2026-11-22T10:00:00Z", "2026-11-22T10:00:01Z"

Object = dict[str, Any]


def pair(name: str = "gpu0", source: str = "0000:3b:00.2", target: str = "0000:5e:00.2") -> Object:
    return {
        "name": name,
        "source": {"nodeName": "node-a", "device": source},
        "target": {"nodeName": "node-b", "device": target},
    }


def migration(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "VFIOMigration",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec or {"devices": [pair()]},
    }


def switchover(uid: str, **spec: Any) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "VFIOSwitchover",
        "metadata": {"name": uid, "namespace": NAMESPACE},
        "spec": {
            "migrationName": "m",
            "migrationUID": uid,
            "epoch": 1,
            "sourceNodes": ["node-a"],
            "targetNodes": ["node-b"],
            "timeoutSeconds": 30,
        }
        | spec,
    }


def device(address: str, **spec: Any) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "VFIODevice",
        "metadata": {"name": device_object_name("node-a", address), "labels": {"test": NAMESPACE}},
        "spec": {"nodeName": "node-a", "address": address, "backend": "Kernel"} | spec,
    }


def create(plane: Plane, item: Object, *flags: str) -> Object:
    """Create an object and return it as stored."""
    created = json.loads(plane.kubectl("create", "-f", "-", "-o", "json", *flags, input=json.dumps(item)))
    assert isinstance(created, dict)
    return created


def patch(plane: Plane, item: Object, change: Object, *flags: str) -> Object:
    """Merge-patch an object and return it as stored."""
    command = ["patch", item["kind"].lower(), item["metadata"]["name"], "--type=merge", "-o", "json"]
    if "namespace" in item["metadata"]:
        command += ["-n", item["metadata"]["namespace"]]
    changed = json.loads(plane.kubectl(*command, *flags, "-p", json.dumps(change)))
    assert isinstance(changed, dict)
    return changed


def refusal(action: Callable[..., Object], *arguments: Any) -> str:
    """Return what the user is told when the API server refuses an action."""
    with pytest.raises(KubectlError) as caught:
        action(*arguments)
    return str(caught.value)


def changed(path: str, value: Any, item: Object) -> Object:
    """Return a copy of the object with the field at `path` ("devices.0.name" below spec) set to the value."""
    copy = deepcopy(item)
    at: Any = copy["spec"]
    *parents, last = path.split(".")
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
    at[int(last) if isinstance(at, list) else last] = value
    return copy


FULL_SPEC: Object = {
    "devices": [pair()],
    "workload": {"pause": {"method": "Freeze"}},
    "strategy": {
        "downtimeLimitMilliseconds": 100,
        "preCopy": "Required",
        "convergenceTimeoutSeconds": 60,
        "onConvergenceTimeout": "Switchover",
        "switchoverAck": False,
        "switchoverTimeoutSeconds": 10,
        "bandwidthLimitBytesPerSecond": "1.5Gi",
    },
    "mode": "Rehearse",
    "cancel": False,
    "ttlSecondsAfterFinished": 3600,
}


def claim(uid: str) -> Object:
    return {"spec": {"claimRef": {"namespace": NAMESPACE, "name": f"m-{uid}", "uid": uid}}}


def decision(outcome: str, by: str = "operator/a", time: str = NOW) -> Object:
    return {"status": {"decision": {"outcome": outcome, "by": by, "time": time}}}
