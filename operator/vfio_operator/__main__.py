"""Entry point of the operator: kopf's watches, the control channel and the election, in one event loop."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping
from importlib.metadata import version

import aiohttp
import grpc
import kopf
import structlog
from kopf._cogs.clients.errors import APIError
from kopf._cogs.structs.references import Insights
from pydantic import ValidationError

from vfio_api import heap, logs
from vfio_api.addresses import joined
from vfio_api.traces import open_traces
from vfio_api.web import Check, Heartbeat, WebServer, show_tasks
from vfio_operator.certificates import Certificates, Folder, OwnAuthority
from vfio_operator.channel import AgentLink, start_server
from vfio_operator.coordinator import Coordinator
from vfio_operator.eviction import Evictions, Sight
from vfio_operator.handlers import kopf_settings, not_watched, registry_for
from vfio_operator.kube import OperatorApi, brief
from vfio_operator.kube_evacuations import KubeEvacuations
from vfio_operator.kube_lists import Lists
from vfio_operator.kube_pods import KubePods
from vfio_operator.leader import Leadership
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.settings import OperatorSettings
from vfio_operator.webhook import Credentials, EvictionServer

log = structlog.get_logger()
# What kopf ends with when it has tried often enough.
WATCH_ERRORS = (APIError, aiohttp.ClientError, kopf.LoginError, TimeoutError)


class Operator:
    """One replica, made of its parts."""

    def __init__(self, settings: OperatorSettings, api: OperatorApi, unfenced: OperatorApi):
        self._settings, self._api, self._unfenced = settings, api, unfenced
        release = version("vfio-migration")
        self.metrics = OperatorMetrics(release)
        self._traces = open_traces(settings.otlp_endpoint, "vfio-operator", settings.pod_name, service_version=release)
        if self._traces is not None:
            self.metrics.traced = self._traces.covers
        own = OwnAuthority(settings.certificate_seconds)
        self._certificates = Certificates(Folder(settings.tls_dir) if settings.tls_dir else own, api.publish_ca)
        self._leadership = Leadership(
            unfenced.client,  # with connections of its own: the Lease must not wait behind a thousand migrations
            settings.namespace,
            settings.pod_name,
            "",
            lease_seconds=settings.lease_seconds,
            renew_deadline_seconds=settings.renew_deadline_seconds,
            retry_seconds=settings.retry_seconds,
        )
        api.may_write = self._leadership.insist
        self._coordinator = Coordinator(api, self._leadership, self.metrics, settings, self._traces)
        self._evictions = self._eviction_server() if settings.eviction_tls_dir else None
        self._heartbeat = Heartbeat()
        self._told, self._stop = asyncio.Event(), asyncio.Event()
        self._insights = Insights()
        self.failure = ""

    async def run(self) -> str:
        """Run until SIGTERM, which returns "", or until it must end: why. Raises OSError if a port cannot be had."""
        settings = self._settings
        link = AgentLink(
            self._coordinator.agents,
            self._api,
            self._leadership,
            self.metrics,
            agent_namespace=settings.agent_namespace,
            heartbeat_seconds=settings.heartbeat_seconds,
            dead_seconds=settings.dead_seconds,
            review_seconds=settings.review_seconds,
        )
        show_tasks(self.metrics.tasks)
        web = self._web({"/healthz": self._heartbeat.check, "/readyz": self._ready})
        # the port must be known before the Lease can carry the address, and the Lease before anyone is served
        credentials = self._certificates.credentials()
        server, port = await start_server(link, credentials, settings.listen_host, settings.listen_port)
        self._leadership.address = joined(settings.advertise_host, port)
        ports = {"port": port, "metrics_port": web[0].port, "health_port": web[-1].port}
        # all of them before kopf starts: at its end it cancels every task that has come since
        parts = [self._heartbeat.run(), self._certificates.run(), self._elect()]
        if self._evictions is not None:
            ports["eviction_port"] = await self._evictions.start(settings.listen_host, settings.eviction_port)
            parts.append(self._evictions.run())
        heap.settle()
        log.info("operator started", **ports)
        background = [asyncio.create_task(part) for part in parts]
        ending = asyncio.create_task(self._end(server, background))
        try:
            await self._watch()
        finally:
            self._told.set()
            await ending
            for each in web:
                await asyncio.to_thread(each.close)
            if self._traces is not None:
                await asyncio.to_thread(self._traces.close)
            await self._api.close()
            await self._unfenced.close()
        return self.failure

    async def _watch(self) -> None:
        """kopf, until it is stopped."""
        try:
            await kopf.operator(
                registry=registry_for(self._coordinator, self._settings),
                settings=kopf_settings(self._settings),
                insights=self._insights,
                clusterwide=True,
                standalone=True,
                stop_flag=self._stop,
            )
        except WATCH_ERRORS as error:
            said = f"HTTP {error.status}: {error.message}" if isinstance(error, APIError) else brief(error)
            log.error("watches ended", error=said)
            self.failure = self.failure or (
                "the API server did not tell what it serves or what there is, however often it was asked: expected an "
                f"answer, found {said}; look at the API server, a restart asks again"
            )

    async def _end(self, server: grpc.aio.Server, background: list[asyncio.Task[None]]) -> None:
        """Once told so, end in the order that lets the next leader begin: tasks, Lease, streams; kopf comes last."""
        await self._told.wait()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await self._coordinator.stop()
        await self._leadership.release()
        with contextlib.suppress(asyncio.CancelledError):  # kopf has ended by itself, and cancelled grpc's tasks
            await server.stop(None)  # agents' streams do not end by themselves: the sooner cut, the sooner they dial
        if self._evictions is not None:
            await self._evictions.close()
        self._stop.set()

    def _ready(self) -> str:
        """For /readyz, any thread: what keeps this replica from its work; evictions are sent to who is ready."""
        return self._leadership.ready() or (self._evictions.ready() if self._evictions is not None else "")

    def _eviction_server(self) -> EvictionServer:
        """Of every replica: its client writes without leading. Raises OSError if there is no certificate."""
        api, folder = self._unfenced, self._settings.eviction_tls_dir
        assert folder is not None
        sight = Sight(self._coordinator.inventory, self._coordinator.emptied, self._coordinator.moving)
        return EvictionServer(Evictions(KubeEvacuations(api), KubePods(api), Lists(api), sight), Credentials(folder))

    def _web(self, checks: Mapping[str, Check]) -> list[WebServer]:
        """The metrics' port answers all; another one, if asked for, only who probes. kopf's own is deaf to IPv6."""
        settings = self._settings
        servers = [WebServer(settings.metrics_host, settings.metrics_port, checks, self.metrics.registry)]
        if settings.liveness_port:
            servers.append(WebServer(settings.metrics_host, settings.liveness_port, checks))
        return servers

    async def _elect(self) -> None:
        missing = await not_watched(self._insights)
        for number in (signal.SIGTERM, signal.SIGINT):  # from kopf, which would go on as a leader for seconds
            asyncio.get_running_loop().add_signal_handler(number, self._told.set)
        if missing:  # who would see nothing must not lead
            self.failure = (
                f"the API server does not serve {', '.join(sorted(missing))} (vfiomigration.io/v1alpha1): install the "
                "CustomResourceDefinitions of the chart, or wait if it has just started; a restart looks again"
            )
            log.error("kinds not served", missing=sorted(missing))
            self._told.set()
            return

        async def elected() -> None:
            await self._certificates.elected()
            await self._coordinator.look_up()
            self._coordinator.lead()

        try:
            await self._leadership.run(elected)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # who does not renew must not go on leading
            log.error("leadership lost", error=str(error) or repr(error))
            self._leadership.epoch = 0
            self.failure = "leadership lost; a restart makes this replica a standby"
            self._told.set()
            # whatever hangs must not outlive the lease
            asyncio.get_running_loop().call_later(self._settings.lease_seconds, os._exit, 1)


async def run(settings: OperatorSettings) -> str:
    """Run one replica; returns why it had to end, if it had to."""
    api = await OperatorApi.connect(settings.kubeconfig, settings.namespace, settings.pod_name)
    unfenced = await OperatorApi.connect(settings.kubeconfig, settings.namespace, settings.pod_name)
    return await Operator(settings, api, unfenced).run()


def main() -> None:
    """Console script vfio-operator."""
    try:
        settings = OperatorSettings()  # type: ignore[call-arg]  # from the environment
    except ValidationError as error:
        wrong = "; ".join(f"VFIO_OPERATOR_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        sys.exit(f"vfio-operator: settings are wrong: {wrong}")
    logs.configure(settings.log_level, pod=settings.pod_name)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    if settings.kubeconfig is not None:
        os.environ["KUBECONFIG"] = str(settings.kubeconfig)  # where kopf's login looks
    try:
        failure = asyncio.run(run(settings))
    except OSError as error:
        sys.exit(f"vfio-operator: cannot run: {error}")
    sys.exit(f"vfio-operator: {failure}" if failure else 0)


if __name__ == "__main__":
    main()
