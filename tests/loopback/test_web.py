"""Probes and metrics over real HTTP: what they say, and that they do not hang with what they judge."""

import asyncio
import contextlib
import http.client
import threading
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families

from vfio_api.web import BEAT_SECONDS, STALL_SECONDS, Check, Heartbeat, WebServer, show_tasks

OPEN_METRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


@contextlib.contextmanager
def serving(host: str = "127.0.0.1", registry: CollectorRegistry | None = None, **checks: Check) -> Iterator[WebServer]:
    server = WebServer(host, 0, {f"/{name}": check for name, check in checks.items()}, registry)
    try:
        yield server
    finally:
        server.close()


def get(port: int, path: str, host: str = "127.0.0.1", method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_a_check_answers_and_says_why_not() -> None:
    with serving(healthz=lambda: "", readyz=lambda: "not connected") as server:
        assert get(server.port, "/healthz") == (200, "ok\n")
        assert get(server.port, "/readyz") == (503, "not connected\n")
        assert get(server.port, "/metrics") == (404, "there are /healthz, /readyz\n")
        assert get(server.port, "/healthz", method="POST") == (405, "only GET and HEAD\n")


def test_metrics_are_open_metrics_with_exemplars_for_who_accepts_them() -> None:
    registry = CollectorRegistry()
    Counter("moved", "What was moved.", registry=registry).inc(exemplar={"migration_uid": "u-1"})
    with serving(registry=registry) as server:
        url = f"http://127.0.0.1:{server.port}/metrics"
        with urllib.request.urlopen(urllib.request.Request(url, headers=OPEN_METRICS), timeout=20) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
            text = answer.read().decode()
        assert 'moved_total 1.0 # {migration_uid="u-1"}' in text
        assert text.endswith("# EOF\n")
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            assert "migration_uid" not in answer.read().decode()


def test_on_all_addresses_means_ipv6_and_ipv4() -> None:
    """A pod may have one of them only."""
    with serving("", healthz=lambda: "") as server:
        assert [get(server.port, "/healthz", host)[0] for host in ("127.0.0.1", "::1")] == [200, 200]


def test_a_port_that_is_taken_is_said_by_name() -> None:
    with (
        serving() as server,
        pytest.raises(OSError, match=rf"cannot listen on 127.0.0.1:{server.port}: Address "),
    ):
        WebServer("127.0.0.1", server.port, {})


def test_a_client_that_says_nothing_keeps_nobody_else_waiting() -> None:
    with serving(healthz=lambda: "") as server:
        silent = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        silent.connect()
        assert get(server.port, "/healthz")[0] == 200
        silent.close()


class Clock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_loop_that_hangs_is_found_and_one_that_waits_for_a_thread_is_not() -> None:
    clock = Clock()
    heartbeat = Heartbeat(clock=clock)
    release, blocked = threading.Event(), threading.Event()

    def hang() -> None:
        blocked.set()
        release.wait()

    async def turned() -> None:
        """Until the heartbeat has been again."""
        before = heartbeat._beat
        while heartbeat._beat == before:  # noqa: ASYNC110
            await asyncio.sleep(BEAT_SECONDS / 10)

    async def life() -> None:
        beating = asyncio.create_task(heartbeat.run())
        await asyncio.sleep(0)
        arc = asyncio.get_running_loop().run_in_executor(None, release.wait)
        clock.now += STALL_SECONDS
        await turned()
        assert heartbeat.check() == "" == ask()  # an arc takes its time, and the loop turns
        hang()
        await arc
        await turned()
        assert heartbeat.check() == ""
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)

    def ask() -> str:
        status, text = get(server.port, "/healthz")
        return "" if status == 200 else text

    found: list[str] = []

    def watch() -> None:
        blocked.wait()
        clock.now += STALL_SECONDS
        found.append(ask())
        release.set()

    with serving(healthz=heartbeat.check) as server:
        assert ask() == ""  # who has not begun is not judged
        watcher = threading.Thread(target=watch)
        watcher.start()
        asyncio.run(life())
        watcher.join()
        clock.now += STALL_SECONDS
        assert ask() == ""  # nor who has ended
    assert found == ["the event loop has not turned for 15 s\n"]


def test_a_gauge_tells_of_the_tasks_that_the_event_loop_has_when_it_is_asked() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("tasks", "Tasks.", registry=registry)

    def shown(port: int) -> float:
        (family,) = text_string_to_metric_families(get(port, "/metrics")[1])
        return family.samples[0].value

    async def run(port: int) -> list[float]:
        show_tasks(gauge)
        alone = await asyncio.to_thread(shown, port)
        waiting = [asyncio.create_task(asyncio.Event().wait()) for _ in range(3)]
        more = await asyncio.to_thread(shown, port)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return [alone, more, await asyncio.to_thread(shown, port)]

    with serving(registry=registry) as server:
        assert asyncio.run(run(server.port)) == [1, 4, 1]
