"""The process that plays a node's kernel: it owns the simulated devices and the bus between them.

A client connects and asks to open a device; that connection is the device's fd from then on. Whoever holds a
duplicate of it can use the device, and when the last one is closed the device is reset and blank, as vfio-pci
does.

One thread serves one connection, so that the requests to a device are served in order and an arc that takes
its time holds up that device only. One lock guards the model; nobody sleeps or talks to a socket while
holding it.
"""

import argparse
import contextlib
import errno
import json
import os
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Any, TextIO

from vfio_agent.devices import simwire
from vfio_agent.devices.protocol import NoDataError
from vfio_agent.devices.simconfig import parse_device, parse_fault
from vfio_agent.devices.simfabric import Fabric
from vfio_agent.devices.simmodel import SimDevice
from vfio_agent.devices.simstate import LoadStream, SaveStream, os_error
from vfio_api.device import DeviceState

# How often the traffic is brought up to date when nothing else does so; bounds the work of one catching up.
_TICK_SECONDS = 0.02


class Simulator:
    """The devices, their bus, and who has them open.

    config: {"devices": [...], "p2p": {"rate_per_second", "latency_us"}}. trace: where to write a line of JSON
    for every arc and everything else that changes what a device is.
    """

    def __init__(self, config: Mapping[str, Any], trace: TextIO | None = None):
        p2p = config.get("p2p", {})
        now = time.monotonic()
        self._fabric = Fabric(p2p.get("rate_per_second", 0), p2p.get("latency_us", 0) / 1e6)
        self._devices: dict[str, SimDevice] = {}
        for each in config["devices"]:
            device = SimDevice(parse_device(each), self._fabric, now)
            if self._devices.setdefault(device.config.address, device) is not device:
                raise ValueError(f"two devices with the address {device.config.address}")
        self._trace_file = trace
        self._lock = Lock()
        self._closed = Condition(self._lock)
        self._holding = Condition(self._lock)
        self._held: set[str] = set()  # devices whose arc or read waits to be released
        self._holders: dict[str, socket.socket] = {}

    def accept(self, listener: socket.socket) -> None:
        """Serve whoever connects, each on a thread of its own; returns when the listener is closed."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            Thread(target=self._serve, args=(connection,), daemon=True).start()

    def halt(self) -> None:
        """Nothing happens to any device any more, whatever its threads are at; there is no way back."""
        self._lock.acquire()

    def run_traffic(self) -> None:
        """Keep the traffic up to date; never returns."""
        while True:
            time.sleep(_TICK_SECONDS)
            with self._lock:
                self._fabric.advance(time.monotonic())

    def _serve(self, connection: socket.socket) -> None:
        device: SimDevice | None = None
        with connection:
            try:
                while (received := simwire.receive(connection)) is not None:
                    request, reply_to = received
                    fd = None
                    try:
                        if device is None and request.get("op") == "open":
                            device = self._open(request["address"], connection)
                            body: dict[str, Any] = {}
                        elif device is None:
                            body = self._control(request)
                        else:
                            body, fd = self._request(device, request)
                    except OSError as e:
                        body = simwire.failure(e)
                    except (KeyError, TypeError, ValueError) as e:
                        body = simwire.failure(os_error(errno.EINVAL, repr(e)))
                    simwire.reply(reply_to, body, fd)
                    if fd is not None:
                        os.close(fd)
            finally:
                if device is not None:
                    self._close(device)

    def _device(self, address: str) -> SimDevice:
        if address not in self._devices:
            raise os_error(errno.ENODEV, address)
        return self._devices[address]

    def _open(self, address: str, connection: socket.socket) -> SimDevice:
        device = self._device(address)
        with self._lock:
            self._await_closing()
            with self._traced("open", device, DeviceState.RUNNING):
                device.open(time.monotonic())
            self._holders[address] = connection
        return device

    def _await_closing(self) -> None:
        """With the lock: let devices whose last fd is closed become closed, as close(2) has returned by then.

        One that is still on an arc stays open meanwhile, as a process in an ioctl keeps its fd.
        """
        while any(self._devices[address].arc is None and _hung_up(holder) for address, holder in self._holders.items()):
            self._closed.wait(_TICK_SECONDS)

    def _close(self, device: SimDevice) -> None:
        with self._lock:
            with self._traced("close", device, DeviceState.RUNNING):
                device.close(time.monotonic())
            del self._holders[device.config.address]
            self._closed.notify_all()

    def _control(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._await_closing()
            now = time.monotonic()
            match request.get("op"):
                case "list":
                    return {
                        "devices": [
                            {"address": address, "model": device.config.model, "open": device.opened}
                            for address, device in self._devices.items()
                        ]
                    }
                case "stats":
                    self._fabric.advance(now)
                    return {
                        "devices": {address: _stats(device) for address, device in self._devices.items()},
                        "totals": asdict(self._fabric.totals()),
                    }
                case "fault":
                    self._device(request["address"]).faults.append(parse_fault(request["fault"]))
                    return {}
                case "clear_faults":
                    self._device(request["address"]).faults.clear()
                    return {}
                case "await_hold":
                    address = self._device(request["address"]).config.address
                    reached = self._holding.wait_for(lambda: address in self._held, float(request["seconds"]))
                    return {"held": reached}
                case "release":
                    self._held.discard(self._device(request["address"]).config.address)
                    self._holding.notify_all()
                    return {}
                case "reinit":
                    self._device(request["address"]).reinit(now)
                    return {}
                case "configure":
                    p2p = request["p2p"]
                    self._fabric.configure(p2p["rate_per_second"], p2p["latency_us"] / 1e6, now)
                    return {}
                case op:
                    raise os_error(errno.EINVAL, f"{op!r} is no request without an open device")

    def _request(self, device: SimDevice, request: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
        op = request.get("op")
        if op in {"flags", "state", "set_state", "data_size", "opt_in"} and not device.config.flags:
            raise os_error(errno.ENOTTY, f"{device.config.address} cannot migrate")
        if op == "set_state":
            return {}, self._set_state(device, DeviceState(request["state"]))
        with self._lock:
            now = time.monotonic()
            match op:
                case "describe":
                    return {"address": device.config.address, "model": device.config.model}, None
                case "flags":
                    return {"flags": int(device.config.flags)}, None
                case "state":
                    return {"state": int(device.state)}, None
                case "data_size":
                    return {"bytes": device.data_size(now)}, None
                case "read_region":
                    return {"data": device.read_region(request["offset"], request["length"]).hex()}, None
                case "write_region":
                    device.write_region(request["offset"], bytes.fromhex(request["data"]))
                case "read_registers":
                    return {"data": device.read_registers(request["offset"], request["length"]).hex()}, None
                case "write_registers":
                    device.write_registers(request["offset"], bytes.fromhex(request["data"]))
                case "config":
                    return {"data": device.get_config().hex()}, None
                case "restore_config":
                    device.restore_config(bytes.fromhex(request["data"]))
                case "opt_in":
                    device.opt_in()
                case "start":
                    with self._traced("start", device, device.state):
                        device.start_traffic(int(request["port"]), tuple(map(int, request["peers"])), now)
                case "reset":
                    with self._traced("reset", device, DeviceState.RUNNING):
                        device.reset(now)
                case _:
                    raise os_error(errno.EINVAL, f"{op!r} is no request to a device")
        return {}, None

    def _set_state(self, device: SimDevice, goal: DeviceState) -> int | None:
        """Every arc to `goal`, each taking its time; returns the last one's data stream as an fd."""
        stream: SaveStream | LoadStream | None = None
        while True:
            with self._lock:
                if device.state is goal:
                    break
                try:
                    arc = device.begin_arc(goal, time.monotonic())
                except OSError as e:
                    self._trace("arc", device, device.state, goal, e.errno)
                    raise
            while (left := arc.ready - time.monotonic()) > 0:
                time.sleep(left)
            if arc.fault is not None and arc.fault.hold:
                with self._lock:
                    self._hold(device)
            with self._lock, self._traced("arc", device, arc.target, arc.began):
                stream = device.finish_arc(time.monotonic())
        if stream is None:
            return None
        ours, theirs = simwire.data_pair()
        Thread(target=self._serve_stream, args=(ours, device, stream), daemon=True).start()
        return theirs.detach()

    def _hold(self, device: SimDevice) -> None:
        """With the lock, which is given up meanwhile: wait until the device is released."""
        address = device.config.address
        self._held.add(address)
        self._holding.notify_all()
        self._holding.wait_for(lambda: address not in self._held)

    def _serve_stream(self, connection: socket.socket, device: SimDevice, stream: SaveStream | LoadStream) -> None:
        head = bytearray(simwire.DATA_REQUEST.size)
        chunk = memoryview(bytearray(simwire.MAX_CHUNK))
        with connection, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while connection.recvmsg_into([head, chunk])[0]:
                op, length = simwire.DATA_REQUEST.unpack(head)
                code = flags = first = second = 0
                payload = chunk[:0]
                try:
                    with self._lock:
                        if op == simwire.OP_READ and device.holds(stream):
                            self._hold(device)
                        now = time.monotonic()
                        if op == simwire.OP_READ:
                            first = device.read(stream, chunk[:length], now)
                            payload = chunk[:first]
                        elif op == simwire.OP_WRITE:
                            first = device.write(stream, chunk[:length])
                        else:
                            info = device.precopy_info(stream, now)
                            first, second = info.initial_bytes, info.dirty_bytes
                            flags = simwire.FLAG_REINIT if info.reinit else 0
                except NoDataError:
                    code = errno.ENOMSG
                except OSError as e:
                    code = e.errno or errno.EIO
                connection.sendmsg([simwire.DATA_REPLY.pack(code, flags, first, second), payload])

    @contextlib.contextmanager
    def _traced(self, event: str, device: SimDevice, target: DeviceState, began: float | None = None) -> Iterator[None]:
        source, code = device.state, 0
        try:
            yield
        except OSError as e:
            code = e.errno or errno.EIO
            raise
        finally:
            self._trace(event, device, source, target, code, began)

    def _trace(
        self,
        event: str,
        device: SimDevice,
        source: DeviceState,
        target: DeviceState,
        code: int | None,
        began: float | None = None,
    ) -> None:
        if self._trace_file is None:
            return
        now = time.monotonic()
        line = {
            "t": now,
            "device": device.config.address,
            "from": source.name,
            "to": target.name,
            "errno": code,
            "event": event,
            "began": now if began is None else began,
            "state": device.state.name,
            "port": device.identity.port if device.identity else None,
        }
        self._trace_file.write(json.dumps(line) + "\n")
        self._trace_file.flush()


