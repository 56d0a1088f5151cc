"""Settings of the operator, from the environment (VFIO_OPERATOR_*)."""

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class OperatorSettings(BaseSettings):
    """Where the operator listens and how it leads.

    pod_name is its identity in the Lease; advertise_address ("host" or "host:port") is what agents dial.
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
    log_level: str = "info"
