"""Settings of the agent, from the environment (VFIO_AGENT_*)."""

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

from vfio_agent.devices.kernel import KernelPath


class AgentSettings(BaseSettings):
    """Where the agent finds things. Paths are the container's.

    state_dir survives a reboot, runtime_dir is a tmpfs that survives the agent. advertise_host is what other nodes'
    agents connect to; with advertise_port 0 the port listened on is advertised. kernel_path is how kernel devices are
    opened: auto (by /dev/vfio/devices and /dev/iommu where the node has both, else by the legacy group), cdev, group;
    devices that the keeper holds stay as they were opened. listen_host and metrics_host "": all of this host's
    addresses. An agent that is told to end (SIGTERM) goes on with the sessions it has for drain_seconds at most; 0: it
    ends at once.
    """

    model_config = SettingsConfigDict(env_prefix="VFIO_AGENT_")

    node_name: str
    state_dir: Path = Path("/var/lib/vfio-agent")
    runtime_dir: Path = Path("/run/vfio-agent")
    keeper_socket: Path = Path("/run/vfio-agent/keeper.sock")
    broker_socket: Path = Path("/run/vfio-agent/broker.sock")
    simulator_socket: Path | None = None
    kernel_devices: bool = True
    kernel_path: KernelPath = "auto"
    kubeconfig: Path | None = None
    token_file: Path = Path("/var/run/secrets/vfio-operator/token")
    operator_namespace: str = "vfio-migration"
    operator_address: str = ""  # overrides the Lease's, for networks that rewrite addresses
    listen_host: str = ""
    listen_port: int = 0
    advertise_host: str
    advertise_port: int = 0
    metrics_host: str = ""
    metrics_port: int = 9102
    inventory_seconds: float = 10.0
    silence_seconds: float = 30.0  # a leader that does not even ping for so long is not there
    drain_seconds: float = 0.0
    keeper_wait_seconds: float = 0.0  # how long the keeper may take to be there when the agent starts
    # of the host, wherever they are mounted
    proc_dir: Path = Path("/proc")
    cgroup_dir: Path = Path("/sys/fs/cgroup")
    pod_logs_dir: Path = Path("/var/log/pods")
    otlp_endpoint: str = ""  # of a collector of traces; empty: as OTEL_* say, or none
    log_level: str = "info"
