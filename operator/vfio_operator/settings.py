"""Settings of the operator, from the environment (VFIO_OPERATOR_*)."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class OperatorSettings(BaseSettings):
    """Where the operator listens and how it leads.

    Agents are pods of agent_namespace. pod_name is its identity in the Lease; advertise_address ("host" or
    "host:port") is what agents dial. An agent is pinged at least every heartbeat_seconds, and is taken for dead when it
    answers no ping for dead_seconds; its token is reviewed again every review_seconds. Within settle_seconds of an
    election an agent that has not dialled is waited for; for successor_seconds after one that said that it ends, new
    migrations wait for the next one of its node. prepare, release and api seconds: see `observed.Limits`.
    liveness_port: for /healthz and /readyz alone, beside the metrics' port (0: none). Each leader is its own
    certificate authority and renews its certificate every certificate_seconds; with tls_dir (tls.crt, tls.key, ca.crt)
    it shows what is there, and looks again. listen_host and metrics_host "": all of this host's addresses.
    """

    model_config = SettingsConfigDict(env_prefix="VFIO_OPERATOR_")

    namespace: str = "vfio-migration"
    agent_namespace: str = "vfio-migration-agents"
    pod_name: str
    kubeconfig: Path | None = None
    listen_host: str = ""
    listen_port: int = 0
    advertise_host: str
    metrics_host: str = ""
    metrics_port: int = 9101
    liveness_port: int = 0
    certificate_seconds: float = Field(default=86400.0, ge=1.0)
    tls_dir: Path | None = None
    lease_seconds: float = 15.0
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0
    heartbeat_seconds: float = 5.0
    dead_seconds: float = 10.0
    review_seconds: float = 600.0
    settle_seconds: float = 10.0
    successor_seconds: float = 120.0
    janitor_seconds: float = 5.0
    prepare_seconds: float = 60.0
    release_seconds: float = 30.0
    api_seconds: float = 600.0
    otlp_endpoint: str = ""  # of a collector of traces; empty: as OTEL_* say, or none
    log_level: str = "info"
