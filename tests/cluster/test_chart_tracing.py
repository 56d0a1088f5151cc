"""The chart's values of tracing, as helm renders them."""

import subprocess
from typing import Any

import pytest

from cluster.test_chart import CHART, render
from devtools.tools import helm

Object = dict[str, Any]
COMPONENTS = {"Deployment": "VFIO_OPERATOR", "DaemonSet": "VFIO_AGENT"}


def pods(items: list[Object]) -> dict[str, Object]:
    """Prefix of its settings -> the pod's spec, of operator and agent."""
    return {
        COMPONENTS[item["kind"]]: item["spec"]["template"]["spec"]
        for item in items
        if item["kind"] in COMPONENTS and item["metadata"]["name"] != "vfio-keeper"
    }


def environment(pod: Object) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in pod["containers"][0]["env"]}


def egress_ports(items: list[Object], name: str) -> set[int]:
    policy = next(i for i in items if i["kind"] == "NetworkPolicy" and i["metadata"]["name"] == name)
    return {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}


def test_by_default_nothing_is_set_and_nothing_more_is_let_out() -> None:
    items = render()
    assert set(pods(items)) == set(COMPONENTS.values())
    for pod in pods(items).values():
        assert not [name for name in environment(pod) if "OTLP" in name or "OTEL" in name]
        assert "tracing-ca" not in str(pod)
    assert 4317 not in egress_ports(items, "vfio-operator") | egress_ports(items, "vfio-agent")


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector.observability:4317", 4317),
        ("https://collector.example:443/", 443),
        ("collector:55680", 55680),
        ("https://[fd00::1]:4317", 4317),
        ("https://collector.example", 443),
    ],
)
def test_operator_and_agents_are_told_the_endpoint_and_let_out_to_it(endpoint: str, port: int) -> None:
    items = render("--set=tracing.enabled=true", f"--set=tracing.endpoint={endpoint}")
    for prefix, pod in pods(items).items():
        assert environment(pod)[f"{prefix}_OTLP_ENDPOINT"] == endpoint
        assert "OTEL_EXPORTER_OTLP_INSECURE" not in environment(pod)
    for name in ("vfio-operator", "vfio-agent"):
        assert port in egress_ports(items, name)


def test_certificates_and_more_of_opentelemetrys_variables() -> None:
    items = render(
        "--set=tracing.enabled=true",
        "--set=tracing.endpoint=collector:4317",
        "--set=tracing.insecure=true",
        "--set=tracing.caSecret=collector-ca",
        "--set=tracing.env[0].name=OTEL_TRACES_SAMPLER",
        "--set=tracing.env[0].value=always_on",
    )
    for pod in pods(items).values():
        found = environment(pod)
        assert found["OTEL_EXPORTER_OTLP_INSECURE"] == "true"
        assert found["OTEL_EXPORTER_OTLP_CERTIFICATE"] == "/etc/vfio-tracing/ca.crt"
        assert found["OTEL_TRACES_SAMPLER"] == "always_on"
        (volume,) = [each for each in pod["volumes"] if each["name"] == "tracing-ca"]
        assert volume["secret"]["secretName"] == "collector-ca"
        mounts = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
        assert mounts["tracing-ca"] == "/etc/vfio-tracing"


def test_without_an_endpoint_it_is_refused_with_the_next_step() -> None:
    command = [helm(), "template", "release", CHART, "--set=tracing.enabled=true"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "tracing.enabled needs tracing.endpoint, such as" in result.stderr
