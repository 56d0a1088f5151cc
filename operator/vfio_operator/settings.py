"""Settings of the operator, from the environment (VFIO_OPERATOR_*)."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class OperatorSettings(BaseSettings):
    """Where the operator listens and how it leads.

    Agents are pods of agent_namespace. pod_name is its identity in the Lease; advertise_address ("host" or
    "host:port") is what agents dial. An agent is pinged every heartbeat_seconds, an idle one at every fourth, within
    which agents must hear of a leader (vfio_agent.settings.silence_seconds); it is taken for dead when it answers no
    ping for dead_seconds; its token is reviewed again every review_seconds. Within settle_seconds of an
    election an agent that has not dialled is waited for; for successor_seconds after one that said that it ends, new
    migrations wait for the next one of its node. prepare, release, api and target_pod seconds: see `observed.Limits`.
    parallel_migrations: at most so many run at once, and so many into or out of one node (0: no limit); others wait.
    liveness_port: for /healthz and /readyz alone, beside the metrics' port (0: none). Each leader is its own
    certificate authority and renews its certificate every certificate_seconds; with tls_dir (tls.crt, tls.key, ca.crt)
    it shows what is there, and looks again. With eviction_tls_dir (tls.crt, tls.key) evictions of pods are answered on
    eviction_port (a ValidatingWebhookConfiguration leads there). listen_host and metrics_host "": all of this host's
    addresses.
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
    eviction_tls_dir: Path | None = None
    eviction_port: int = 0
    lease_seconds: float = 15.0
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0
    heartbeat_seconds: float = Field(default=5.0, le=5.0)
    dead_seconds: float = 10.0
    review_seconds: float = 600.0
    settle_seconds: float = 10.0
    successor_seconds: float = 120.0
    janitor_seconds: float = 5.0
    prepare_seconds: float = 60.0
    release_seconds: float = 30.0
    api_seconds: float = 600.0
    target_pod_seconds: float = Field(default=120.0, ge=1.0)
    parallel_migrations: int = Field(default=5, ge=0)
    parallel_migrations_per_node: int = Field(default=2, ge=0)
    otlp_endpoint: str = ""  # of a collector of traces; empty: as OTEL_* say, or none
    log_level: str = "info"