def _hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, 0)
    return bool(poll.poll(0))


def _stats(device: SimDevice) -> dict[str, Any]:
    identity, endpoint = device.identity, device.endpoint
    traffic = identity.traffic if identity else {}
    return {
        "model": device.config.model,
        "state": device.state.name,
        "open": device.opened,
        "port": identity.port if identity else None,
        "peers": identity.peers if identity else (),
        "sent": {port: counters.sent for port, counters in traffic.items()},
        "received": {port: counters.received for port, counters in traffic.items()},
        "lost": endpoint.gaps(),
        "aborted": endpoint.aborted,
        "doubled": endpoint.doubled,
    }


def _listen(path: Path) -> socket.socket:
    """Listen at `path`, also where a dead process did. Raises OSError EADDRINUSE if a live one does."""
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with simwire.seqpacket() as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
    listener = simwire.seqpacket()
    try:
        listener.bind(str(path))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _end_at_eof() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the configured devices until SIGTERM or SIGINT; prints "ready" once clients can connect."""
    parser = argparse.ArgumentParser(description="Serve simulated VFIO devices on a Unix socket.")
    parser.add_argument("--socket", type=Path, required=True, help="where to listen (SOCK_SEQPACKET)")
    parser.add_argument("--config", type=Path, required=True, help="JSON: devices, p2p")
    parser.add_argument("--trace", type=Path, help="append a line of JSON for every arc")
    parser.add_argument("--exit-on-stdin-eof", action="store_true", help="end when stdin is closed")
    options = parser.parse_args(arguments)
    # Blocked before any thread begins, so that they stay for sigwait.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with contextlib.ExitStack() as stack:
        trace = stack.enter_context(options.trace.open("a")) if options.trace else None
        try:
            simulator = Simulator(json.loads(options.config.read_bytes()), trace)
        except (KeyError, TypeError, ValueError) as error:
            sys.exit(f"vfio-simulator: {options.config} describes no devices: {type(error).__name__}: {error}")
        listener = stack.enter_context(_listen(options.socket))
        stack.callback(options.socket.unlink, missing_ok=True)
        Thread(target=simulator.accept, args=(listener,), daemon=True).start()
        Thread(target=simulator.run_traffic, daemon=True).start()
        if options.exit_on_stdin_eof:
            Thread(target=_end_at_eof, daemon=True).start()
        print("ready", flush=True)
        signal.sigwait(ends)
        simulator.halt()
    return 0


if __name__ == "__main__":
    sys.exit(main())
