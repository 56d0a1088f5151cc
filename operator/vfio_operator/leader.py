"""Leadership: a Lease taken by compare-and-set, which raises the fencing epoch in the same write.

Source: client-go's leaderelection (which "does not guarantee that only one client is acting as a leader"): that is
why every command carries the epoch and agents refuse older ones. Time is this process's own monotonic clock: another
holder's lease has expired when it has not changed for its duration as seen from here.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import structlog
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from vfio_api.names import ADDRESS_ANNOTATION, EPOCH_ANNOTATION, LEASE_NAME
from vfio_operator.fence import NotLeadingError
from vfio_operator.kube import API_ERRORS, brief

log = structlog.get_logger()


class LeadershipLostError(RuntimeError):
    """The Lease could not be renewed in time, or another replica has it."""


class Leadership:
    """Takes and keeps the Lease for `identity`, reachable at `address`. `epoch` is 0 while not leading."""

    def __init__(
        self,
        api_client: Any,
        namespace: str,
        identity: str,
        address: str,
        *,
        lease_seconds: float,
        renew_deadline_seconds: float,
        retry_seconds: float,
    ):
        self._leases: Any = client.CoordinationV1Api(api_client)
        self._namespace, self._identity, self.address = namespace, identity, address
        self._lease_seconds, self._deadline, self._retry = (
            lease_seconds,
            renew_deadline_seconds,
            retry_seconds,
        )
        self._seen: tuple[str, float] = ("", time.monotonic())
        self._lease: Any = None
        self._writing = asyncio.Lock()
        self._fresh_from = 0.0  # when the last write that took or renewed the Lease was begun
        self._heard = 0.0  # when the API server last told of the Lease
        self.epoch = 0
        self._taking = False  # the write that takes the Lease is under way, or nobody knows what came of it
        self._ended = False  # by `release`: whatever was under way then makes it lead no more
        self.written: Callable[[int], None] = lambda _microseconds: None  # told how long each write of the Lease took

    @property
    def leading(self) -> bool:
        """Whether this process certainly holds the Lease.

        Others count its duration from when they see a write of it, which is after that was begun here. A process that
        was stopped in between sees by its clock that its time is over.
        """
        return not self._ended and self.epoch > 0 and _clock() - self._fresh_from < self._lease_seconds

    def ready(self) -> str:
        """For /readyz, any thread: "" while the API server is heard, be it to lead or to take over; else why not.

        Never whether agents are there: they wait for the operator, see vfio_agent.drain.
        """
        if not self._heard:
            return "it has not heard of the Lease yet"
        silent = time.monotonic() - self._heard
        return f"the API server has not told of the Lease for {silent:.0f} s" if silent > self._lease_seconds else ""

    def insist(self) -> None:
        """Raise NotLeadingError unless this process certainly holds the Lease."""
        if not self.leading:
            raise NotLeadingError(f"lease {LEASE_NAME} is not fresh: this replica may have been replaced")

    async def run(self, elected: Callable[[], Awaitable[None]]) -> None:
        """Wait for the Lease, take it, call `elected` once, then renew. Raises LeadershipLostError at the end of it."""
        while not await self._try(self._take):  # noqa: ASYNC110 - another process gives it free
            await asyncio.sleep(self._retry)
        log.info("leading", epoch=self.epoch, address=self.address)
        await elected()
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(self._retry)
            if await self._try(self._renew, self._deadline / 2):
                renewed = time.monotonic()
            elif not self.leading or time.monotonic() - renewed > self._deadline:
                self.epoch = 0
                raise LeadershipLostError(f"lease {LEASE_NAME} was lost; this replica ends, the next one leads")

    async def raise_epoch(self, above: int) -> None:
        """An agent has seen epoch `above`: never command with less. Raises LeadershipLostError."""
        async with self._writing:
            if not self.leading:
                raise LeadershipLostError("this replica does not lead any more")
            if above >= self.epoch and not await self._write(max(above, self.epoch) + 1):
                raise LeadershipLostError("the epoch could not be raised")

    async def release(self) -> None:
        """On a clean exit: let the next replica lead at once. Best effort."""
        if not (self.leading or self._taking):
            return
        self._ended, self.epoch = True, 0
        try:
            async with asyncio.timeout(max(self._retry, 1.0)), self._writing:
                try:
                    await self._give_back()
                except ApiException as error:
                    if error.status != HTTPStatus.CONFLICT:
                        raise
                    # a write was under way when this replica was told to end: what came of it is not known here
                    self._lease = await self._leases.read_namespaced_lease(LEASE_NAME, self._namespace)
                    if self._lease.spec.holder_identity == self._identity:
                        await self._give_back()
        except API_ERRORS as error:
            log.warning("lease not released; the next leader waits for it to expire", error=brief(error))

    async def _give_back(self) -> None:
        self._lease.spec.holder_identity = ""
        await self._replace()

    async def _try(self, attempt: Callable[[], Awaitable[bool]], seconds: float = 0.0) -> bool:
        """Whether it succeeded within these seconds, or the time between two attempts if that is longer."""
        try:
            async with asyncio.timeout(max(self._retry, seconds, 1.0)):
                found = await attempt()
        except API_ERRORS as error:
            log.warning("lease not reached", error=brief(error))
            return False
        self._heard = time.monotonic()
        return found

    async def _take(self) -> bool:
        lease = await self._leases.read_namespaced_lease(LEASE_NAME, self._namespace)
        holder, version = lease.spec.holder_identity or "", lease.metadata.resource_version
        if holder and holder != self._identity:
            if self._seen[0] != version:
                self._seen = (version, time.monotonic())
            duration = float(lease.spec.lease_duration_seconds or self._lease_seconds)
            if time.monotonic() - self._seen[1] < duration:
                return False
        self._lease = lease
        async with self._writing:
            self._taking = True
            taken = await self._write(int((lease.metadata.annotations or {}).get(EPOCH_ANNOTATION, "0")) + 1)
            self._taking = False
            return taken

    async def _renew(self) -> bool:
        async with self._writing:
            return await self._write(self.epoch)

    async def _write(self, epoch: int) -> bool:
        """Replace the Lease by compare-and-set on the version last seen; False if another replica was faster."""
        stamp, began = datetime.now(UTC), _clock()
        lease = self._lease
        lease.metadata.annotations = {
            **(lease.metadata.annotations or {}),
            EPOCH_ANNOTATION: str(epoch),
            ADDRESS_ANNOTATION: self.address,
        }
        lease.metadata.managed_fields = None
        if lease.spec.holder_identity != self._identity:
            lease.spec.lease_transitions = (lease.spec.lease_transitions or 0) + 1
            lease.spec.acquire_time = stamp
        lease.spec.holder_identity = self._identity
        lease.spec.lease_duration_seconds = max(1, int(self._lease_seconds))
        lease.spec.renew_time = stamp
        try:
            await self._replace()
        except ApiException as error:
            if error.status != 409:
                raise
            if not await self._own_write(epoch):
                self.epoch = 0
                return False
            # others count from when it was stored, which was before now: once more, so that it is as fresh as believed
            self._lease.spec.renew_time = stamp
            await self._replace()
        self.epoch, self._fresh_from = epoch, began
        return True

    async def _own_write(self, epoch: int) -> bool:
        """After a conflict: whether the Lease is as this replica wrote it, in a request whose answer was lost."""
        lease = await self._leases.read_namespaced_lease(LEASE_NAME, self._namespace)
        found = (lease.metadata.annotations or {}).get(EPOCH_ANNOTATION)
        if lease.spec.holder_identity != self._identity or found != str(epoch):
            return False
        self._lease = lease
        return True

    async def _replace(self) -> None:
        began = time.perf_counter()
        self._lease = await self._leases.replace_namespaced_lease(LEASE_NAME, self._namespace, self._lease)
        self.written(int((time.perf_counter() - began) * 1e6))


def _clock() -> float:
    """Seconds, also of the time that the machine was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
