"""What a session must not do twice, say falsely, or hold up: two agents on simulated devices, told by the test."""

import asyncio
import errno
import socket
import threading

import pytest

from loopback.agents_world import (
    COMMIT,
    COUNT,
    PATIENCE,
    SOURCE,
    TARGET,
    Node,
    Operator,
    assert_sources_run,
    play,
)
from vfio_agent.reporting import report_of
from vfio_agent.source_side import SourceSide
from vfio_api.device import DeviceState as S
from vfio_api.errors import Reason
from vfio_api.types import (
    Goal,
    Peer,
)


def test_prepared_again_does_not_blank_what_is_loaded(nodes: tuple[Node, Node]) -> None:
    """A new leader says Prepared once more while one device is loaded and validated and the other not yet."""

    async def scene(operator: Operator) -> None:
        await operator.pre_copy()
        (session,) = operator.target.agent._sessions.values()
        second = session.device("gpu1")
        await asyncio.to_thread(second.lock.acquire)  # it is busy: its last arc has to wait
        try:
            assert (await operator.tell(SOURCE, Goal.STOP_COPY)).failure is None
            await operator.target.until(TARGET, lambda r: r.devices[0].state is S.STOP)
            arcs = operator.target.node.arcs()
            again = await operator.tell(TARGET, Goal.PREPARED, epoch=2)
            assert (again.failure, again.reached, again.epoch) == (None, Goal.PREPARED, 2)
            assert operator.target.node.arcs() == arcs
            assert operator.target.device("sim0").state() is S.STOP
        finally:
            second.lock.release()
        operator.epoch = 2
        await operator.target.until(TARGET, lambda r: r.reached is Goal.LOADED)
        assert operator.target.states() == [S.STOP] * COUNT
        operator.decision = COMMIT
        assert (await operator.tell(TARGET, Goal.RUNNING)).failure is None
        assert operator.target.device("sim0").read_region(0, 8) == b"marker 0"
        assert (await operator.tell(SOURCE, Goal.RELEASED)).failure is None

    play(nodes, scene)


def test_there_is_no_vote_over_a_device_that_is_not_in_stop(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.pre_copy()
        (session,) = operator.target.agent._sessions.values()
        second = session.device("gpu1")
        await asyncio.to_thread(second.lock.acquire)
        try:
            assert (await operator.tell(SOURCE, Goal.STOP_COPY)).failure is None
            await operator.target.until(TARGET, lambda r: r.devices[0].state is S.STOP)
            await asyncio.to_thread(session.set_state, "gpu0", S.RESUMING)
        finally:
            second.lock.release()
        report = await operator.target.until(TARGET, lambda r: r.failure is not None)
        assert report.failure is not None
        assert (report.failure.reason, report.failure.device) == (Reason.STATE_REFUSED, "gpu0")
        assert report.failure.message == "device gpu0 was loaded, but is in RESUMING now: no vote"
        assert report.reached is Goal.PREPARED
        await operator.roll_back()
        assert_sources_run(operator)

    play(nodes, scene)


def test_a_vote_cannot_be_commanded(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.pre_copy()
        refused = (await operator.tell(TARGET, Goal.LOADED)).failure
        assert refused is not None
        assert "the vote is the target's own word" in refused.message
        assert operator.target.states() == [S.RESUMING] * COUNT
        await operator.roll_back()

    play(nodes, scene)


def test_streams_that_hang_leave_the_arcs_their_threads(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arcs of other migrations must not wait until a peer that does not answer is given up."""
    monkeypatch.setattr("vfio_agent.streams.CONNECT_SECONDS", 10 * PATIENCE)

    async def scene(operator: Operator) -> None:
        await operator.prepare()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            peers = (
                Peer("other", f"127.0.0.1:{silent.getsockname()[1]}", operator.source.reports[SOURCE].certificate),
            )
            operator.source.agent.take(operator.command(SOURCE, Goal.PRE_COPY, peers=peers))
            hanging = [await asyncio.to_thread(silent.accept) for _ in range(COUNT)]
            workers = operator.source.arcs._max_workers
            together = threading.Barrier(workers, timeout=PATIENCE)
            calls = [asyncio.wrap_future(operator.source.arcs.submit(together.wait)) for _ in range(workers)]
            assert sorted(await asyncio.gather(*calls)) == list(range(workers))
            for connection, _ in hanging:
                connection.close()
        await operator.roll_back()

    play(nodes, scene)


# --- what a session reports


def test_a_size_that_the_device_does_not_tell_is_not_zero(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        control = operator.source.node.control
        control.fault("sim1", "size", error=errno.EOPNOTSUPP, times=0)
        control.fault("sim1", "read", hold=True, in_state=S.PRE_COPY)
        await operator.pre_copy()
        assert await asyncio.to_thread(control.await_hold, "sim1", PATIENCE)
        (session,) = operator.source.agent._sessions.values()
        told, silent = report_of(session).devices
        assert (told.size_unknown, silent.size_unknown) == (False, True)
        assert silent.stop_copy_bytes == silent.initial_bytes + silent.dirty_bytes > 0
        assert told.stop_copy_bytes > 0
        control.release("sim1")
        await operator.roll_back()

    play(nodes, scene)


def test_a_busy_device_keeps_the_size_that_it_told_last(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.prepare()
        before = operator.source.reports[SOURCE].devices[0].stop_copy_bytes
        (session,) = operator.source.agent._sessions.values()
        assert isinstance(session.side, SourceSide)
        with session.device("gpu0").lock:
            session.side._sample("gpu0")
        found = report_of(session).devices[0]
        assert (found.stop_copy_bytes, found.size_unknown) == (before, False)
        await operator.roll_back()

    play(nodes, scene)


def test_an_acknowledgement_is_told_at_once(nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """Mere progress would not be told before the test gives up."""

    async def scene(operator: Operator) -> None:
        await operator.prepare()
        monkeypatch.setattr("vfio_agent.agent.PROGRESS_SECONDS", 10 * PATIENCE)
        assert (await operator.tell(SOURCE, Goal.PRE_COPY)).failure is None
        await operator.source.until(SOURCE, lambda r: all(d.initial_acknowledged for d in r.devices))
        operator.source.node.control.reinit("sim1")
        await operator.source.until(SOURCE, lambda r: not r.devices[1].initial_acknowledged)
        await operator.source.until(SOURCE, lambda r: r.devices[1].initial_acknowledged)
        await operator.roll_back()

    play(nodes, scene)
