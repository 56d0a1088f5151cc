"""Which certificate the control channel's server shows, and that agents trust it before it is shown.

A connection keeps the certificate that it was made with: to renew cuts no stream.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import grpc
import structlog

from vfio_operator.kube import API_ERRORS, brief
from vfio_operator.pki import Authority, ServerIdentity, stored_identity

log = structlog.get_logger()
# From an agent's reading of the ConfigMap to the end of its handshake takes less: see vfio_agent.link.CONNECT_SECONDS.
OVERLAP_SECONDS = 15.0
CERTIFICATES = 30  # that an own authority issues before another one takes its place
LOOK_SECONDS = 10.0  # how often a folder is looked at
Publish = Callable[[tuple[bytes, ...], bool], Awaitable[None]]


async def _overlap() -> None:
    await asyncio.sleep(OVERLAP_SECONDS)


class Source(Protocol):
    """Where certificates come from."""

    def look(self) -> ServerIdentity:
        """The one to be shown now; blocking. Raises OSError that says why there is none."""
        ...

    @property
    def every_seconds(self) -> float:
        """How often to look."""
        ...


class OwnAuthority:
    """Issues a certificate at each look; its authority is in memory, and replaced after so many."""

    def __init__(self, every_seconds: float, certificates: int = CERTIFICATES):
        self.every_seconds, self._certificates = every_seconds, certificates
        self._authority, self._issued = Authority(), 0

    def look(self) -> ServerIdentity:
        """See Source."""
        if self._issued == self._certificates:
            self._authority, self._issued = Authority(), 0
        self._issued += 1
        return self._authority.issue(self.every_seconds, datetime.now(UTC))


class Folder:
    """What somebody else, such as cert-manager, keeps in a folder (a mounted Secret)."""

    def __init__(self, path: Path, every_seconds: float = LOOK_SECONDS):
        self._path, self.every_seconds = path, every_seconds

    def look(self) -> ServerIdentity:
        """See Source."""
        return stored_identity(self._path)


def _configuration(shown: ServerIdentity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(shown.key, shown.certificate)])


class Certificates:
    """What `source` gives, shown from when agents can trust it.

    publish: has agents trust these authorities, and if told so the one that they trusted first before; raises
    API_ERRORS. overlap: waits until an agent that has read the ConfigMap before has dialled. Raises OSError if there is
    no certificate to begin with.
    """

    def __init__(self, source: Source, publish: Publish, overlap: Callable[[], Awaitable[object]] = _overlap):
        self._source, self._publish, self._overlap = source, publish, overlap
        self.shown = self._given = source.look()
        self._turn = asyncio.Lock()
        self._leads = self._withdraw = False

    def credentials(self) -> grpc.ServerCredentials:
        """For a server that shows, to each new connection, what is to be shown then."""
        self._given = self.shown
        # None is no change, as grpc documents and its types do not know
        return grpc.dynamic_ssl_server_credentials(_configuration(self._given), self._renewed)  # type: ignore[arg-type]

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by grpc at each handshake, in any thread. None: what was given last.

        grpc frees what handshakes under way were begun with when it is given another: a new one at each, with dozens of
        agents dialling at once, ended in a segmentation fault (grpcio 1.85, ssl_transport_security).
        """
        shown = self.shown
        if shown == self._given:
            return None
        self._given = shown
        return _configuration(shown)

    async def elected(self) -> None:
        """This replica leads: agents are to trust it. Raises API_ERRORS."""
        async with self._turn:
            await self._publish((self.shown.authority,), True)
            self._leads = True

    async def run(self) -> None:
        """Renew until cancelled. What fails is tried again at the next look; until then the one before is shown."""
        while True:
            await asyncio.sleep(self._source.every_seconds)
            try:
                found = await asyncio.to_thread(self._source.look)
                async with self._turn:
                    await self._take(found)
            except API_ERRORS as error:
                log.error("certificate not renewed; it is tried again", error=brief(error))
            except Exception:  # nobody waits for this task: what it does not know of must not end it
                log.exception("certificate not renewed; it is tried again")

    async def _take(self, found: ServerIdentity) -> None:
        if found != self.shown:
            before = self.shown.authority
            if self._leads and found.authority != before:
                await self._publish((found.authority, before), False)
                await self._overlap()
                self._withdraw = True
            self.shown = found
            log.info("certificate renewed", another_authority=found.authority != before)
        if self._withdraw:  # of an authority that is trusted no more, a stolen key is of no use
            await self._publish((self.shown.authority,), False)
            self._withdraw = False
