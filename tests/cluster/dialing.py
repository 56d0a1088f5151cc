"""A client of the control channel that is no agent: it shows the operator what it is told to show."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from devtools.stack import AGENT_NAMESPACE, AUDIENCE, NAMESPACE, Stack
from vfio_api import PROTOCOL_VERSION
from vfio_api.names import (
    ADDRESS_ANNOTATION,
    AGENT_SERVICE_ACCOUNT,
    CA_CONFIGMAP,
    CA_KEY,
    EPOCH_ANNOTATION,
    LEASE_NAME,
    TLS_NAME,
)
from vfio_api.types import Role
from vfio_api.v1 import agent_pb2 as pb
from vfio_api.v1 import agent_pb2_grpc

SECONDS = 20.0
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Leading:
    """Where the operator listens, the certificate that it published, and its epoch."""

    address: str
    ca: bytes
    epoch: int


def leading(stack: Stack) -> Leading:
    """What the leader has published."""
    annotations = stack.get("lease", LEASE_NAME, "-n", NAMESPACE)["metadata"]["annotations"]
    bundle = stack.get("configmap", CA_CONFIGMAP, "-n", NAMESPACE)["data"][CA_KEY]
    return Leading(annotations[ADDRESS_ANNOTATION], bundle.encode(), int(annotations[EPOCH_ANNOTATION]))


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


def hello(uid: str, *, epoch: int, instance: str = "a-test", **session: Any) -> pb.Hello:
    """A Hello that knows an epoch, and has a session of a migration."""
    said = {"role": Role.SOURCE, "epoch": epoch, "sequence": 1, "reached": "Prepared", **session}
    report = pb.SessionReport(migration_uid=uid, **said)
    return pb.Hello(
        protocol=PROTOCOL_VERSION,
        version="test",
        incarnation="test",
        instance=instance,
        data_address="127.0.0.1:1",
        highest_epoch=epoch,
        sessions=[report],
    )


class Stream:
    """An open stream; what it is to say next is given to `say`."""

    def __init__(self, channel: grpc.Channel, metadata: Metadata, first: pb.AgentMessage):
        self._said, self._more, self._ended = [first], threading.Condition(), False
        stub = agent_pb2_grpc.AgentLinkStub(channel)  # type: ignore[no-untyped-call]
        self._call = stub.Connect(self._saying(), metadata=metadata, timeout=SECONDS)

    def _saying(self) -> Iterator[pb.AgentMessage]:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._said or self._ended)
                if not self._said:
                    return
                message = self._said.pop(0)
            yield message

    def say(self, message: pb.AgentMessage) -> None:
        """Send it."""
        with self._more:
            self._said.append(message)
            self._more.notify()

    def hear(self) -> pb.OperatorMessage:
        """The next message but pings, which are answered. Raises grpc.RpcError."""
        while True:
            message: pb.OperatorMessage = next(self._call)
            if not message.HasField("ping"):
                return message
            self.say(pb.AgentMessage(pong=message.ping))

    def close(self) -> None:
        """End it."""
        with self._more:
            self._ended = True
            self._more.notify()
        self._call.cancel()


@contextlib.contextmanager
def dial(
    address: str, first: pb.AgentMessage, metadata: Metadata, *, ca: bytes = b"", plain: bool = False
) -> Iterator[Stream]:
    """A stream to an operator that is checked against `ca`, or without TLS."""
    options = [("grpc.ssl_target_name_override", TLS_NAME), ("grpc.use_local_subchannel_pool", 1)]
    if plain:
        channel = grpc.insecure_channel(address)
    else:
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates=ca), options)
    with channel:
        stream = Stream(channel, metadata, first)
        try:
            yield stream
        finally:
            stream.close()


def bound_token(
    stack: Stack,
    node: str,
    pod: str,
    *,
    account: str = AGENT_SERVICE_ACCOUNT,
    audience: str = "",
    namespace: str = AGENT_NAMESPACE,
) -> str:
    """A token of the account for a pod on the node, which is made; for the operator, unless for another audience."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod, "namespace": namespace},
        "spec": {"nodeName": node, "serviceAccountName": account, "containers": [{"name": "a", "image": "a"}]},
    }
    stack.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(manifest))
    flags = [f"--audience={audience or AUDIENCE}", "--bound-object-kind=Pod", f"--bound-object-name={pod}"]
    return stack.kubectl("create", "token", account, "-n", namespace, *flags).strip()


def forged(key: Path, token: str, **claims: Any) -> str:
    """The token with other claims, signed with the key of the API server itself."""
    header, payload, _ = token.split(".")
    body = {**json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))), **claims}
    signed = f"{header}.{_base64(json.dumps(body).encode())}"
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)  # ES256
    r, s = utils.decode_dss_signature(private.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
