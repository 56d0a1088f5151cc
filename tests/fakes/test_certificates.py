"""Certificates outlive every clock: a node whose time of day is years off can migrate and find its leader."""

import pytest
from cryptography import x509

from vfio_agent.datatls import new_identity
from vfio_operator.pki import new_server_identity


@pytest.mark.parametrize(
    "certificate",
    [
        x509.load_der_x509_certificate(new_identity("uid.Source").certificate),
        x509.load_pem_x509_certificate(new_server_identity().certificate),
    ],
    ids=["data", "control"],
)
def test_no_clock_is_before_or_after_its_validity(certificate: x509.Certificate) -> None:
    assert certificate.not_valid_before_utc.year == 1970
    assert certificate.not_valid_after_utc.year == 9999
