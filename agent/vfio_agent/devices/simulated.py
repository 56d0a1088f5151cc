"""Simulated VFIO devices as the agent uses them: the client of simulator.py."""

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from vfio_agent.devices import simwire
from vfio_agent.devices.openers import Node
from vfio_agent.devices.protocol import DeviceInfo, NoDataError, Opener, PrecopyInfo
from vfio_agent.devices.simstate import os_error
from vfio_api.device import DeviceState, MigrationFlags


class SimulatedStream:
    """The data fd of a simulated device; protocol.DataStream.

    Not to be shared with other processes. Threads take turns: a request and its reply belong together.
    """

    def __init__(self, fd: int):
        self._socket = socket.socket(fileno=fd)
        self._lock = Lock()
        self._head = bytearray(simwire.DATA_REPLY.size)

    def fileno(self) -> int:
        """The fd; -1 after close."""
        return self._socket.fileno()

    def readinto(self, buffer: memoryview) -> int:
        """Read at most 128 KiB of state straight into `buffer`; 0 at the end of STOP_COPY.

        Raises NoDataError at the temporary end of pre-copy data; OSError ENODEV once the device has left the
        saving states, EBADF for the stream of RESUMING.
        """
        room = min(len(buffer), simwire.MAX_CHUNK)
        if not room:
            return 0
        with self._lock:
            self._request(simwire.OP_READ, room)
            return self._reply(buffer[:room])[1]

    def ready(self) -> bool:
        """See DataStream.ready: the simulator answers at once."""
        return True

    def write(self, data: memoryview) -> int:
        """Load at most 128 KiB of state; returns how many bytes the device took.

        Raises OSError EFAULT, EINVAL or ENOMEM for bytes that are no state for this device, ENODEV once it
        has left RESUMING, EBADF for the stream of the saving states.
        """
        part = data[: simwire.MAX_CHUNK]
        if not part:
            return 0
        with self._lock:
            self._request(simwire.OP_WRITE, len(part), part)
            return self._reply()[1]

    def precopy_info(self) -> PrecopyInfo:
        """VFIO_MIG_GET_PRECOPY_INFO. Raises OSError EINVAL outside of the pre-copy states."""
        with self._lock:
            self._request(simwire.OP_INFO, 0)
            flags, initial, dirty = self._reply()
            return PrecopyInfo(initial, dirty, bool(flags & simwire.FLAG_REINIT))

    def close(self) -> None:
        """Close the fd; the device stays as it is."""
        with self._lock:
            self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, op: int, length: int, data: memoryview | None = None) -> None:
        head = simwire.DATA_REQUEST.pack(op, length)
        try:
            self._socket.sendmsg([head] if data is None else [head, data])
        except (BrokenPipeError, ConnectionResetError) as e:
            raise os_error(errno.ENODEV, "the simulator is gone") from e

    def _reply(self, payload: memoryview | None = None) -> tuple[int, int, int]:
        try:
            received, *_ = self._socket.recvmsg_into([self._head] if payload is None else [self._head, payload])
        except ConnectionResetError:
            received = 0
        if not received:
            raise os_error(errno.ENODEV, "the simulator is gone")
        code, flags, first, second = simwire.DATA_REPLY.unpack(self._head)
        if code == errno.ENOMSG:
            raise NoDataError
        if code:
            raise OSError(code, os.strerror(code))
        return flags, first, second


