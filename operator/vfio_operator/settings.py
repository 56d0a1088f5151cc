"""Settings of the operator, from the environment (VFIO_OPERATOR_*)."""

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class OperatorSettings(BaseSettings):
    """Where the operator listens and how it leads.

    pod_name is its identity in the Lease; advertise_address ("host" or "host:port") is what agents dial. An agent is
    pinged at least every heartbeat_seconds, and is taken for dead when it answers no ping for dead_seconds. Within
    settle_seconds of an election an agent that has not dialled is waited for. prepare, release and api seconds: see
    `observed.Limits`.
    """

    model_config = SettingsConfigDict(env_prefix="VFIO_OPERATOR_")

    namespace: str = "vfio-migration"
    pod_name: str
    kubeconfig: Path | None = None
    listen_host: str = "0.0.0.0"  # noqa: S104 - agents dial from every node
    listen_port: int = 0
    advertise_host: str
    metrics_host: str = "0.0.0.0"  # noqa: S104 - scraped from elsewhere
    metrics_port: int = 9101
    liveness_port: int = 0  # 0: no liveness endpoint
    lease_seconds: float = 15.0
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0
    heartbeat_seconds: float = 5.0
    dead_seconds: float = 10.0
    settle_seconds: float = 10.0
    janitor_seconds: float = 5.0
    prepare_seconds: float = 60.0
    release_seconds: float = 30.0
    api_seconds: float = 600.0
    log_level: str = "info"
