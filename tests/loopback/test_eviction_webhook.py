"""The eviction webhook over real HTTPS: what it lets through, what it puts off, and that nobody can hold it up."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from loopback.eviction_world import PATIENCE, Webhook, device, review, store, until, webhook
from vfio_api.names import TLS_NAME
from vfio_operator.pki import Authority
from vfio_operator.webhook import MAX_REVIEW_BYTES, Credentials

Json = dict[str, Any]
FREE = [device("node-b", "d0"), device("node-b", "d1")]
Case = Callable[[Webhook], Awaitable[None]]


def run(folder: Path, case: Case, **settings: float) -> None:
    async def body() -> None:
        async with webhook(folder, **settings) as made, asyncio.timeout(2 * PATIENCE):
            await case(made)

    asyncio.run(body())


async def drained(made: Webhook, *devices: Json) -> None:
    """Pod web on node-a, which is cordoned, has a device; node-b has room. The watches have shown it."""
    made.see(*(devices or (device("node-a", "d0", "web"), *FREE)))
    made.api.pod("web")
    made.api.node("node-a", unschedulable=True)
    made.api.node("node-b")
    await made.evictions.run()


def put_off(response: Json) -> str:
    """What is said to who may not evict now: as the API server's own too-many-requests, so that clients try again."""
    status = response["status"]
    assert response["allowed"] is False
    assert (status["code"], status["reason"], status["details"]) == (429, "TooManyRequests", {"retryAfterSeconds": 1})
    return str(status["message"])


