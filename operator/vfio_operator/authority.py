"""Whether the user who asked for a migration may use its devices: asked of the API server, once, before any effect.

Migrations are namespaced and devices are not, so to create a VFIOMigration is not enough: the requester needs the RBAC
verb `use` on each VFIODevice, or on all. A pod's own devices may also be moved by who may delete that pod. A pod that
is moved is deleted and another created in its place, so its requester must be allowed to do both by hand.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from vfio_api.names import API
from vfio_api.types import Failure
from vfio_operator.kube import OperatorApi
from vfio_operator.requester import (
    Access,
    Permissions,
    Requester,
    Wanted,
    pod_verdict,
    requester_of,
    to_ask,
    unknown,
    verdict,
)

PARALLEL_REVIEWS = 16  # of the at most 512 devices of a migration


async def forbidden(
    api: OperatorApi, body: Mapping[str, Any], devices: Sequence[Wanted], *, pod: str = ""
) -> Failure | None:
    """Why this VFIOMigration may not have these devices, or None.

    To be asked once its devices are resolved and before any is claimed: what has begun is not stopped when a right is
    taken away, since halfway is the worst place to stop. `pod` is the pod, in the migration's namespace, whose own
    devices all sources are ("" if they are named otherwise).

    Raises:
        API_ERRORS: the API server could not be asked; that is no answer, so ask again.
    """
    requester = requester_of(body)
    if requester is None:
        return unknown()
    permissions = await review(api, requester, devices, namespace=body["metadata"]["namespace"], pod=pod)
    return verdict(requester, devices, permissions)


async def may_use_all(api: OperatorApi, body: Mapping[str, Any]) -> tuple[Failure | None, bool]:
    """Whether the requester may use every device there is; with a failure if nobody knows who asked. Errors as
    `forbidden`.
    """
    requester = requester_of(body)
    if requester is None:
        return unknown(), False
    return None, (await api.access(requester, "use", API, "vfiodevices")).allowed


async def pod_forbidden(api: OperatorApi, body: Mapping[str, Any], pod: str) -> Failure | None:
    """Why the requester may not have this pod of the migration's namespace moved, or None.

    To be asked before the pod is looked for: who may not move it is not told what there is of it. Errors as
    `forbidden`.
    """
    requester, namespace = requester_of(body), body["metadata"]["namespace"]
    if requester is None:
        return unknown()
    delete, create = await asyncio.gather(
        api.access(requester, "delete", "", "pods", pod, namespace),
        api.access(requester, "create", "", "pods", namespace=namespace),
    )
    return pod_verdict(requester, namespace, pod, delete, create)


async def review(
    api: OperatorApi, requester: Requester, devices: Sequence[Wanted], *, namespace: str = "", pod: str = ""
) -> Permissions:
    """What the requester may do: one question if it may use every device, else one for each. Errors as `forbidden`."""
    if (await api.access(requester, "use", API, "vfiodevices")).allowed:
        return Permissions(every_device=True)
    own = bool(pod) and (await api.access(requester, "delete", "", "pods", pod, namespace)).allowed
    names = to_ask(devices, pod=own)
    turns = asyncio.Semaphore(PARALLEL_REVIEWS)

    async def ask(name: str) -> Access:
        async with turns:
            return await api.access(requester, "use", API, "vfiodevices", name)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(name)) for name in names]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others were cancelled for it
    return Permissions(pod=own, devices=tuple((name, task.result()) for name, task in zip(names, tasks, strict=True)))
