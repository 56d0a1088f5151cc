"""What a replica believes of its Lease while it gives it back: nothing that is under way then makes it lead again."""

import asyncio
import contextlib
import copy
from typing import Any

import pytest
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from vfio_operator.leader import Leadership, LeadershipLostError


class Leases:
    """The API server's one Lease, which takes a version once. gate: what a write waits for, if anything."""

    def __init__(self) -> None:
        self.version, self.gate = 1, asyncio.Event()
        self.gate.set()
        self.lease: Any = client.V1Lease(
            metadata=client.V1ObjectMeta(name="vfio-operator", resource_version="1"), spec=client.V1LeaseSpec()
        )

    async def read_namespaced_lease(self, _name: str, _namespace: str) -> Any:
        return copy.deepcopy(self.lease)

    async def replace_namespaced_lease(self, _name: str, _namespace: str, lease: Any) -> Any:
        if lease.metadata.resource_version != str(self.version):
            raise ApiException(status=409)
        self.version += 1
        self.lease = copy.deepcopy(lease)
        self.lease.metadata.resource_version = str(self.version)
        await self.gate.wait()  # stored, and its answer under way
        return copy.deepcopy(self.lease)

    @property
    def holder(self) -> str:
        return str(self.lease.spec.holder_identity or "")


def _replica() -> tuple[Leadership, Leases]:
    leases = Leases()
    made = Leadership(None, "ns", "me", "10.0.0.1:1", lease_seconds=60, renew_deadline_seconds=40, retry_seconds=5)
    made._leases = leases
    return made, leases


async def _leading() -> tuple[Leadership, Leases]:
    made, leases = _replica()
    elected = asyncio.Event()

    async def lead() -> None:
        elected.set()

    running = asyncio.create_task(made.run(lead))
    await elected.wait()
    running.cancel()
    assert made.leading
    assert leases.holder == "me"
    return made, leases


def test_who_gave_the_lease_back_raises_no_epoch() -> None:
    async def story() -> None:
        leader, leases = await _leading()
        await leader.release()
        with pytest.raises(LeadershipLostError, match="does not lead any more"):
            await leader.raise_epoch(7)
        assert (leases.holder, leader.leading) == ("", False)

    asyncio.run(story())


def test_an_epoch_that_is_being_raised_does_not_outlast_the_release() -> None:
    async def story() -> None:
        leader, leases = await _leading()
        leases.gate.clear()
        raising = asyncio.create_task(leader.raise_epoch(7))
        while leases.version < 3:  # noqa: ASYNC110 - the fake's own turn
            await asyncio.sleep(0)
        releasing = asyncio.create_task(leader.release())
        await asyncio.sleep(0)
        assert not leader.leading
        leases.gate.set()
        await asyncio.gather(raising, releasing)
        assert (leases.holder, leader.leading) == ("", False)

    asyncio.run(story())


def test_a_renewal_whose_answer_was_lost_is_written_again() -> None:
    """The first one counts for others from when it was stored; this replica would count from the second attempt."""

    async def story() -> None:
        leader, leases = await _leading()
        leases.gate.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await leader._renew()
        stored = leases.version
        leases.gate.set()
        assert await leader._renew()
        assert leader.leading
        assert leases.version == stored + 1

    asyncio.run(story())


def test_who_ends_while_it_takes_the_lease_gives_it_back() -> None:
    async def story() -> None:
        leader, leases = _replica()
        leases.gate.clear()

        async def lead() -> None:
            raise AssertionError("it has not heard that it leads")

        taking = asyncio.create_task(leader.run(lead))
        while leases.holder != "me":  # noqa: ASYNC110 - the fake's own turn
            await asyncio.sleep(0)
        taking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await taking
        leases.gate.set()
        await leader.release()
        assert (leases.holder, leader.leading) == ("", False)

    asyncio.run(story())
