"""The configuration of a node: containerd's, the kubelet's and the pod network's, for wherever its folders are."""

import json
from dataclasses import dataclass
from pathlib import Path

from devtools.images import PAUSE

PODS = "10.88.{number}.0/24"
GATEWAY = "10.88.{number}.1"
NODE_ADDRESS = "10.99.0.{number}"
API_ADDRESS = "10.96.0.1"  # of the Service "kubernetes", which is where pods look for the API server
API_PORT = 443
UNUSED_PLUGINS = (
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.nri.v1.nri",
    "io.containerd.internal.v1.opt",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
)


@dataclass(frozen=True)
class NodeFolders:
    """Where a node finds things, by its own paths.

    config: what `write_node_files` wrote, with the kubelet's certificates and kubeconfig beside it. programs: of the
    container runtime. state: containerd's root, on a file system that overlayfs takes.
    """

    config: Path
    programs: Path
    state: Path
    sockets: Path = Path("/run/containerd")

    @property
    def socket(self) -> Path:
        """containerd's."""
        return self.sockets / "containerd.sock"


def write_node_files(
    into: Path, number: int, folders: NodeFolders, *, old_cgroups: bool = False, cgroup_root: str = "/"
) -> None:
    """Write containerd.toml, kubelet.yaml and cni/10-pods.conflist.

    old_cgroups: the node has cgroups of version 1. cgroup_root: below which the pods' cgroups are.
    """
    (into / "cni").mkdir(exist_ok=True)
    (into / "containerd.toml").write_text(_containerd(folders))
    (into / "kubelet.yaml").write_text(json.dumps(_kubelet(folders, old_cgroups, cgroup_root)))  # JSON is YAML
    (into / "cni/10-pods.conflist").write_text(json.dumps(_network(number)))


def _containerd(folders: NodeFolders) -> str:
    runtime = "plugins.'io.containerd.cri.v1.runtime'"
    return f"""version = 3
root = "{folders.state}"
state = "{folders.sockets}"
disabled_plugins = {json.dumps(UNUSED_PLUGINS)}
[grpc]
  address = "{folders.socket}"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{PAUSE.reference}"
[{runtime}]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [{runtime}.cni]
    bin_dirs = ["{folders.programs}"]
    conf_dir = "{folders.config}/cni"
  [{runtime}.containerd]
    default_runtime_name = "runc"
    [{runtime}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [{runtime}.containerd.runtimes.runc.options]
        BinaryName = "{folders.programs}/runc"
        SystemdCgroup = false
"""


def _kubelet(folders: NodeFolders, old_cgroups: bool, cgroup_root: str) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        # every pod has a cgroup, as on any node; nothing above the pods is the node's own to limit
        "cgroupsPerQOS": True,
        "cgroupRoot": cgroup_root,
        "enforceNodeAllocatable": [],
        "containerRuntimeEndpoint": f"unix://{folders.socket}",
        **({"oomScoreAdj": 0} if old_cgroups else {}),
        "authentication": {
            "x509": {"clientCAFile": f"{folders.config}/ca.crt"},
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{folders.config}/kubelet.crt",
        "tlsPrivateKeyFile": f"{folders.config}/kubelet.key",
        "clusterDNS": [],
        "resolvConf": "",
        "makeIPTablesUtilChains": False,
        "imageMinimumGCAge": "100h",
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "10Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "podLogsDir": "/var/log/pods",
        "localStorageCapacityIsolation": False,
        "registerNode": True,
        "nodeStatusUpdateFrequency": "2s",
        "syncFrequency": "5s",
        "runtimeRequestTimeout": "5m",
    }


def _network(number: int) -> dict[str, object]:
    pods = {"subnet": PODS.format(number=number), "gateway": GATEWAY.format(number=number)}
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "ranges": [[pods]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": "/run/cni-addresses",
        },
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}