def test_a_pod_without_devices_is_evicted_as_ever(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        await drained(made)
        assert await made.evict("other") == {"uid": "review-1", "allowed": True}
        made.see(device("node-a", "d9", "rigid", migratable=False))
        assert (await made.evict("rigid"))["allowed"], "it could never be moved"
        assert made.api.migrations() == []

    run(tmp_path, case)


def test_a_pod_with_devices_is_moved_once_and_kept_until_it_is(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        await drained(made)
        said = put_off(await made.evict("web"))
        (made_for,) = made.api.migrations()
        name = made_for["metadata"]["name"]
        assert said == f"pod team/web moves with its VFIO devices to node node-b: VFIOMigration team/{name}"
        assert made_for["spec"] == {
            "source": {"podName": "web"},
            "target": {"nodeName": "node-b"},
            "ttlSecondsAfterFinished": 900,
        }
        made_for["status"] = {"phase": "PreCopy", "message": "12 % copied"}
        assert put_off(await made.evict("web")) == (
            f"pod team/web moves with its VFIO devices: VFIOMigration team/{name} is PreCopy: 12 % copied"
        )
        assert len(made.api.migrations()) == 1
        del made.api.objects["/api/v1/namespaces/team/pods/web"]
        assert (await made.evict("web"))["allowed"], "the API server itself says that it is gone"

    run(tmp_path, case)


def test_pods_that_are_evicted_at_once_are_not_promised_the_same_device(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        used = [device("node-a", f"d{number}", f"p{number}") for number in range(3)]
        await drained(made, *used, *FREE, device("node-c", "d0"))
        made.api.node("node-c")
        for number in range(3):
            made.api.pod(f"p{number}")
        await asyncio.gather(*(made.evict(f"p{number}") for number in range(3)))
        targets = [body["spec"]["target"]["nodeName"] for body in made.api.migrations()]
        assert sorted(targets) == ["node-b", "node-b", "node-c"]

    run(tmp_path, case)


def test_one_that_fails_is_tried_elsewhere_and_at_last_left_where_it_is(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        await drained(made, device("node-a", "d0", "web"), *FREE, device("node-c", "d0"))
        made.api.node("node-c")
        for attempt, target in enumerate(("node-b", "node-c", "node-b")):
            assert f"to node {target}" in put_off(await made.evict("web"))
            made.api.finish(attempt, f"reason {attempt}")
        said = put_off(await made.evict("web"))
        name = made.api.migrations()[-1]["metadata"]["name"]
        assert said == (
            "pod team/web could not be moved with its VFIO devices: 3 times; the last time: VFIOMigration "
            f"team/{name} failed: reason 2; move it by hand, or end it, which loses what they hold: kubectl delete pod "
            "-n team web"
        )
        assert len(made.api.migrations()) == 3

    run(tmp_path, case)


def test_without_room_anywhere_it_waits_for_some(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        await drained(made, device("node-a", "d0", "web"))
        assert put_off(await made.evict("web")) == (
            "pod team/web has VFIO devices, and no node has 1 x sim vf free; looked at: none; it waits for that"
        )
        made.see(*FREE)
        assert "to node node-b" in put_off(await made.evict("web"))

    run(tmp_path, case)


def test_a_pod_with_a_device_that_cannot_migrate_is_not_torn_apart(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        rigid = device("node-a", "d1", "web", migratable=False)
        await drained(made, device("node-a", "d0", "web"), rigid, *FREE)
        assert "device d1 of it cannot migrate; move it by hand" in put_off(await made.evict("web"))
        assert made.api.migrations() == []

    run(tmp_path, case)


def test_what_moves_already_is_not_moved_by_another(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        await drained(made)
        made.emptied.add("node-a")
        assert put_off(await made.evict("web")) == (
            "pod team/web moves with its VFIO devices: a VFIOEvacuation empties node node-a"
        )
        # source and counterpart of a migration alike; the counterpart has no devices yet
        user = {"metadata": {"namespace": "team", "name": "by-hand"}, "status": {}}
        made.moving |= {("team", "web"): user, ("team", "web-next"): user}
        for pod in ("web", "web-next"):
            assert put_off(await made.evict(pod)) == (
                f"pod team/{pod} moves with its VFIO devices: VFIOMigration team/by-hand is Pending: not taken up yet"
            )
        assert made.api.migrations() == []

    run(tmp_path, case)


def test_a_node_that_takes_pods_is_not_being_emptied(tmp_path: Path) -> None:
    """Also who may not evict can reach the port: what a review says must not move a pod by itself."""

    async def case(made: Webhook) -> None:
        await drained(made)
        made.api.node("node-a")
        response = await made.evict("web")
        assert response["allowed"]
        assert response["warnings"] == [
            "pod team/web is evicted, not moved: node node-a takes pods; `kubectl cordon node-a` before has it moved "
            "with its VFIO devices"
        ]
        made.api.node("node-a", taints=[{"key": "scaled-down", "effect": "NoSchedule"}])
        assert "to node node-b" in put_off(await made.evict("web"))

    run(tmp_path, case)


@pytest.mark.parametrize("request_", [{"dryRun": True}, {"object": {"deleteOptions": {"dryRun": ["All"]}}}])
def test_who_only_tries_it_is_told_what_would_be(tmp_path: Path, request_: Json) -> None:
    async def case(made: Webhook) -> None:
        await drained(made)
        response = await made.evict("web", **request_)
        assert response["allowed"], "kubectl drain --dry-run=server would ask for ever"
        assert response["warnings"] == ["pod team/web would be moved with its 1 VFIO devices"]
        assert made.api.migrations() == []

    run(tmp_path, case)


def test_another_pod_of_the_name_or_one_that_ends_is_evicted_as_ever(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        await drained(made)
        made.api.pod("web", uid="uid-of-the-next-one")
        assert (await made.evict("web"))["allowed"]
        made.api.pod("web", deletionTimestamp="2026-01-01T00:00:00Z")
        assert (await made.evict("web"))["allowed"]

    run(tmp_path, case)


def test_who_has_just_started_lets_nothing_through_that_it_has_not_seen(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        assert put_off(await made.evict("other")) == (
            "pod team/other waits for the operator, which has just started: it does not know yet which pods have VFIO "
            "devices"
        )
        assert made.evictions.ready() == "it does not know yet which pods have VFIO devices"
        made.see(device("node-a", "d0", "web"))
        del made.inventory["node-a", "d0"]  # the API server has it, and the watch has not shown it yet
        finding_out = asyncio.create_task(made.evictions.run())

        async def answered() -> bool:
            return not finding_out.done() and made.evictions.ready() != ""

        await until(answered, what="it looks")
        made.see(device("node-a", "d0", "web"))
        await finding_out
        assert made.evictions.ready() == ""
        assert (await made.evict("other"))["allowed"]

    run(tmp_path, case)


def test_an_api_server_that_does_not_answer_in_time_is_no_reason_to_evict(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        await drained(made)
        made.api.gate.clear()
        assert put_off(await made.evict("web")) == (
            "pod team/web has VFIO devices, and cannot be moved for now: no answer within 0.3 s"
        )
        assert (await made.evict("other"))["allowed"], "nothing must be asked for it"

    run(tmp_path, case, answer_seconds=0.3)


def test_an_answer_that_fails_is_no_reason_to_evict(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        await drained(made)
        made.api.objects["/api/v1/namespaces/team/pods/web"]["spec"] = None
        with capture_logs() as logs:
            said = put_off(await made.evict("web"))
        assert "cannot be moved for now: the operator fails: " in said
        assert [entry["log_level"] for entry in logs] == ["error"]

    run(tmp_path, case)


DAMAGED = [
    (b"{", 400, "Expecting property name"),
    (b"[]", 400, "expected an AdmissionReview of admission.k8s.io/v1"),
    (b"[" * 100_000, 400, "recursion"),
    (b'"\xff"', 400, "can't decode byte 0xff"),
    ({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"}, 400, "of admission.k8s.io/v1"),
    ({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": 1}, 400, "request.uid"),
    (review("web", uid=None), 400, "request.uid"),
    (review("web", resource={"resource": "nodes"}), 400, "found CREATE of nodes/eviction"),
    (review("web", resource="pods"), 400, "found CREATE of None/eviction"),
    (review("web", subResource="binding"), 400, "found CREATE of pods/binding"),
    (review("web", operation="DELETE"), 400, "found DELETE of pods/eviction"),
    (review("web", namespace=""), 400, "request.namespace and request.name"),
    (review("", object=7), 400, "request.namespace and request.name"),
    (b" " * (MAX_REVIEW_BYTES + 1), 413, "Maximum request body size"),
]


@pytest.mark.parametrize(("body", "status", "said"), DAMAGED)
def test_what_is_no_review_is_refused_with_what_was_expected(
    tmp_path: Path, body: object, status: int, said: str
) -> None:
    async def case(made: Webhook) -> None:
        await drained(made)
        answer = await made.post(body)
        assert answer[0] == status
        assert said in answer[1]
        assert (await made.evict("other"))["allowed"], "it goes on"
        assert made.api.migrations() == []

    run(tmp_path, case)


def test_only_reviews_at_its_path_are_read(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        assert await made.post(review("web"), kind="text/plain") == (415, "expected application/json: text/plain\n")
        assert (await made.post(review("web"), path="/"))[0] == 404
        url = f"https://127.0.0.1:{made.port}/evict"
        async with made.session.get(url, ssl=made.trusting(), server_hostname=TLS_NAME) as answer:
            assert answer.status == 405

    run(tmp_path, case)


@pytest.mark.parametrize("begun", [b"", b"POST /evict HTTP/1.1\r\nHost: x\r\n"])
def test_who_does_not_finish_is_hung_up_on(tmp_path: Path, begun: bytes) -> None:
    async def case(made: Webhook) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", made.port, ssl=made.trusting(), server_hostname=TLS_NAME
        )
        writer.write(begun)
        await writer.drain()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.transport.abort()

    run(tmp_path, case, client_seconds=0.5)


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", made.port, ssl=made.trusting(), server_hostname=TLS_NAME
        )
        writer.write(b"POST /evict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert answer.endswith(b"expected the whole review within 0.5 s\n")
        writer.transport.abort()

    run(tmp_path, case, client_seconds=0.5)


def test_who_speaks_no_tls_is_hung_up_on_and_others_are_served(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        await drained(made)
        idle = [await asyncio.open_connection("127.0.0.1", made.port) for _ in range(50)]
        assert (await made.evict("other"))["allowed"]
        idle[0][1].write(b"GET / HTTP/1.1\r\n\r\n")
        for reader, writer in idle:
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.transport.abort()

    run(tmp_path, case, client_seconds=0.5)


def test_a_renewed_certificate_is_shown_to_who_comes_next_and_cuts_nobody(tmp_path: Path) -> None:
    async def case(made: Webhook) -> None:
        await drained(made)
        renewing = asyncio.create_task(made.credentials.run(0.02))
        kept = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30))
        url, before, after = f"https://127.0.0.1:{made.port}/evict", made.trusting(), Authority()

        async def by_the_old_connection() -> int:
            async with kept.post(url, json=review("other"), ssl=before, server_hostname=TLS_NAME) as answer:
                await answer.read()
                return answer.status

        assert await by_the_old_connection() == 200
        (made.folder / "tls.crt").write_text("half written")
        with capture_logs() as logs:
            await until(lambda: _said(logs, "cannot be used"), what="what is wrong is said")
        store(made.folder, after)

        async def shown() -> bool:
            try:
                return (await made.post(review("other"), authority=after))[0] == 200
            except aiohttp.ClientConnectorError:
                return False

        await until(shown, what="the new certificate is shown")
        assert await by_the_old_connection() == 200, "its connection goes on"
        await kept.close()
        renewing.cancel()

    run(tmp_path, case)


async def _said(logs: list[Any], words: str) -> bool:
    return any(words in json.dumps(entry) for entry in logs)


@pytest.mark.parametrize(
    ("name", "contents", "said"),
    [
        ("tls.crt", None, "tls.crt cannot be read: No such file or directory; expected a certificate"),
        ("tls.key", "", "cannot be used"),
        ("tls.crt", "no certificate", "cannot be used"),
    ],
)
def test_without_a_certificate_it_says_why_and_does_not_start(
    tmp_path: Path, name: str, contents: str | None, said: str
) -> None:
    store(tmp_path, Authority())
    (tmp_path / name).unlink()
    if contents is not None:
        (tmp_path / name).write_text(contents)
    with pytest.raises(OSError, match=said):
        Credentials(tmp_path)


def test_a_key_of_another_certificate_is_found(tmp_path: Path) -> None:
    store(tmp_path / "other", Authority())
    store(tmp_path, Authority())
    (tmp_path / "tls.key").write_bytes((tmp_path / "other/tls.key").read_bytes())
    with pytest.raises(OSError, match=r"cannot be used: .*; expected a certificate for the webhook's Service"):
        Credentials(tmp_path)
