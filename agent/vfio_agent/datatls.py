"""TLS for the data streams: an ephemeral certificate per session, and contexts that trust exactly the pinned peers."""

import contextlib
import datetime
import os
import secrets
import socket
import ssl
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vfio_api.errors import Reason, StreamError

# For ever: the pin is what counts, and it lives as long as its session. A node whose clock is years off must be able
# to migrate.
VALID_FROM = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
VALID_UNTIL = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class Identity:
    """A key pair of one session: the certificate in DER (what peers pin), both in PEM (what ssl loads)."""

    certificate: bytes
    pem: bytes


def new_identity(name: str) -> Identity:
    """A fresh self-signed P-256 certificate for `name`; its key never touches a disk."""
    key = ec.generate_private_key(ec.SECP256R1())
    # the name must be unique: OpenSSL finds a pinned certificate by its subject
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{secrets.token_hex(8)}.{name}"[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(VALID_FROM)
        .not_valid_after(VALID_UNTIL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Identity(certificate.public_bytes(serialization.Encoding.DER), pem)


def context(identity: Identity, pinned: tuple[bytes, ...], *, server: bool) -> ssl.SSLContext:
    """A TLS 1.3 context that shows `identity` and accepts only peers whose certificate is one of `pinned` (DER).

    Raises StreamError if one of these is no certificate.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False  # names say nothing here: the certificate itself is pinned
    made.verify_mode = ssl.CERT_REQUIRED
    if server:
        made.num_tickets = 0  # no resumption: one connection per device
    for certificate in pinned:
        try:
            made.load_verify_locations(cadata=certificate)
        except (ssl.SSLError, ValueError) as error:
            raise StreamError(
                f"what the operator names as a peer's certificate ({len(certificate)} bytes) is none: {error}",
                reason=Reason.PEER_REFUSED,
            ) from error
    # ssl loads a key from a path only: a memory file, so that it never touches a disk
    fd = os.memfd_create("vfio-session-key")
    try:
        os.write(fd, identity.pem)
        made.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return made


def cut(sock: socket.socket) -> None:
    """End a connection that another thread uses; its calls then fail.

    Not SSLSocket.shutdown: that drops the TLS layer first, and what the other thread sends next would go out in
    plain text.
    """
    with contextlib.suppress(OSError):  # not connected any more
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def check_pin(sock: ssl.SSLSocket, pinned: tuple[bytes, ...]) -> None:
    """Raise StreamError unless the peer showed one of the `pinned` certificates itself."""
    if sock.getpeercert(binary_form=True) not in pinned:
        raise StreamError(
            "the peer's certificate is not the one the operator named for this migration",
            reason=Reason.PEER_REFUSED,
        )
