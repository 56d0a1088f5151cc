"""The simulated device obeys the table, carries its state whole, shows a broken barrier as lost writes."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pure.sim_world import MODEL, new_device
from vfio_agent.devices.simfabric import Fabric
from vfio_agent.devices.simfaults import Fault, FaultOp
from vfio_agent.devices.simmodel import ALL_FLAGS, DeviceConfig, SimDevice
from vfio_api.device import DATA_FD_ARCS, IllegalArcError, MigrationFlags, path
from vfio_api.device import DeviceState as S

# --- arcs


@given(
    flags=st.sampled_from([MigrationFlags(value) for value in range(8)]),
    goals=st.lists(st.sampled_from(S), max_size=12),
)
def test_arcs_are_refused_or_gone_as_the_table_says(flags: MigrationFlags, goals: list[S]) -> None:
    device = new_device(flags=flags)
    for goal in goals:
        before = device.state
        try:
            expected = path(before, goal, flags)
        except IllegalArcError:
            with pytest.raises(OSError) as refused:  # noqa: PT011
                device.set_state(goal, 0.0)
            assert refused.value.errno == errno.EINVAL
            assert device.state == before
            continue
        if before is S.RESUMING and expected:
            # Nothing was loaded, so there is no way out but a reset.
            with pytest.raises(OSError, match="not complete") as refused:
                device.set_state(goal, 0.0)
            assert refused.value.errno == errno.EINVAL
            assert device.state is S.RESUMING
            device.reset(0.0)
            continue
        _, stream = device.set_state(goal, 0.0)
        assert device.state == goal
        arcs = list(zip((before, *expected), expected, strict=False))
        assert (stream is not None) == bool(arcs and arcs[-1] in DATA_FD_ARCS)


@given(fails_at=st.integers(0, 2), to_error=st.booleans(), code=st.sampled_from([errno.EIO, errno.ETIMEDOUT]))
def test_an_arc_that_fails_on_the_way_leaves_an_interior_state(fails_at: int, to_error: bool, code: int) -> None:
    device = new_device()
    states = [S.RUNNING, *path(S.RUNNING, S.STOP_COPY, ALL_FLAGS)]
    arc = (states[fails_at], states[fails_at + 1])
    device.faults.append(Fault(FaultOp.ARC, arc, errno=code, to_error=to_error))
    with pytest.raises(OSError, match="injected") as failed:
        device.set_state(S.STOP_COPY, 0.0)
    assert failed.value.errno == code
    assert device.state is (S.ERROR if to_error else arc[0])
    if to_error:
        for goal in set(S) - {S.ERROR}:
            with pytest.raises(OSError, match=r"no arc|Invalid"):
                device.set_state(goal, 0.0)
        device.reset(0.0)
        assert device.state is S.RUNNING
    device.set_state(S.STOP_COPY, 0.0)
    assert device.state is S.STOP_COPY


def test_arcs_take_their_time_and_their_delays() -> None:
    config = DeviceConfig(
        "sim0", MODEL, 1, arc_latency_seconds=1.0, arc_latencies_seconds={(S.RUNNING_P2P, S.STOP): 8.0}
    )
    device = SimDevice(config, Fabric(), now=0.0)
    device.faults.append(Fault(FaultOp.ARC, (S.STOP, S.STOP_COPY), delay_seconds=32.0))
    done, stream = device.set_state(S.STOP_COPY, 100.0)
    assert done == 100.0 + 1.0 + 8.0 + 33.0
    assert stream is not None


def test_an_arc_is_not_done_early_nor_begun_twice() -> None:
    device = SimDevice(DeviceConfig("sim0", MODEL, 1, arc_latency_seconds=1.0), Fabric(), now=0.0)
    device.begin_arc(S.STOP, 0.0)
    with pytest.raises(OSError, match="on an arc"):
        device.begin_arc(S.STOP, 0.5)
    with pytest.raises(ValueError, match="no arc is done"):
        device.finish_arc(0.5)
    device.finish_arc(1.0)
    assert device.state is S.RUNNING_P2P


def test_a_reset_can_fail_and_then_changes_nothing() -> None:
    device = new_device()
    device.write_region(0, b"x")
    device.faults.append(Fault(FaultOp.RESET, errno=errno.EIO))
    with pytest.raises(OSError, match="injected"):
        device.reset(0.0)
    assert device.read_region(0, 1) == b"x"
    device.reset(0.0)
    assert device.read_region(0, 1) == b"\0"


@pytest.mark.parametrize("fault", [{"op": FaultOp.ARC}, {"op": FaultOp.READ, "arc": (S.STOP, S.RESUMING)}])
def test_faults_that_fit_nothing_are_refused(fault: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="arc"):
        Fault(**fault)  # type: ignore[arg-type]
