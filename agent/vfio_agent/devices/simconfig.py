"""Devices and faults as the simulator's configuration and its control describe them in JSON."""

from collections.abc import Mapping
from typing import Any

from vfio_agent.devices.simfaults import Fault, FaultOp
from vfio_agent.devices.simmodel import ALL_FLAGS, DeviceConfig
from vfio_api.device import DeviceState, MigrationFlags


def parse_device(config: Mapping[str, Any]) -> DeviceConfig:
    """A device of the configuration file; times there are in microseconds. Raises KeyError or ValueError."""
    arcs: dict[tuple[DeviceState, DeviceState], float] = {}
    for arc, microseconds in config.get("arc_latencies_us", {}).items():
        source, _, target = arc.partition("->")
        arcs[DeviceState[source], DeviceState[target]] = microseconds / 1e6
    flags = ALL_FLAGS
    if "flags" in config:
        flags = MigrationFlags(0)
        for flag in config["flags"]:
            flags |= MigrationFlags[flag]
    return DeviceConfig(
        address=config["address"],
        model=config["model"],
        size_bytes=int(config["size_bytes"]),
        dirty_rate_bytes_per_second=float(config.get("dirty_rate_bytes_per_second", 0)),
        flags=flags,
        arc_latency_seconds=config.get("arc_latency_us", 0) / 1e6,
        arc_latencies_seconds=arcs,
        precopy_info_v2=bool(config.get("precopy_info_v2", True)),
    )


def parse_fault(fault: Mapping[str, Any]) -> Fault:
    """A fault as SimulatorControl.fault sends it. Raises KeyError or ValueError."""
    arc = fault.get("arc")
    return Fault(
        op=FaultOp(fault["op"]),
        arc=None if arc is None else (DeviceState(arc[0]), DeviceState(arc[1])),
        errno=int(fault.get("errno", 0)),
        to_error=bool(fault.get("to_error", False)),
        delay_seconds=fault.get("delay_us", 0) / 1e6,
        limit_bytes=int(fault.get("limit_bytes", 0)),
        ends=bool(fault.get("ends", False)),
        after_bytes=int(fault.get("after_bytes", 0)),
        times=int(fault.get("times", 1)),
        hold=bool(fault.get("hold", False)),
        in_state=None if fault.get("in_state") is None else DeviceState(fault["in_state"]),
    )
