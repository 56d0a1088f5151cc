"""Who asked for a migration, and what that user may do with devices. Pure.

Admission writes the requester into an annotation when a VFIOMigration is created (chart: policies-requester.yaml), as
the API server itself writes spec.username, uid, groups and extra of a CertificateSigningRequest. What may be done with
a device is then the API server's to say (SubjectAccessReview); here are the question's subject and the verdict.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vfio_api.errors import Reason
from vfio_api.names import API, DEVICE_USER_ROLE, REQUESTER_ANNOTATION, REQUESTER_POLICY
from vfio_api.types import Failure, Role

# All annotations of an object together may have this many bytes (apimachinery: TotalAnnotationSizeLimitB).
STAMP_BYTES = 256 * 1024
SHOWN_CHARACTERS = 128  # of a user's name, in a message
SHOWN_DEVICES = 3


@dataclass(frozen=True, slots=True)
class Requester:
    """A user as the API server authenticated it. extra is sorted by key: what an authenticator adds, such as scopes."""

    username: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """One end of a pair: the device that its requester must be allowed to use. object_name is the VFIODevice's."""

    pair: str
    role: Role
    node: str
    address: str
    object_name: str


@dataclass(frozen=True, slots=True)
class Access:
    """The API server's answer to one question. note is what it could not find out, if anything."""

    allowed: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a requester may do with the devices that a migration names.

    every_device: `use` on all of them. pod: may delete the pod whose devices are the sources. devices: the answer for
    each VFIODevice that had to be asked for, by object name.
    """

    every_device: bool = False
    pod: bool = False
    devices: tuple[tuple[str, Access], ...] = ()


def requester_of(body: Mapping[str, Any]) -> Requester | None:
    """Who created a VFIOMigration; None if admission has not said so, or in no way that it says it."""
    stamp = (body["metadata"].get("annotations") or {}).get(REQUESTER_ANNOTATION, "")
    if not stamp or len(stamp) > STAMP_BYTES:
        return None
    try:
        # not strict: a control character in a name stands there as it is
        found = json.loads(stamp, strict=False)
        requester = Requester(
            found["username"],
            found["uid"],
            tuple(found["groups"]),
            tuple((key, tuple(values)) for key, values in found["extra"].items()),
        )
        same = requester.username != "" and stamp_of(requester) == stamp
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return requester if same else None


def stamp_of(requester: Requester) -> str:
    """The annotation for a requester, to the letter as the chart's policies write it.

    JSON, of which CEL can do the quotes and the backslashes. One requester has one stamp, and one stamp one
    requester. TypeError if something in it is no string.
    """
    extra = ",".join(f"{_quote(key)}:{_list(values)}" for key, values in sorted(requester.extra))
    return (
        f'{{"username":{_quote(requester.username)},"uid":{_quote(requester.uid)},'
        f'"groups":{_list(requester.groups)},"extra":{{{extra}}}}}'
    )


def _quote(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no string")
    text.encode()  # half a surrogate pair is a UnicodeEncodeError: it could not be sent to the API server
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _list(texts: Sequence[str]) -> str:
    return "[" + ",".join(_quote(text) for text in texts) + "]"


def unknown() -> Failure:
    """Nobody knows who asked."""
    return Failure(
        Reason.REQUESTER_UNKNOWN,
        f"it is not known who asked: annotation {REQUESTER_ANNOTATION} is absent or not as admission writes it. The "
        "migration was created while the chart's admission policies were not active; look for them with `kubectl get "
        f"mutatingadmissionpolicy,mutatingadmissionpolicybinding {REQUESTER_POLICY}`, then delete and create it again",
    )


def to_ask(devices: Sequence[Wanted], *, pod: bool) -> tuple[str, ...]:
    """The VFIODevices that need a `use` of their own; the sources do not if the pod that has them may be deleted."""
    names = (wanted.object_name for wanted in devices if not (pod and wanted.role is Role.SOURCE))
    return tuple(dict.fromkeys(names))


def verdict(requester: Requester, devices: Sequence[Wanted], permissions: Permissions) -> Failure | None:
    """Why the requester may not migrate these devices, naming the first that is forbidden; None if it may."""
    if permissions.every_device:
        return None
    needed = set(to_ask(devices, pod=permissions.pod))
    answers = dict(permissions.devices)
    denied = [
        wanted
        for wanted in devices
        if wanted.object_name in needed and not answers.get(wanted.object_name, Access(False)).allowed
    ]
    if not denied:
        return None
    first = denied[0]
    others = [f"{d.address} on {d.node}" for d in denied[1 : 1 + SHOWN_DEVICES]]
    if len(denied) > 1 + SHOWN_DEVICES:
        others.append(f"{len(denied) - 1 - SHOWN_DEVICES} more")
    also = f" (nor {', '.join(others)})" if others else ""
    note = answers.get(first.object_name, Access(False)).note
    user = shown(requester.username)
    return Failure(
        Reason.FORBIDDEN_DEVICE,
        f"pair {first.pair}: user {user} may not use {first.role.value.lower()} device {first.address} on node "
        f"{first.node}{also}: the verb use on vfiodevices.{API}/{first.object_name} is missing"
        f"{f' ({note})' if note else ''}; check with `kubectl auth can-i use vfiodevices.{API}/{first.object_name} "
        f"--as={shlex.quote(user)}`, have a role with that verb bound (ClusterRole {DEVICE_USER_ROLE} has it for "
        "every device), then delete and create the migration again",
        first.pair,
    )


def pod_verdict(requester: Requester, namespace: str, pod: str, delete: Access, create: Access) -> Failure | None:
    """Why the requester may not have this pod moved: it is deleted, and another created. None if it may do both."""
    user, name = shown(requester.username), f"{namespace}/{pod}"
    for verb, what, access, why in (
        ("delete", f"pods/{pod}", delete, f"may not delete pod {name}, and a pod that is moved is deleted in the end"),
        ("create", "pods", create, f"may not create pods in namespace {namespace}, and pod {name} gets a counterpart"),
    ):
        if not access.allowed:
            return Failure(
                Reason.FORBIDDEN_POD,
                f"spec.source: user {user} {why}: the verb {verb} on {what} in namespace {namespace} is missing"
                f"{f' ({access.note})' if access.note else ''}; check with `kubectl auth can-i {verb} {what} "
                f"-n {namespace} --as={shlex.quote(user)}`, have a role with that verb bound, then delete and create "
                "the migration again",
            )
    return None


def shown(name: str) -> str:
    """A user's name for a message: one line, of bounded length."""
    text = "".join(c if c.isprintable() else "?" for c in name[: SHOWN_CHARACTERS + 1])
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
