"""The data streams of a source session: one sender per device; connected, awaited and ended together."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vfio_agent.datatls import context
from vfio_agent.frames import StreamHello
from vfio_agent.linkrate import LinkMeter
from vfio_agent.metrics import Stage
from vfio_agent.podstate import POD
from vfio_agent.ratelimit import TokenBucket
from vfio_agent.sender import IO_SECONDS, Sender
from vfio_agent.threads import at_once
from vfio_api.device import DeviceState
from vfio_api.errors import CommandError, StreamError
from vfio_api.types import Command

if TYPE_CHECKING:
    from vfio_agent.session import Session

CONNECT_SECONDS = 10.0


class SourceStreams:
    """The senders of `session`, by device name.

    changed: called with a device's name when there is something new of it. config: what the state of a device does not
    carry; raises DeviceError. Both are called in its sender's thread or in an arc's.
    """

    def __init__(self, session: "Session", changed: Callable[[str], None], config: Callable[[str], bytes]):
        self._session, self._tell, self._config = session, changed, config
        self._senders: dict[str, Sender] = {}
        self._rest: dict[str, int] = {}  # what was sent of each device since it was stopped
        self._news = asyncio.Event()
        self._interrupted = False
        self._awaited: tuple[str, Callable[[Sender], bool]] | None = None  # what for, and whether a stream has it
        self._limit = TokenBucket(session.spec.bandwidth_limit_bytes_per_second)
        self._link = LinkMeter(ceiling=session.spec.bandwidth_limit_bytes_per_second)

    def get(self, name: str) -> Sender | None:
        """The sender of a device; None before `connect`."""
        return self._senders.get(name)

    async def connect(self, command: Command) -> None:
        """Connect every device to its peer and measure the link, once. Raises CommandError, StreamError."""
        if self._senders:
            return
        self._make(command)
        self._awaited = "the end of its state", _finished
        senders = self._senders.values()
        await at_once([partial(s.connect, CONNECT_SECONDS) for s in senders])
        if not command.again:  # nothing is to be forecast any more
            await at_once([s.probe for s in senders])  # at once: they share the link
        self._awaited = None

    def _make(self, command: Command) -> None:
        peers = {peer.node: peer for peer in command.peers}
        pinned = tuple(peer.certificate for peer in command.peers)
        spec = self._session.spec
        tls = context(self._session.identity, pinned, server=False)
        devices = [d for d in spec.devices if not command.again or d.name in command.again]
        if self._session.workloads.hooked is not None and not command.again:
            devices.append(replace(devices[0], name=POD))  # to the counterpart's node: all devices go there
        for device in devices:
            peer = peers.get(device.peer_node)
            if peer is None:
                raise CommandError(
                    f"device {device.name}: the command names no data address for its target node {device.peer_node}",
                    device=device.name,
                )
            self._senders[device.name] = Sender(
                StreamHello(self._session.key.uid, device.name, command.epoch),
                peer.data_address,
                tls,
                (peer.certificate,),
                self._limit,
                partial(self._changed, device.name),
                link=self._link,
                config=bytes if device.name == POD else partial(self._config, device.name),
                carried=partial(self._carried, device.name),
                streams=len(devices),
            )

    def _carried(self, name: str, count: int) -> None:
        """In a device's sender's thread, or in an arc's."""
        stopped = name == POD or self._session.state(name) is DeviceState.STOP_COPY
        self._session.around.metrics.sent(Stage.STOP_COPY if stopped else Stage.PRE_COPY, count)
        if stopped:
            self._rest[name] = self._rest.get(name, 0) + count

    def _changed(self, name: str) -> None:
        for sender in self._senders.values():
            if sender.error is not None:
                self._session.fail(sender.error)
        self._tell(name)
        self._session.on_loop(self._news.set)

    def switch_over(self) -> None:
        """The devices begin to be down. Any thread, any number of times."""
        self._limit.switch_over()

    async def confirm(self, names: Iterable[str]) -> None:
        """Wait until the targets have acknowledged all the initial data that these devices, asked anew, have by now."""
        senders = [sender for name in names if (sender := self._senders.get(name))]
        for sender in senders:
            sender.confirm()
        await self._until("its initial data to be loaded", lambda sender: sender.confirmed, senders)

    async def finish(self) -> None:
        """The devices are in STOP_COPY: wait until everything is sent and acknowledged."""
        for sender in self._senders.values():
            sender.finish()
        await self._until("the end of its state", _finished, list(self._senders.values()))

    async def _until(self, awaited: str, holds: Callable[[Sender], bool], senders: list[Sender]) -> None:
        self._awaited = awaited, holds
        while not all(map(holds, senders)):
            if self._interrupted:
                raise StreamError("the streams were called off before their end")  # an echo of what turned it back
            for sender in self._senders.values():
                if sender.error is not None:
                    raise sender.error
            await self._news.wait()
            self._news.clear()
        self._awaited = None

    def awaited(self) -> tuple[str, str]:
        """The first device whose stream held up the step that was given up, and what it waits for; "" if none did."""
        if self._awaited is None:
            return "", ""
        awaited, holds = self._awaited
        left = [(name, sender, sender.awaiting) for name, sender in self._senders.items() if not holds(sender)]
        if not left:
            return "", ""
        name, sender, text = next((each for each in left if each[2]), left[0])
        return name, f"device {name} has sent {sender.progress.sent_bytes} bytes and awaits {text or awaited}"

    @property
    def rest_bytes(self) -> int:
        """What all streams have sent of their devices' state since these were stopped."""
        return sum(self._rest.values())

    @property
    def passes(self) -> tuple[int, ...]:
        """Of each device, how often it was emptied in pre-copy."""
        return tuple(sender.progress.passes for sender in self._senders.values())

    def link_bytes_per_second(self) -> int:
        """What the streams reached together lately; 0: not measured."""
        return self._link.bytes_per_second()

    def interrupt(self) -> None:
        """Wake whatever waits for a stream: the session turns back or ends."""
        self._interrupted, self._awaited = True, None
        for sender in self._senders.values():
            sender.interrupt()
        self._news.set()

    def forget(self) -> None:
        """Nothing is asked of the streams any more: with their threads goes their memory, of which TLS has the most."""
        self._senders = {}

    def stop(self) -> None:
        """End every stream; blocking, for IO_SECONDS at most for all of them together."""
        senders = list(self._senders.values())
        for sender in senders:
            sender.interrupt()
        deadline = time.monotonic() + IO_SECONDS
        for sender in senders:
            sender.stop(max(0.0, deadline - time.monotonic()))


def _finished(sender: Sender) -> bool:
    return sender.progress.finished
