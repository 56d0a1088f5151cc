"""Who may connect, and who is kept out."""

import contextlib
import datetime
import itertools
import os
import socket
import ssl
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loopback.stream_bench import (
    MIB,
    PATIENCE,
    Bench,
    SavingDevice,
    finish,
    until,
)
from vfio_agent.datatls import Identity, context, new_identity
from vfio_agent.frames import (
    StreamHello,
    pack_hello,
    pack_preamble,
)
from vfio_agent.receiver import Expected
from vfio_api.errors import Reason, StreamError

# --- who may connect


def test_a_source_that_is_not_pinned_is_refused(bench: Bench) -> None:
    target = bench.target()
    sender, _ = bench.sender(target, identity=new_identity("mallory"))
    with pytest.raises(StreamError):
        sender.connect(PATIENCE)
    assert not target.inlet.taken
    assert target.ended.empty()


def test_a_target_that_is_not_pinned_is_refused(bench: Bench) -> None:
    target = bench.target()
    sender, _ = bench.sender(target, expects=new_identity("expected"))
    with pytest.raises(StreamError, match="no data stream to"):
        sender.connect(PATIENCE)
    assert not target.inlet.taken


def signed_by(issuer: Identity) -> Identity:
    """What whoever holds the key of a pinned certificate could make: another one, which ssl would trust."""
    ca = x509.load_der_x509_certificate(issuer.certificate)
    ca_key = serialization.load_pem_private_key(issuer.pem, None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(ca_key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Identity(made.public_bytes(serialization.Encoding.DER), pem)


def test_a_certificate_signed_by_a_pinned_one_is_not_the_pinned_one(bench: Bench) -> None:
    """ssl takes it for trusted, the handshake passes: the pin itself must refuse."""
    target = bench.target()
    sender, _ = bench.sender(target, identity=signed_by(bench.source))
    with pytest.raises(StreamError):
        sender.connect(PATIENCE)
    assert not target.inlet.taken
    leaf = signed_by(target.identity)
    pins = (bench.source.certificate,)
    impostor = Expected(context(leaf, pins, server=True), pins, {"gpu0": target.inlet})
    bench.server.forget(target.uid)
    bench.server.expect(target.uid, impostor)
    with pytest.raises(StreamError, match="not the one the operator named") as refused:
        bench.sender(target)[0].connect(PATIENCE)
    assert refused.value.reason is Reason.PEER_REFUSED


def test_an_unknown_migration_is_refused(bench: Bench) -> None:
    target = bench.target()
    sender, _ = bench.sender(target, uid=str(uuid4()))
    with pytest.raises(StreamError, match="device gpu0"):
        sender.connect(PATIENCE)
    assert not target.inlet.taken


def test_a_forgotten_migration_is_refused(bench: Bench) -> None:
    target = bench.target()
    bench.server.forget(target.uid)
    with pytest.raises(StreamError):
        bench.sender(target)[0].connect(PATIENCE)


def test_a_connection_in_its_handshake_does_not_escape_the_end_of_its_session(bench: Bench) -> None:
    target = bench.target()
    hello, route = bench.route(target)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = route.context.wrap_bio(incoming, outgoing)
    with socket.create_connection(("127.0.0.1", bench.server.port), PATIENCE) as sock:
        sock.sendall(pack_preamble(target.uid))
        for turn in itertools.count():
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
            if turn == 0:  # the server has answered, so it has looked the migration up
                bench.server.forget(target.uid)
        tls.write(pack_hello(hello))
        with contextlib.suppress(OSError):  # refused already
            sock.sendall(outgoing.read())
        assert_refused(sock)
    assert not target.inlet.taken


def test_what_is_expected_again_keeps_its_streams_within_reach(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(MIB), b"rest"), bench.target()
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.progress.drained)
    pins = (bench.source.certificate,)
    again = Expected(context(target.identity, pins, server=True), pins, {"gpu0": target.inlet})
    bench.server.expect(target.uid, again)
    bench.server.forget(target.uid)
    assert target.end() is not None


def test_an_unknown_device_is_refused(bench: Bench) -> None:
    target = bench.target()
    with pytest.raises(StreamError, match="the target closed the data stream"):
        bench.sender(target, device="gpu7")[0].connect(PATIENCE)
    assert target.ended.empty()


def test_a_second_stream_for_a_device_is_refused_and_the_first_goes_on(bench: Bench) -> None:
    saving, target = SavingDevice(b"", b"state"), bench.target()
    first, changed = bench.connected(target, saving)
    with pytest.raises(StreamError):
        bench.sender(target)[0].connect(PATIENCE)
    finish(saving, first, changed)
    assert target.end() is None
    assert target.device.loaded == b"state"


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: node\r\n\r\n".ljust(64),
        bytes(1000),
        pack_preamble(str(uuid4())),
        pack_preamble("\0" * 36),
        b"VFM1" + b"\xff" * 36,
    ],
    ids=["nothing", "http", "zeros", "unknown migration", "no migration", "no ASCII"],
)
def test_garbage_on_the_port_is_harmless(bench: Bench, garbage: bytes) -> None:
    saving, target = SavingDevice(b"state"), bench.target()
    with socket.create_connection(("127.0.0.1", bench.server.port), PATIENCE) as sock:
        sock.sendall(garbage)
        with contextlib.suppress(OSError):  # refused already
            sock.shutdown(socket.SHUT_WR)
        assert_refused(sock)
    finish(saving, *bench.connected(target, saving))
    assert target.end() is None


def test_a_peer_that_trickles_is_cut_before_it_is_known(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_agent.receiver.HANDSHAKE_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", bench.server.port)) as sock:
        sock.settimeout(0.05)
        for byte in pack_preamble("u" * 36)[:-1]:  # every byte comes in time, the preamble as a whole does not
            try:
                sock.sendall(bytes([byte]))
                assert sock.recv(1) == b""
                return
            except TimeoutError:
                continue
            except OSError:
                return
    raise AssertionError("the connection was never cut")


def test_plaintext_after_a_good_preamble_is_harmless(bench: Bench) -> None:
    saving, target = SavingDevice(b"state"), bench.target()
    with socket.create_connection(("127.0.0.1", bench.server.port), PATIENCE) as sock:
        sock.sendall(pack_preamble(target.uid) + pack_hello(StreamHello(target.uid, "gpu0", 1)))
        assert_refused(sock)
    assert not target.inlet.taken
    finish(saving, *bench.connected(target, saving))
    assert target.end() is None


def assert_refused(sock: socket.socket) -> None:
    """The server ends the connection; a TLS alert may come first."""
    sock.settimeout(PATIENCE)
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
