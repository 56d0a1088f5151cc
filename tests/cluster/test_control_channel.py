"""Whom the operator refuses on the control channel, with what words, and that it takes nothing from them."""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import pytest

from cluster.dialing import Leading, Metadata, Stream, bearer, bound_token, dial, forged, hello, leading
from cluster.users import wait_until
from cluster.world import SETS, World, mark, migration, pairs
from devtools.stack import AGENT_NAMESPACE, AUDIENCE, NAMESPACE, Stack
from vfio_api.device import DeviceState as S
from vfio_api.errors import Reason
from vfio_api.types import Goal, Role
from vfio_api.v1 import agent_pb2 as pb
from vfio_operator.pki import Authority

EXPECTED = f"expected a token of system:serviceaccount:{AGENT_NAMESPACE}:vfio-agent, found "
NOT_VALID = EXPECTED + "nobody (the token is not valid for this audience)"
POD = "test-control-channel"
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def token(world: World) -> Iterator[str]:
    """A good token of an agent on node-c, where none runs."""
    yield bound_token(world.stack, "node-c", POD)
    world.stack.kubectl("delete", "pod", POD, "-n", AGENT_NAMESPACE, "--force", "--grace-period=0")


@pytest.fixture
def there(world: World) -> Leading:
    """The operator."""
    return leading(world.stack)


def metric(world: World, name: str) -> float:
    """The sum of a metric of the operator over its labels."""
    url = f"http://127.0.0.1:{Stack.operator_metrics_port(world.operator)}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def refusal(there: Leading, uid: str, metadata: Metadata, ca: bytes = b"", *, plain: bool = False) -> tuple[Code, str]:
    """What comes of a Hello with a session of `uid` and an epoch that is far above."""
    first = pb.AgentMessage(hello=hello(uid, epoch=there.epoch + 1000))
    with dial(there.address, first, metadata, ca=ca or there.ca, plain=plain) as stream:
        with pytest.raises(grpc.RpcError) as caught:
            stream.hear()
        return caught.value.code(), caught.value.details()


def untouched(world: World, there: Leading, uid: str) -> None:
    """The operator has the agents, the epoch and the sessions that it had."""
    assert metric(world, "vfio_operator_agents_connected") == 2
    assert leading(world.stack) == there
    assert metric(world, "vfio_operator_epoch") == there.epoch
    assert uid not in world.operator.text()


@dataclass(frozen=True)
class Shown:
    """What is shown instead of a good token, from (stack, a good token), and what is said of it."""

    metadata: Callable[[World, str], Metadata]
    said: str


def expired(world: World, token: str) -> Metadata:
    past = int(time.time()) - 3600
    return bearer(forged(world.stack.plane.dir / "sa.key", token, iat=past - 3600, nbf=past - 3600, exp=past))


def of_nobody_known(world: World, token: str) -> Metadata:
    return bearer(token[:-8] + "AAAAAAAA")


def for_the_api_server(world: World, token: str) -> Metadata:
    bound = ["--bound-object-kind=Pod", f"--bound-object-name={POD}"]
    return bearer(world.stack.kubectl("create", "token", "vfio-agent", "-n", AGENT_NAMESPACE, *bound).strip())


def for_another(world: World, token: str) -> Metadata:
    return bearer(bound_token(world.stack, "node-c", POD, audience="vfio-agent"))


def of_the_operator(world: World, token: str) -> Metadata:
    return bearer(bound_token(world.stack, "node-c", POD + "-operator", account="vfio-operator", namespace=NAMESPACE))


def of_the_same_name_elsewhere(world: World, token: str) -> Metadata:
    world.stack.kubectl("create", "serviceaccount", "vfio-agent", "-n", "default")
    made = world.stack.kubectl("create", "token", "vfio-agent", "-n", "default", f"--audience={AUDIENCE}").strip()
    return bearer(made)


def of_the_operators_namespace(world: World, token: str) -> Metadata:
    """Where agents do not live: who may make pods beside the operator is no agent by that."""
    world.stack.kubectl("create", "serviceaccount", "vfio-agent", "-n", NAMESPACE)
    return bearer(bound_token(world.stack, "node-c", POD + "-beside", namespace=NAMESPACE))


def for_no_pod(world: World, token: str) -> Metadata:
    return bearer(
        world.stack.kubectl("create", "token", "vfio-agent", "-n", AGENT_NAMESPACE, f"--audience={AUDIENCE}").strip()
    )


def of_the_administrator(world: World, token: str) -> Metadata:
    return bearer("admin")


