"""The chart as helm renders it, with each set of values that its tests look at."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from devtools.tools import helm

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/vfio-migration"
EXAMPLES = sorted((ROOT / "examples/values").glob("*.yaml"))
NAMESPACE, AGENTS = "vfio-migration", "vfio-migration-agents"
# of clusters with cert-manager and the Prometheus operator
APIS = ("--api-versions=cert-manager.io/v1", "--api-versions=monitoring.coreos.com/v1")
TRACING = "--set=tracing.enabled=true,tracing.endpoint=https://collector.traces:4317,tracing.caSecret=collector-ca"
EVICTIONS = "--set=evictionWebhook.enabled=true"
EVERYTHING = (*APIS, "--set=tls.certManager.enabled=true", "--set=agent.simulator.enabled=true", EVICTIONS, TRACING)
VALUE_SETS = {
    "default": (),
    "everything": EVERYTHING,
    "hostNetwork": (*APIS, "--set=agent.hostNetwork=true"),
    "evictions": (*APIS, EVICTIONS),
    "bare": ("--set=operator.replicas=1,networkPolicies.enabled=false,monitoring.enabled=false,crds.enabled=false",),
    "forced": ("--set=uninstall.force=true,agent.namespace.create=false", "--set=agent.maxUnavailable=25%"),
    **{path.stem: (*APIS, f"--values={path}") for path in EXAMPLES},
}

Object = dict[str, Any]


def template(*flags: str) -> subprocess.CompletedProcess[str]:
    """`helm template`, whatever comes of it."""
    command = [str(helm()), "template", "release", str(CHART), "--namespace", NAMESPACE, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def render(*flags: str) -> list[Object]:
    """The chart's objects."""
    done = template(*flags)
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def of_kind(items: list[Object], kind: str) -> list[Object]:
    """Those of one kind."""
    return [item for item in items if item["kind"] == kind]
