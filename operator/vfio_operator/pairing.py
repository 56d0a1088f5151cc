"""The shorthand: which devices of a node move, and onto which free compatible ones. Pure and deterministic.

Compatible means equal in driver, model and migration flags, so compatible devices form groups, and within a group any
assignment is as good as any other: first each source gets the free device of its own address, if there is one, then
what is left is dealt out in the order of the addresses.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from vfio_api.errors import Reason
from vfio_api.models_common import MAX_PAIRS
from vfio_api.types import Failure
from vfio_operator.observed import DeviceRecord, Observed, Pair, Shorthand

_SHOWN = 5


def pair_up(observed: Observed, wanted: Shorthand) -> tuple[tuple[Pair, ...], Failure | None]:
    """The pairs that the shorthand stands for; with a Failure if there are none, too many, or no target for one.

    The message of the failure names every candidate (the first few) and why it is none.
    """
    uid = observed.move.source.uid if wanted.pod and observed.move.source is not None else ""
    sources = _on(observed, wanted.source_node, lambda d: bool(d.migratable and d.holder and uid in ("", d.pod_uid)))
    if not sources:
        return (), _nothing(observed, wanted)
    rigid = _on(observed, wanted.source_node, lambda d: bool(uid and d.pod_uid == uid and not d.migratable))
    if rigid:
        device, others = rigid[0], len(sources) + len(rigid) - 1
        return (), Failure(
            Reason.DEVICE_NOT_MIGRATABLE,
            f"spec.source: {_whose(wanted)} has device {device.address}, which cannot migrate: "
            f"{device.message or 'its driver does not implement VFIO migration'}; a pod's devices move together or not "
            f"at all, and it has {others} more",
        )
    if len(sources) > MAX_PAIRS:
        return (), Failure(
            Reason.UNSUPPORTED_SPEC,
            f"spec.source: {_whose(wanted)} has {len(sources)} migratable devices in use, one migration takes "
            f"at most {MAX_PAIRS}: name some of them in spec.devices",
        )
    free = _on(observed, wanted.target_node, lambda d: not _why_not(observed, d))
    chosen = assign(sources, free)
    names = address_names([source.address for source in sources])
    for source in sources:
        if source.address not in chosen:
            return (), _no_target(observed, wanted, source, len(sources))
    return tuple(
        Pair(names[s.address], s.node, s.address, chosen[s.address].node, chosen[s.address].address) for s in sources
    ), None


def _whose(wanted: Shorthand) -> str:
    return f"pod {wanted.pod} on node {wanted.source_node}" if wanted.pod else f"node {wanted.source_node}"


def _on(observed: Observed, node: str, fits: Callable[[DeviceRecord], bool]) -> list[DeviceRecord]:
    found = [d for (at, _), d in observed.inventory.items() if at == node and fits(d)]
    return sorted(found, key=lambda d: _natural(d.address))


def _natural(address: str) -> tuple[tuple[int, int | str], ...]:
    """gpu2 before gpu10."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", address) if part)


def kind(device: DeviceRecord) -> tuple[str, str, int]:
    """What must be equal on both sides."""
    return device.driver, device.model, device.flags.value


def assign(sources: Sequence[DeviceRecord], free: Sequence[DeviceRecord]) -> dict[str, DeviceRecord]:
    """Source address -> the free device that it gets; those for which there is none are left out."""
    left = {device.address: device for device in free}
    chosen: dict[str, DeviceRecord] = {}
    for source in sources:
        namesake = left.get(source.address)
        if namesake is not None and kind(namesake) == kind(source):
            chosen[source.address] = left.pop(source.address)
    for source in sources:
        if source.address in chosen:
            continue
        match = next((device for device in left.values() if kind(device) == kind(source)), None)
        if match is not None:
            chosen[source.address] = left.pop(match.address)
    return chosen


def _why_not(observed: Observed, device: DeviceRecord) -> str:
    """Why a device cannot be a target of this migration; "" if it can."""
    if not device.migratable:
        return device.message or "it cannot migrate"
    if device.claim_uid and device.claim_uid != observed.key.uid:
        return f"claimed by migration {device.claim_name}"
    if device.holder:
        return f"held by {device.holder}"
    if (device.node, device.address) in observed.reserved:
        return "chosen by another migration"
    return ""


def address_names(addresses: Sequence[str]) -> dict[str, str]:
    """A pair name for each address: the address as a DNS label, with a number if two would be the same."""
    taken: set[str] = set()
    names = {}
    for address in addresses:
        base = re.sub("[^a-z0-9]+", "-", address).strip("-")[:58].strip("-")
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name)
        names[address] = name
    return names


def _nothing(observed: Observed, wanted: Shorthand) -> Failure:
    there = _on(observed, wanted.source_node, lambda _d: True)
    why = [f"{d.address}: {_unused(wanted, d)}" for d in there]
    return Failure(
        Reason.NOTHING_TO_MIGRATE,
        f"spec.source: {_whose(wanted)} has no migratable device in use{_listed(observed, why)}; "
        "`kubectl get vfd` lists what there is",
    )


def _unused(wanted: Shorthand, device: DeviceRecord) -> str:
    if not device.migratable:
        return device.message or "it cannot migrate"
    return f"used by {device.holder}" if device.holder and wanted.pod else "not open"


def _no_target(observed: Observed, wanted: Shorthand, source: DeviceRecord, count: int) -> Failure:
    which = f"device {source.address} on node {source.node} ({_described(source)})"
    return Failure(
        Reason.NO_COMPATIBLE_TARGET,
        f"source {which if observed.shows_all else f'device on node {source.node}'} finds no free compatible device "
        f"on node {wanted.target_node} for a set of {count}"
        f"{_listed(observed, list(_refused(observed, wanted, source)))}; free one, or name pairs in spec.devices",
    )


def _refused(observed: Observed, wanted: Shorthand, source: DeviceRecord) -> Iterator[str]:
    there = _on(observed, wanted.target_node, lambda _d: True)
    for device in sorted(there, key=lambda d: kind(d) != kind(source)):  # its own kind first: they are the likeliest
        if device.address == source.address and device.node == source.node:
            why = "it is the source"
        else:
            why = _why_not(observed, device)
        if not why and kind(device) != kind(source):
            why = f"it is {_described(device)}"
        yield f"{device.address}: {why or 'taken by another device of this set'}"


def _described(device: DeviceRecord) -> str:
    flags = "|".join(flag.name or "" for flag in type(device.flags) if flag in device.flags)
    return f"{device.driver or 'no driver'} {device.model} {flags or 'no flags'}"


def _listed(observed: Observed, reasons: Sequence[str]) -> str:
    if not observed.shows_all:
        return " (which devices there are is told to who may use them all)"
    if not reasons:
        return " (it has none at all)"
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    return f" ({'; '.join(reasons[:_SHOWN])}{more})"
