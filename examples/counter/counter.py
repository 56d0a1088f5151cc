"""A workload that owns VFIO devices and counts through them: the counts are in the devices, and nowhere else.

Before each step it says "try N", after it "done N". Its counterpart on another node begins with what a device holds
("take N"): no count was lost if N is not below what was done, and none is repeated if it goes on with N + 1. Beside its
count each device holds a mark, made up by the first of these ("start"), by which it is known wherever it goes.

    counter.py ADDRESS...

COUNTER_OPEN says how the devices are opened: agent, by the agent's socket; kernel, by /dev/vfio itself.

Python's standard library only.
"""

import array
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import time

BROKER = os.environ.get("VFIO_BROKER", "/run/vfio-agent/broker.sock")
INCOMING = "VFIO_MIGRATION_INCOMING"  # the operator sets it in the counterpart of a pod
PAUSE_SECONDS = float(os.environ.get("COUNTER_PAUSE_SECONDS", "0.005"))
MAX_MESSAGE = 4096
MARK_BYTES = 15  # a queue of mtty that is full reads as an empty one: one less than its 16
LOG = open(os.environ["COUNTER_LOG"], "a") if "COUNTER_LOG" in os.environ else sys.stdout  # noqa: SIM115 - to the end


class Simulated:
    """A device of the simulator: the count is in its scratch registers."""

    modulus = 2**64

    def __init__(self, fd: int):
        self._socket = socket.socket(fileno=fd)

    def read(self) -> int:
        """The count."""
        return int.from_bytes(bytes.fromhex(self._call(op="read_region", offset=0, length=8)["data"]), "big")

    def write(self, count: int) -> None:
        """Replace the count, at once."""
        self._call(op="write_region", offset=0, data=count.to_bytes(8, "big").hex())

    def put_mark(self, mark: bytes) -> None:
        """Beside the count."""
        self._call(op="write_region", offset=8, data=mark.hex())

    def mark(self) -> bytes:
        """What was put there."""
        return bytes.fromhex(self._call(op="read_region", offset=8, length=MARK_BYTES)["data"])

    def _call(self, **request: object) -> dict:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                socket.send_fds(self._socket, [json.dumps(request).encode()], [theirs.fileno()])
            reply = json.loads(ours.recv(65536))
        if reply["errno"]:
            raise OSError(reply["errno"], reply["error"])
        return reply


class Uart:
    """A port of the kernel's mtty: the count, modulo 256, is in its scratch register, the mark in its queue."""

    modulus = 256
    DATA, LINE_STATUS, SCRATCH = 0, 5, 7
    DATA_READY = 1

    def __init__(self, fd: int):
        self._fd = fd
        self._offset = _region_offset(fd)

    def read(self) -> int:
        """The count."""
        return os.pread(self._fd, 1, self._offset + self.SCRATCH)[0]

    def write(self, count: int) -> None:
        """Replace the count, at once."""
        os.pwrite(self._fd, bytes([count % 256]), self._offset + self.SCRATCH)

    def put_mark(self, mark: bytes) -> None:
        """Into the queue, in place of what is there."""
        self._drain()
        for byte in mark:
            os.pwrite(self._fd, bytes([byte]), self._offset + self.DATA)

    def mark(self) -> bytes:
        """What the queue holds: to read takes it out, so it is put back."""
        found = self._drain()
        self.put_mark(found)
        return found

    def _drain(self) -> bytes:
        found = bytearray()
        while os.pread(self._fd, 1, self._offset + self.LINE_STATUS)[0] & self.DATA_READY:
            found += os.pread(self._fd, 1, self._offset + self.DATA)
        return bytes(found)


def _region_offset(fd: int) -> int:
    """Where the device's first region is in its file: VFIO_DEVICE_GET_REGION_INFO of linux/vfio.h."""
    info = bytearray(struct.pack("=IIIIQQ", 32, 0, 0, 0, 0, 0))
    fcntl.ioctl(fd, 0x3B6C, info)
    return struct.unpack("=IIIIQQ", info)[5]


def open_by_itself(address: str) -> int:
    """The device by its legacy group, as any userspace driver does; this process keeps group and container open."""
    group_name = os.path.basename(os.readlink(f"/sys/bus/mdev/devices/{address}/iommu_group"))
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    group = os.open(f"/dev/vfio/{group_name}", os.O_RDWR)
    fcntl.ioctl(group, 0x3B68, array.array("i", [container]))  # VFIO_GROUP_SET_CONTAINER
    fcntl.ioctl(container, 0x3B66, 3)  # VFIO_SET_IOMMU, type 1 v2
    # VFIO_GROUP_GET_DEVICE_FD: only with a mutable buffer does ioctl return the new fd
    return fcntl.ioctl(group, 0x3B6A, bytearray(address.encode() + b"\0"))


def ask(request: dict) -> tuple[socket.socket, dict, list[int]]:
    """A request to the agent, and its first answer; while there is no agent it is asked again."""
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(BROKER)
            connection.send(json.dumps(request).encode())
            return connection, *answer(connection)
        except OSError as error:
            connection.close()
            say("waits", error=str(error))
            time.sleep(0.2)


def answer(connection: socket.socket) -> tuple[dict, list[int]]:
    """One answer of the agent."""
    message, fds, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 8)
    found = json.loads(message) if message else {"error": "the agent has ended"}
    if "error" in found:
        raise OSError(found["error"])
    return found, fds


def take_over() -> "list[Simulated | Uart]":
    """What the pod before this one had, once it runs here."""
    connection, found, fds = ask({"take": True})
    devices = []
    with connection:
        while "running" not in found:
            devices.append(made_of(found, fds))
            found, fds = answer(connection)
    return devices


def say(what: str, **facts: object) -> None:
    """One line of JSON, into the file that COUNTER_LOG names, or to the standard output."""
    print(json.dumps({"what": what, **facts}), file=LOG, flush=True)


def opened(address: str) -> "Simulated | Uart":
    """A device with a new mark, which has counted nothing."""
    if os.environ.get("COUNTER_OPEN", "agent") == "agent":
        connection, found, fds = ask({"open": address, "workload": "counter"})
        connection.close()
        device = made_of(found, fds)
    else:
        device = Uart(open_by_itself(address))
    device.put_mark(os.urandom(MARK_BYTES))
    device.write(0)
    return device


def made_of(found: dict, fds: list[int]) -> "Simulated | Uart":
    """A device that the agent gave."""
    return Simulated(fds[0]) if found["backend"] == "simulated" else Uart(fds[0])


def main() -> None:
    """Count until it is told to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    incoming = bool(os.environ.get(INCOMING))
    devices = take_over() if incoming else [opened(address) for address in sys.argv[1:]]
    marked = [(device.mark().hex(), device) for device in devices]
    for mark, device in marked:
        say("take" if incoming else "start", mark=mark, count=device.read())
    while True:
        for mark, device in marked:
            count = (device.read() + 1) % device.modulus
            say("try", mark=mark, count=count)
            device.write(count)
            say("done", mark=mark, count=count)
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
