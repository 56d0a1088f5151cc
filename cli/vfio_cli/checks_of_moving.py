"""How migrations are done, and whether `kubectl drain` has them done: the policies and the eviction webhook. Pure."""

from collections.abc import Iterator, Sequence

from vfio_cli.fields import Json
from vfio_cli.findings import UPGRADE, Finding, Found, Level, unseen
from vfio_cli.problems import UserError
from vfio_cli.rivals import Rivals, invalid, rivals

EVICTION_WEBHOOK = "vfio-migration-evictions"


def of_migration_policies(found: Sequence[Json] | UserError) -> Iterator[Finding]:
    """How migrations are done: whether it is clear which policy counts."""
    subject = "VFIOMigrationPolicies"
    if isinstance(found, UserError):
        yield unseen(subject, found)
        return
    wrong = [
        Finding(
            Level.WARNING,
            f"VFIOMigrationPolicy {name}",
            "does not fit this version's model: it counts for nothing",
            f"compare it with kubectl explain vfp.spec, then kubectl edit vfp {name}",
        )
        for name in invalid(found)
    ]
    wrong += map(_in_conflict, rivals(found))
    yield from wrong
    if not wrong:
        yield Finding(Level.OK, subject, f"{len(found)}, none in conflict with another")


def _in_conflict(two: Rivals) -> Finding:
    said = [
        f"{whose} labels {', '.join(f'{key}={value}' for key, value in sorted(labels.items()))}"
        for whose, labels in (("the namespace's", two.namespace), ("its own", two.migration))
        if labels
    ]
    which = f"one with {' and '.join(said)}" if said else "every one"
    return Finding(
        Level.WARNING,
        f"VFIOMigrationPolicies {' and '.join(two.names)}",
        f"are as specific as each other: of migrations, {which} is refused (PolicyConflict)",
        "add a label to the selector of one of them, or delete one: kubectl get vfp",
    )


def of_webhook(found: Found) -> Finding:
    """Whether `kubectl drain` has pods moved; both is sound, as long as it cannot keep every pod from eviction."""
    subject = "eviction webhook"
    if isinstance(found, UserError):
        return unseen(subject, found)
    if found is None:
        return Finding(Level.OK, subject, "is off: kubectl drain ends pods with VFIO devices, and moves none")
    for webhook in found.get("webhooks") or ():
        if webhook.get("failurePolicy") != "Ignore":
            text = "has no failurePolicy Ignore: while no operator answers, no pod of the cluster can be evicted"
            return Finding(Level.FAILED, subject, text, UPGRADE)
        if not webhook.get("clientConfig", {}).get("caBundle"):
            text = "has no caBundle: the API server cannot ask it, so kubectl drain ends pods with VFIO devices"
            step = f"with cert-manager, look at its Certificate and at its cainjector; else {UPGRADE}"
            return Finding(Level.WARNING, subject, text, step)
    return Finding(Level.OK, subject, "is on: kubectl drain waits until pods with VFIO devices have moved")