class SimulatedDevice:
    """An open simulated device; protocol.Device, and what a workload's driver does with one.

    Any number of duplicates of its fd, in any processes, may be used; the device closes, and is blank again,
    with the last of them.
    """

    def __init__(self, address: str, sock: socket.socket):
        self._address = address
        self._socket = sock

    @property
    def address(self) -> str:
        """As the simulator's configuration names it."""
        return self._address

    def fds(self) -> Sequence[int]:
        """The one fd that keeps the device open. Raises OSError EBADF after close."""
        if self._socket.fileno() < 0:
            raise os_error(errno.EBADF, f"{self._address} is closed")
        return (self._socket.fileno(),)

    def flags(self) -> MigrationFlags:
        """VFIO_DEVICE_FEATURE_MIGRATION. Raises OSError ENOTTY if it cannot migrate."""
        return MigrationFlags(self._call("flags")["flags"])

    def state(self) -> DeviceState:
        """VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE (GET)."""
        return DeviceState(self._call("state")["state"])

    def set_state(self, new: DeviceState) -> SimulatedStream | None:
        """Every arc to `new`; returns the data stream if the last one handed it out.

        Raises OSError; the device may then be in any state on the way.
        """
        if new is DeviceState.PRE_COPY:
            self._opt_in()
        _, fd = simwire.call(self._socket, {"op": "set_state", "state": new.value})
        return None if fd is None else SimulatedStream(fd)

    def data_size(self) -> int:
        """Stream bytes that STOP_COPY would (still) produce."""
        return int(self._call("data_size")["bytes"])

    def config(self) -> bytes:
        """The config registers, 64 bytes; b"" if they are blank."""
        return bytes.fromhex(self._call("config")["data"])

    def restore_config(self, data: bytes) -> None:
        """Write all config registers. Raises OSError EINVAL for anything but 64 bytes."""
        self._call("restore_config", data=data.hex())

    def reset(self) -> None:
        """VFIO_DEVICE_RESET: RUNNING and blank."""
        self._call("reset")

    def close(self) -> None:
        """Close this process's fd."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read_region(self, offset: int, length: int) -> bytes:
        """Read scratch registers (256). Raises OSError EINVAL outside of them, EIO in RESUMING and ERROR."""
        return bytes.fromhex(self._call("read_region", offset=offset, length=length)["data"])

    def write_region(self, offset: int, data: bytes) -> None:
        """Write scratch registers; they move with the state.

        Raises OSError EINVAL outside of them, EIO in STOP_COPY, RESUMING and ERROR.
        """
        self._call("write_region", offset=offset, data=data.hex())

    def read_registers(self, offset: int, length: int) -> bytes:
        """Read config registers (64 bytes). Raises OSError EINVAL outside of them."""
        return bytes.fromhex(self._call("read_registers", offset=offset, length=length)["data"])

    def write_registers(self, offset: int, data: bytes) -> None:
        """Write config registers; a reset blanks them, and no state carries them. Raises OSError EINVAL."""
        self._call("write_registers", offset=offset, data=data.hex())

    def start_traffic(self, port: int, peers: Sequence[int]) -> None:
        """Make a blank device the one that answers as `port` and writes to `peers` while it runs.

        A write to a peer that has not been started yet is lost like any other that nobody answers: to start
        several devices with no loss, keep the rate at 0 (SimulatorControl.configure) until all are started.
        Raises OSError EBUSY if it is not blank, EIO if it is not RUNNING.
        """
        self._call("start", port=port, peers=list(peers))

    def _opt_in(self) -> None:
        """VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2, if the device offers it."""
        try:
            self._call("opt_in")
        except OSError as e:
            if e.errno != errno.ENOTTY:
                raise

    def _call(self, op: str, **arguments: Any) -> dict[str, Any]:
        return simwire.call(self._socket, {"op": op, **arguments})[0]


def _connect(path: Path) -> socket.socket:
    sock = simwire.seqpacket()
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        error.filename = str(path)  # a socket's error does not say whose
        raise
    return sock


class SimulatorControl:
    """The simulator beside its devices: its account, and faults. Each call connects anew."""

    def __init__(self, socket_path: str | os.PathLike[str]):
        self._path = Path(socket_path)

    def list(self) -> "list[dict[str, Any]]":
        """Every device: address, model, open."""
        devices: list[dict[str, Any]] = self._call("list")["devices"]
        return devices

    def stats(self) -> dict[str, Any]:
        """{"devices": {address: ...}, "totals": ...}.

        A device: model, state (name), open, port (None: blank), peers, sent and received ({port: writes}),
        lost (gaps it knows of, moves with the state), aborted (its own writes that nobody answered on this
        host), doubled. The totals: simfabric.Totals.
        """
        reply = self._call("stats")
        for device in reply["devices"].values():
            # JSON has no numbers for keys.
            for way in ("sent", "received"):
                device[way] = {int(port): writes for port, writes in device[way].items()}
        return {"devices": reply["devices"], "totals": reply["totals"]}

    def fault(
        self,
        address: str,
        op: str = "arc",
        *,
        arc: tuple[DeviceState, DeviceState] | None = None,
        error: int = 0,
        to_error: bool = False,
        delay_us: int = 0,
        limit_bytes: int = 0,
        ends: bool = False,
        after_bytes: int = 0,
        times: int = 1,
        hold: bool = False,
        in_state: DeviceState | None = None,
    ) -> None:
        """Arm a fault: simfaults.Fault, `op` being its FaultOp. Raises OSError ENODEV, EINVAL."""
        self._call(
            "fault",
            address=address,
            fault={
                "op": op,
                "arc": None if arc is None else [state.value for state in arc],
                "errno": error,
                "to_error": to_error,
                "delay_us": delay_us,
                "limit_bytes": limit_bytes,
                "ends": ends,
                "after_bytes": after_bytes,
                "times": times,
                "hold": hold,
                "in_state": None if in_state is None else in_state.value,
            },
        )

    def clear_faults(self, address: str) -> None:
        """Disarm every fault of a device. Raises OSError ENODEV."""
        self._call("clear_faults", address=address)

    def await_hold(self, address: str, seconds: float) -> bool:
        """Wait until an arc or a read of a device is held; whether that came true. Raises OSError ENODEV."""
        return bool(self._call("await_hold", address=address, seconds=seconds)["held"])

    def release(self, address: str) -> None:
        """Let what is held of a device go on; nothing happens if nothing is. Raises OSError ENODEV."""
        self._call("release", address=address)

    def reinit(self, address: str) -> None:
        """Give a device new initial data. Raises OSError ENODEV, EINVAL outside of pre-copy."""
        self._call("reinit", address=address)

    def configure(self, *, rate_per_second: float, latency_us: float) -> None:
        """Change the P2P traffic: writes each device initiates, and how long one is under way."""
        self._call("configure", p2p={"rate_per_second": rate_per_second, "latency_us": latency_us})

    def _call(self, op: str, **arguments: Any) -> dict[str, Any]:
        with _connect(self._path) as sock:
            return simwire.call(sock, {"op": op, **arguments})[0]


class SimulatedBackend:
    """The simulated devices of one simulator; protocol.Backend."""

    name = "simulated"

    def __init__(self, socket_path: str | os.PathLike[str]):
        self._path = Path(socket_path)
        self._control = SimulatorControl(socket_path)

    def list(self) -> "list[DeviceInfo]":
        """Every device; opener "open" if somebody has it open. Raises OSError if there is no simulator."""
        return [
            DeviceInfo(d["address"], "vfio-sim", d["model"], Opener(0, "open") if d["open"] else None)
            for d in self._control.list()
        ]

    def nodes(self) -> Sequence[Node]:
        """None: a socket does not say whose it is."""
        return ()

    def open(self, address: str) -> SimulatedDevice:
        """Open a device, blank and RUNNING. Raises OSError EBUSY if it is open, ENODEV if there is none."""
        sock = _connect(self._path)
        try:
            simwire.call(sock, {"op": "open", "address": address})
        except BaseException:
            sock.close()
            raise
        return SimulatedDevice(address, sock)

    def adopt(self, address: str, fds: Sequence[int]) -> SimulatedDevice:
        """A device by its fd, which the returned object owns from now on.

        Raises OSError, and leaves the fds alone, if they are not that device (EINVAL) or it is gone (ENODEV).
        """
        if len(fds) != 1:
            raise os_error(errno.EINVAL, f"a simulated device has one fd, not {len(fds)}")
        sock = socket.socket(fileno=fds[0])
        try:
            found = simwire.call(sock, {"op": "describe"})[0]["address"]
            if found != address:
                raise os_error(errno.EINVAL, f"the fd is of {found}, not of {address}")
        except BaseException:
            sock.detach()
            raise
        return SimulatedDevice(address, sock)