SHOWN = {
    "nothing": Shown(lambda *_: (), NOT_VALID),
    "an empty token": Shown(lambda *_: bearer(""), NOT_VALID),
    "garbage": Shown(lambda *_: bearer("garbage"), NOT_VALID),
    "half a token": Shown(lambda _, token: bearer(token[: len(token) // 2]), NOT_VALID),
    "another scheme": Shown(lambda _, token: (("authorization", f"Basic {token}"),), NOT_VALID),
    "another header": Shown(lambda _, token: (("x-authorization", f"Bearer {token}"),), NOT_VALID),
    "a token with another signature": Shown(of_nobody_known, NOT_VALID),
    "a token that has expired": Shown(expired, NOT_VALID),
    "a token for the API server": Shown(for_the_api_server, NOT_VALID),
    "a token for another audience": Shown(for_another, NOT_VALID),
    "a token of the operator": Shown(of_the_operator, f"{EXPECTED}system:serviceaccount:{NAMESPACE}:vfio-operator"),
    "a token of a ServiceAccount elsewhere": Shown(
        of_the_same_name_elsewhere, f"{EXPECTED}system:serviceaccount:default:vfio-agent"
    ),
    "a token of an agent's name beside the operator": Shown(
        of_the_operators_namespace, f"{EXPECTED}system:serviceaccount:{NAMESPACE}:vfio-agent"
    ),
    "a token for no pod": Shown(for_no_pod, "the token is not bound to a pod on a node"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_who_shows_this_is_refused(world: World, token: str, there: Leading, name: str) -> None:
    shown, uid = SHOWN[name], f"u-{name.replace(' ', '-')}"
    refused = metric(world, "vfio_operator_agents_refused_total")
    found = refusal(there, uid, shown.metadata(world, token))
    assert found == (Code.UNAUTHENTICATED, shown.said)
    assert metric(world, "vfio_operator_agents_refused_total") == refused + 1
    untouched(world, there, uid)


def test_only_the_time_is_wrong_with_an_expired_token(world: World, token: str, there: Leading) -> None:
    """The same forgery with its time to come is taken, so that it was refused for that alone."""
    late = forged(world.stack.plane.dir / "sa.key", token, exp=int(time.time()) + 3600)
    assert late != token
    with dial(there.address, pb.AgentMessage(hello=_plain_hello()), bearer(late), ca=there.ca) as stream:
        assert stream.hear().welcome.node == "node-c"


def _plain_hello(instance: str = "a-test") -> pb.Hello:
    made = hello("u", epoch=0, instance=instance)
    del made.sessions[:]
    return made


def test_a_token_whose_pod_is_deleted_is_refused(world: World, there: Leading) -> None:
    """Within seconds: the API server remembers for ten that a token was good."""
    pod = POD + "-gone"
    metadata = bearer(bound_token(world.stack, "node-c", pod))
    with dial(there.address, pb.AgentMessage(hello=_plain_hello()), metadata, ca=there.ca) as stream:
        assert stream.hear().welcome.node == "node-c"
    world.stack.kubectl("delete", "pod", pod, "-n", AGENT_NAMESPACE, "--force", "--grace-period=0")

    def accepted() -> bool:
        with dial(there.address, pb.AgentMessage(hello=_plain_hello()), metadata, ca=there.ca) as stream:
            try:
                return stream.hear().HasField("welcome")
            except grpc.RpcError:
                return False

    wait_until(lambda: not accepted(), "the token is no longer good")
    wait_until(lambda: metric(world, "vfio_operator_agents_connected") == 2, "the streams have ended")
    assert refusal(there, "u-revoked", metadata) == (Code.UNAUTHENTICATED, NOT_VALID)
    untouched(world, there, "u-revoked")


def test_without_tls_nobody_is_heard(world: World, token: str, there: Leading) -> None:
    code, said = refusal(there, "u-plain", bearer(token), plain=True)
    assert code is Code.UNAVAILABLE
    assert "failed to connect to all addresses" in said or "Socket closed" in said
    untouched(world, there, "u-plain")


def test_a_client_that_trusts_another_certificate_shows_no_token(world: World, token: str, there: Leading) -> None:
    """It is the client that refuses: an operator that is none learns no token."""
    refused = metric(world, "vfio_operator_agents_refused_total")
    code, said = refusal(there, "u-tls", bearer(token), Authority().certificate)
    assert code is Code.UNAVAILABLE
    assert "CERTIFICATE_VERIFY_FAILED" in said
    assert metric(world, "vfio_operator_agents_refused_total") == refused
    untouched(world, there, "u-tls")


def test_a_second_agent_of_a_node_is_refused(world: World, there: Leading) -> None:
    metadata = bearer((world.stack.nodes["node-a"].dir / "operator-token").read_text())
    code, said = refusal(there, "u-second", metadata)
    assert code is Code.ALREADY_EXISTS
    assert said.startswith("node node-a is served by agent pod vfio-agent-node-a (instance ")
    assert said.endswith("pod vfio-agent-node-a (instance a-test) is refused: one agent per node")
    untouched(world, there, "u-second")


def test_who_has_a_good_token_is_heard_and_nobody_else_was(world: World, token: str, there: Leading) -> None:
    """What was shown to the operator above matters where it is allowed, so it would have mattered there, too."""
    first = pb.AgentMessage(hello=hello("u-heard", epoch=there.epoch + 1000))
    with dial(there.address, first, bearer(token), ca=there.ca) as stream:
        welcome = stream.hear().welcome
        assert (welcome.node, welcome.epoch) == ("node-c", there.epoch + 1001)
        assert leading(world.stack).epoch == there.epoch + 1001
        while (command := stream.hear().command).goal != Goal.RELEASED:
            answer(stream, command)
        answer(stream, command)
        assert command.migration.uid == "u-heard"
        wait_until(lambda: ended("u-heard") in world.operator.text(), "its session was ended as one that is left")
    ends = [line for line in world.operator.text().splitlines() if "orphaned sessions are ended" in line]
    assert [json.loads(line)["uid"] for line in ends if json.loads(line)["uid"].startswith("u-")] == ["u-heard"]


def ended(uid: str) -> str:
    return f'"uid": "{uid}", "nodes": ["node-c"], "event": "orphaned sessions are ended"'


def answer(stream: Stream, command: pb.Command) -> None:
    """Say that it is done."""
    done = pb.SessionReport(
        migration_uid=command.migration.uid,
        role=command.role,
        epoch=command.epoch,
        sequence=command.sequence,
        reached=command.goal,
    )
    stream.say(pb.AgentMessage(report=done))


def test_no_election_raises_the_epoch_so_far(world: World, token: str, there: Leading) -> None:
    """An agent that is broken into could otherwise use up the epochs, and no operator could ever lead again."""
    first = pb.AgentMessage(hello=hello("u-leap", epoch=2**62))
    with dial(there.address, first, bearer(token), ca=there.ca) as stream, pytest.raises(grpc.RpcError) as caught:
        stream.hear()
    assert caught.value.code() is Code.FAILED_PRECONDITION
    said = caught.value.details()
    assert said.startswith(f"agent on node node-c has seen epoch {2**62}, this operator leads with {there.epoch}: ")
    untouched(world, there, "u-leap")


def lies(uid: str, role: Role) -> list[pb.SessionReport]:
    """What a participant might report, but for its sequence: nobody has that many."""
    common = {"migration_uid": uid, "role": role, "epoch": 1, "sequence": 2**63 - 1}
    broken = pb.Failure(reason=Reason.ARC_FAILED, message="a lie", device="gpu0", errno=5)
    goals = (Goal.LOADED, Goal.RUNNING, Goal.RELEASED)
    return [
        *(pb.SessionReport(reached=goal, **common) for goal in goals),
        pb.SessionReport(reached=Goal.PREPARED, backward=True, failure=broken, **common),
        pb.SessionReport(reached=Goal.LOADED, lost=["gpu0"], **common),
        pb.SessionReport(reached=Goal.LOADED, **common),
    ]


def test_an_agent_has_no_say_in_a_migration_of_other_nodes(world: World, token: str, there: Leading) -> None:
    """It votes, fails and ends for others, before the switchover and in the middle of it; its node is the token's."""
    said = _plain_hello()
    with world.workload(), dial(there.address, pb.AgentMessage(hello=said), bearer(token), ca=there.ca) as stream:
        assert stream.hear().welcome.node == "node-c"
        world.control("node-b").fault("sim3", "arc", arc=(S.RESUMING, S.STOP), delay_us=2_000_000)
        name = world.apply(migration("not-theirs", pairs()))
        uid = world.stack.get("vfm", name)["metadata"]["uid"]
        tell(stream, uid)
        world.stack.wait_until(lambda: world.states("node-a") == ["STOP_COPY"] * 4, "sources stopped")
        tell(stream, uid)
        world.stack.wait_until(lambda: decided(world, uid), "it is decided")
        found = world.finished(name)
        assert found["status"]["phase"] == "Succeeded", found["status"]
        assert world.marks("node-b", SETS) == [mark(address) for address in SETS]
        assert metric(world, "vfio_operator_agents_connected") == 3  # it was heard all the time


def decided(world: World, uid: str) -> bool:
    """Whether it is; a target that has not loaded its state by then has not voted for that."""
    found = bool(world.stack.get("vfioswitchovers", uid).get("status", {}).get("decision"))
    assert not found or "RESUMING" not in world.states("node-b")
    return found


def tell(stream: Stream, uid: str) -> None:
    for role in Role:
        for report in lies(uid, role):
            stream.say(pb.AgentMessage(report=report))
