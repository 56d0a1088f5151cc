"""Entry point of the operator: kopf's watches, the control channel and the election, in one event loop."""

import asyncio
import logging
import os
import sys
from importlib.metadata import version

import kopf
import structlog
from kopf._cogs.structs.references import Insights
from prometheus_client import start_http_server
from pydantic import ValidationError

from vfio_api import logs
from vfio_operator.channel import AgentLink, start_server
from vfio_operator.coordinator import Coordinator
from vfio_operator.handlers import kopf_settings, not_watched, registry_for
from vfio_operator.kube import OperatorApi
from vfio_operator.leader import Leadership
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.pki import new_server_identity
from vfio_operator.settings import OperatorSettings

log = structlog.get_logger()
GRACE_SECONDS = 2.0


class Operator:
    """The parts of one replica; started by kopf's start-up handler and stopped by its clean-up handler."""

    def __init__(self, settings: OperatorSettings, api: OperatorApi):
        self._settings, self._api = settings, api
        self.metrics = OperatorMetrics(version("vfio-migration"))
        self._identity = new_server_identity()
        self._stop = asyncio.Event()
        self._insights = Insights()
        self.failure = ""

    async def run(self) -> str:
        """Run until SIGTERM, which returns "", or until it must end: why. Raises OSError if a port cannot be had."""
        settings = self._settings
        # the port must be known before the Lease can carry the address, and the Lease before anyone is served
        leadership = Leadership(
            self._api.client,
            settings.namespace,
            settings.pod_name,
            "",
            lease_seconds=settings.lease_seconds,
            renew_deadline_seconds=settings.renew_deadline_seconds,
            retry_seconds=settings.retry_seconds,
        )
        self._api.may_write = leadership.insist
        coordinator = Coordinator(self._api, leadership, self.metrics, settings)
        link = AgentLink(
            coordinator.agents,
            self._api,
            leadership,
            self.metrics,
            heartbeat_seconds=settings.heartbeat_seconds,
            dead_seconds=settings.dead_seconds,
        )
        server, port = await start_server(link, self._identity, settings.listen_host, settings.listen_port)
        leadership.address = f"{settings.advertise_host}:{port}"
        web, web_thread = start_http_server(settings.metrics_port, settings.metrics_host, self.metrics.registry)
        log.info("operator started", port=port, metrics_port=web.server_port)
        election = asyncio.create_task(self._elect(leadership, coordinator))
        try:
            await kopf.operator(
                registry=registry_for(coordinator, settings),
                settings=kopf_settings(settings),
                insights=self._insights,
                clusterwide=True,
                standalone=True,
                stop_flag=self._stop,
                liveness_endpoint=(
                    f"http://0.0.0.0:{settings.liveness_port}/healthz" if settings.liveness_port else None
                ),
            )
        finally:
            election.cancel()
            await asyncio.gather(election, return_exceptions=True)
            await coordinator.stop()
            await leadership.release()
            await server.stop(GRACE_SECONDS)
            web.shutdown()
            web_thread.join(GRACE_SECONDS)
            await self._api.close()
        return self.failure

    async def _elect(self, leadership: Leadership, coordinator: Coordinator) -> None:
        if missing := await not_watched(self._insights):  # who would see nothing must not lead
            self.failure = (
                f"the API server does not serve {', '.join(sorted(missing))} (vfiomigration.io/v1alpha1): install the "
                "CustomResourceDefinitions of the chart, or wait if it has just started; a restart looks again"
            )
            log.error("kinds not served", missing=sorted(missing))
            self._stop.set()
            return

        async def elected() -> None:
            await self._api.publish_ca(self._identity.certificate)
            coordinator.lead()

        try:
            await leadership.run(elected)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # who does not renew must not go on leading
            log.error("leadership lost", error=str(error) or repr(error))
            leadership.epoch = 0
            self.failure = "leadership lost; a restart makes this replica a standby"
            await coordinator.stop()
            self._stop.set()
            # whatever hangs must not outlive the lease
            asyncio.get_running_loop().call_later(self._settings.lease_seconds, os._exit, 1)


async def run(settings: OperatorSettings) -> str:
    """Run one replica; returns why it had to end, if it had to."""
    api = await OperatorApi.connect(settings.kubeconfig, settings.namespace, settings.pod_name)
    return await Operator(settings, api).run()


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
