"""Which migration a command means: NAME, vfm/NAME as kubectl has it, or NAMESPACE/NAME as every screen has it. Pure."""

import re
from dataclasses import dataclass

from vfio_api import API_GROUP, API_VERSION
from vfio_api.models import RESOURCES, VFIOMigration
from vfio_cli.problems import wrong

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?")
_LONGEST_NAME = 253
_SUBRESOURCES = ("status", "scale")
# Kinds as they stand before a slash in what kubectl prints and takes: none of them is meant for a namespace.
_CLUSTER = (
    ("configmap", "configmaps", "cm"),
    ("cronjob", "cronjobs", "cj"),
    ("customresourcedefinition", "customresourcedefinitions", "crd", "crds"),
    ("daemonset", "daemonsets", "ds"),
    ("deployment", "deployments", "deploy"),
    ("event", "events", "ev"),
    ("job", "jobs"),
    ("lease", "leases"),
    ("namespace", "namespaces", "ns"),
    ("node", "nodes", "no"),
    ("persistentvolume", "persistentvolumes", "pv"),
    ("persistentvolumeclaim", "persistentvolumeclaims", "pvc"),
    ("pod", "pods", "po"),
    ("replicaset", "replicasets", "rs"),
    ("secret", "secrets"),
    ("service", "services", "svc"),
    ("serviceaccount", "serviceaccounts", "sa"),
    ("statefulset", "statefulsets", "sts"),
)
_OTHERS = {word for kind in _CLUSTER for word in kind} | {
    word for kind in RESOURCES for word in (kind.crd.plural, kind.crd.singular, *kind.crd.short_names)
}
_OWN = frozenset((VFIOMigration.crd.plural, VFIOMigration.crd.singular, *VFIOMigration.crd.short_names))


@dataclass(frozen=True, slots=True)
class Named:
    """A name, and the namespace that is said with it or by -n; empty if neither says one."""

    name: str
    namespace: str


def check_namespace(value: str, flag: str = "-n") -> None:
    """Raises UserError if the value of -n cannot be the name of a namespace."""
    if not _LABEL.fullmatch(value):
        found = f"expected the name of one namespace (lower-case letters, digits and '-'), found {value!r}"
        raise wrong(flag, found, "see kubectl get ns")


def split(text: str, flag: str | None) -> Named:
    """What a user calls a migration, taken apart; flag is the value of -n. Raises UserError, never guesses."""
    kind, slash, name = text.rpartition("/")
    if not name.strip():
        raise wrong("NAME", f"expected the name of a VFIOMigration, found {text!r}", "see kubectl get vfm -A")
    if not slash:
        return Named(name, flag or "")
    plain = f"type NAME, vfm/NAME or NAMESPACE/NAME, such as {name}"
    word, _, group = kind.lower().partition(".")
    if word in _OWN and group in ("", API_GROUP, f"{API_VERSION}.{API_GROUP}"):
        return Named(name, flag or "")
    if "/" in kind or name in _SUBRESOURCES:
        raise wrong(text, "expected one migration, found a path", plain)
    if word in _OTHERS or group or not _LABEL.fullmatch(kind):
        raise wrong(text, f"expected a VFIOMigration, found {kind!r} before the name", plain)
    if flag and flag != kind:
        found = f"expected one namespace, found {kind} in the name and {flag} in -n"
        raise wrong(text, found, f"type {name} -n {kind}, or {name} -n {flag}")
    return Named(name, kind)


def existing(text: str, flag: str | None) -> Named:
    """The same of one that is looked up: its name must be one that an object can have. Raises UserError."""
    named = split(text, flag)
    if not _NAME.fullmatch(named.name) or len(named.name) > _LONGEST_NAME:
        found = "expected a name as objects have it (lower-case letters, digits, '-' and '.')"
        raise wrong(f"NAME {named.name!r}", found, "see kubectl get vfm -A")
    return named
