"""Certificates of the control channel: the leader's own authority, and what somebody else's has issued.

The keys of an own authority and of the certificates that it issues live in this process only. Agents learn whom to
trust from a ConfigMap that only the operator may write, at each dial.
"""

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vfio_api.names import TLS_NAME

VALID_FROM = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
# An authority is trusted for as long as the ConfigMap has it, whatever the clocks of the nodes say.
VALID_UNTIL = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
# How far the clocks of a node and of the leader's may lie apart, on top of a certificate's life.
SKEW = datetime.timedelta(days=30)
FILES = ("tls.crt", "tls.key", "ca.crt")  # of a Secret of the type kubernetes.io/tls, as cert-manager writes it


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What the server shows (its certificates, with what is between, and the key), and who vouches for it; all PEM."""

    certificate: bytes
    key: bytes
    authority: bytes


class Authority:
    """A certificate authority in memory; issues certificates for the fixed TLS name."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        # the number makes names of authorities differ: what looks for an issuer by its name finds the right one
        self._name = _name(f"{TLS_NAME} CA {x509.random_serial_number():x}"[:64])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = _builder(self._name, self._name, self._key.public_key(), VALID_UNTIL)
        made = builder.add_extension(constraints, critical=True).add_extension(usage, critical=True)
        self.certificate = _pem(made.sign(self._key, hashes.SHA256()))

    def issue(self, seconds: float, moment: datetime.datetime) -> ServerIdentity:
        """A certificate that is to be used for so long from `moment` (aware) on, and is good for SKEW longer."""
        key = ec.generate_private_key(ec.SECP256R1())
        until = min(moment + datetime.timedelta(seconds=seconds) + SKEW, VALID_UNTIL)
        made = (
            _builder(_name(TLS_NAME), self._name, key.public_key(), until)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(TLS_NAME)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        secret = key.private_bytes(encoding, form, serialization.NoEncryption())
        return ServerIdentity(_pem(made), secret, self.certificate)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime.datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    serial = x509.random_serial_number()
    return builder.serial_number(serial).not_valid_before(VALID_FROM).not_valid_after(until)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def stored_identity(folder: Path) -> ServerIdentity:
    """What a folder with FILES has. Raises OSError that says which of them does not do, what is expected, and why."""
    found = {}
    for name in FILES:
        try:
            found[name] = (folder / name).read_bytes()
        except OSError as error:
            raise OSError(f"{folder / name} cannot be read: {error.strerror}; {_EXPECTED}") from error
    certificate, key, authority = (found[name] for name in FILES)
    try:
        chain = x509.load_pem_x509_certificates(certificate)
        authorities = x509.load_pem_x509_certificates(authority)
        secret = serialization.load_pem_private_key(key, None)
        names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if TLS_NAME not in names.get_values_for_type(x509.DNSName):
            raise ValueError(f"{FILES[0]} is for {', '.join(names.get_values_for_type(x509.DNSName)) or 'no DNS name'}")
        if secret.public_key() != chain[0].public_key():
            raise ValueError(f"{FILES[1]} is not the key of {FILES[0]}")
        if not any(_issued(chain[-1], each) for each in authorities):
            raise ValueError(f"{FILES[0]} was not issued by {FILES[2]}")
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise OSError(f"certificates in {folder} cannot be used: {error}; {_EXPECTED}") from error
    # as agents get them joined with others: each with its line's end
    trusted = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in authorities)
    return ServerIdentity(certificate, key, trusted)


_EXPECTED = (
    f"expected a certificate for the DNS name {TLS_NAME} with its key and its authority ({', '.join(FILES)}): look at "
    "the Certificate and at its Secret"
)


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    if certificate == authority:
        return True
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
