"""Certificates and the clocks of nodes: which may be wrong, by how much, and what is withdrawn all the same."""

import datetime
from pathlib import Path

import pytest
from cryptography import x509

from vfio_agent.datatls import new_identity
from vfio_api.names import TLS_NAME
from vfio_operator.pki import FILES, SKEW, Authority, ServerIdentity, stored_identity

NOW = datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC)
DAY = 86400.0


@pytest.mark.parametrize(
    "certificate",
    [
        x509.load_der_x509_certificate(new_identity("uid.Source").certificate),
        x509.load_pem_x509_certificate(Authority().certificate),
    ],
    ids=["data", "authority"],
)
def test_no_clock_is_before_or_after_its_validity(certificate: x509.Certificate) -> None:
    """A node whose time of day is years off can migrate; an authority is withdrawn, it does not expire."""
    assert certificate.not_valid_before_utc.year == 1970
    assert certificate.not_valid_after_utc.year == 9999


def test_what_an_authority_issues_is_bounded_and_bears_clocks_that_differ() -> None:
    authority = Authority()
    leaf = x509.load_pem_x509_certificate(authority.issue(DAY, NOW).certificate)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate))
    assert leaf.not_valid_before_utc.year == 1970
    assert leaf.not_valid_after_utc == NOW + datetime.timedelta(seconds=DAY) + SKEW
    assert datetime.timedelta(days=30) == SKEW
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_each_certificate_has_a_key_of_its_own() -> None:
    authority = Authority()
    assert len({authority.issue(DAY, NOW).key for _ in range(3)}) == 3


def stored(folder: Path, identity: ServerIdentity, **changes: bytes) -> Path:
    made = dict(zip(FILES, (identity.certificate, identity.key, identity.authority), strict=True))
    for name, content in {**made, **{k.replace("_", "."): v for k, v in changes.items()}}.items():
        (folder / name).write_bytes(content)
    return folder


def test_what_is_stored_is_taken_as_it_is(tmp_path: Path) -> None:
    identity = Authority().issue(DAY, NOW)
    assert stored_identity(stored(tmp_path, identity)) == identity


def test_a_self_signed_certificate_is_its_own_authority(tmp_path: Path) -> None:
    """As cert-manager's selfSigned issuer writes it."""
    identity = Authority().issue(DAY, NOW)
    changed = stored(tmp_path, identity, ca_crt=identity.certificate)
    assert stored_identity(changed).authority == identity.certificate


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tls_key": Authority().issue(DAY, NOW).key}, "tls.key is not the key of tls.crt"),
        ({"ca_crt": Authority().certificate}, "tls.crt was not issued by ca.crt"),
        ({"tls_crt": Authority().certificate}, "No <class"),
        ({"tls_crt": b""}, "cannot be used: "),
        ({"ca_crt": b"nonsense"}, "cannot be used: "),
        ({"tls_key": b"nonsense"}, "cannot be used: "),
    ],
    ids=["another key", "another authority", "no DNS name", "empty", "no authority", "no key"],
)
def test_what_does_not_do_is_said_with_what_is_expected(tmp_path: Path, changes: dict[str, bytes], said: str) -> None:
    folder = stored(tmp_path, Authority().issue(DAY, NOW), **changes)
    with pytest.raises(OSError, match="the Certificate and at its Secret") as caught:
        stored_identity(folder)
    assert said in str(caught.value)
    assert f"certificates in {folder} cannot be used" in str(caught.value)
    assert TLS_NAME in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    stored(tmp_path, Authority().issue(DAY, NOW))
    (tmp_path / "tls.key").unlink()
    with pytest.raises(OSError, match=r"tls\.key cannot be read: No such file or directory; expected a certificate"):
        stored_identity(tmp_path)
