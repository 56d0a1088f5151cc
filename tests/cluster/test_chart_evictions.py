"""The eviction webhook as the chart renders it: off unless asked for, and made of parts that fit together."""

import base64
import datetime
from typing import Any

import pytest
from cryptography import x509

from cluster.rendering import AGENTS, APIS, EVERYTHING, EVICTIONS, NAMESPACE, Object, of_kind, render, template
from vfio_operator.eviction import ANSWER_SECONDS
from vfio_operator.settings import OperatorSettings
from vfio_operator.webhook import FILES, PATH

NAME = "vfio-operator-evictions"


def the(items: list[Object], kind: str, name: str) -> Any:
    (found,) = [item for item in of_kind(items, kind) if item["metadata"]["name"] == name]
    return found


@pytest.fixture(scope="module")
def items() -> list[Object]:
    return render(EVICTIONS)


def webhook(items: list[Object]) -> Any:
    (found,) = the(items, "ValidatingWebhookConfiguration", "vfio-migration-evictions")["webhooks"]
    return found


def certificates(items: list[Object]) -> list[x509.Certificate]:
    data = the(items, "Secret", NAME)["data"]
    return [x509.load_pem_x509_certificate(base64.b64decode(data[name])) for name in ("tls.crt", "ca.crt")]


def operator(items: list[Object]) -> tuple[Any, dict[str, str]]:
    spec = the(items, "Deployment", "vfio-operator")["spec"]["template"]["spec"]
    env = {each["name"]: each["value"] for each in spec["containers"][0]["env"] if "value" in each}
    return spec, {name.removeprefix("VFIO_OPERATOR_").lower(): value for name, value in env.items()}


def test_nothing_of_it_is_there_unless_asked_for() -> None:
    assert "eviction" not in template().stdout.partition("kind: Deployment")[2].lower()
    assert of_kind(render(), "ValidatingWebhookConfiguration") == []


def test_only_evictions_are_asked_about_and_the_cluster_goes_on_without_an_answer(items: list[Object]) -> None:
    found = webhook(items)
    (rule,) = found["rules"]
    assert (rule["resources"], rule["operations"]) == (["pods/eviction"], ["CREATE"])
    assert found["failurePolicy"] == "Ignore"
    assert found["sideEffects"] == "NoneOnDryRun"
    assert ANSWER_SECONDS + 1 <= found["timeoutSeconds"] <= 10, "who is not answered in time evicts"


def test_what_runs_the_cluster_and_the_product_itself_is_left_alone(items: list[Object]) -> None:
    (left_out,) = webhook(items)["namespaceSelector"]["matchExpressions"]
    assert left_out == {
        "key": "kubernetes.io/metadata.name",
        "operator": "NotIn",
        "values": ["kube-system", NAMESPACE, AGENTS],
    }


def test_it_leads_to_the_operators_port_and_every_replica_listens_there(items: list[Object]) -> None:
    asked = webhook(items)["clientConfig"]["service"]
    service = the(items, "Service", asked["name"])
    (port,) = service["spec"]["ports"]
    assert (asked["namespace"], asked["port"], asked["path"]) == (NAMESPACE, port["port"], PATH)
    labels = the(items, "Deployment", "vfio-operator")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    spec, env = operator(items)
    (listens,) = [each for each in spec["containers"][0]["ports"] if each["name"] == port["targetPort"]]
    assert listens["containerPort"] == int(env["eviction_port"])
    assert {"eviction_port", "eviction_tls_dir"} <= set(OperatorSettings.model_fields) & set(env)


def test_the_network_lets_the_api_server_in(items: list[Object]) -> None:
    def rules(found: list[Object]) -> list[Any]:
        ingress = the(found, "NetworkPolicy", "vfio-operator")["spec"]["ingress"]
        return [rule for rule in ingress if rule["ports"] == [{"protocol": "TCP", "port": 8445}]]

    assert rules(items) == [{"ports": [{"protocol": "TCP", "port": 8445}]}]
    block = "networkPolicies.evictionsFrom[0].ipBlock.cidr=10.0.0.1/32"
    assert rules(render(EVICTIONS, f"--set={block}"))[0]["from"] == [{"ipBlock": {"cidr": "10.0.0.1/32"}}]


def test_the_certificate_is_for_the_service_and_the_api_server_trusts_its_authority(items: list[Object]) -> None:
    certificate, authority = certificates(items)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [f"{NAME}.{NAMESPACE}.svc"]
    certificate.verify_directly_issued_by(authority)
    assert base64.b64decode(webhook(items)["clientConfig"]["caBundle"]) == base64.b64decode(
        the(items, "Secret", NAME)["data"]["ca.crt"]
    )
    left = min(certificate.not_valid_after_utc, authority.not_valid_after_utc) - datetime.datetime.now(datetime.UTC)
    assert left > datetime.timedelta(days=3000)


@pytest.mark.parametrize("flags", [(EVICTIONS,), EVERYTHING], ids=["own", "cert-manager"])
def test_the_operator_has_the_files_that_it_looks_for(flags: tuple[str, ...]) -> None:
    found = render(*flags)
    spec, env = operator(found)
    mounts = spec["containers"][0]["volumeMounts"]
    (mount,) = [each for each in mounts if each["mountPath"] == env["eviction_tls_dir"]]
    (volume,) = [each for each in spec["volumes"] if each["name"] == mount["name"]]
    assert mount["readOnly"]
    assert volume["secret"]["secretName"] == NAME
    if flags == EVERYTHING:  # cert-manager writes the same keys
        assert the(found, "Certificate", NAME)["spec"]["secretName"] == NAME
    else:
        assert set(FILES) <= set(the(found, "Secret", NAME)["data"])


def test_cert_manager_makes_the_certificate_and_says_whom_to_trust() -> None:
    found = render(*EVERYTHING)
    assert of_kind(found, "Secret") == []
    certificate = the(found, "Certificate", NAME)
    assert certificate["spec"]["dnsNames"] == [f"{NAME}.{NAMESPACE}.svc"]
    configuration = the(found, "ValidatingWebhookConfiguration", "vfio-migration-evictions")
    assert configuration["metadata"]["annotations"] == {"cert-manager.io/inject-ca-from": f"{NAMESPACE}/{NAME}"}
    assert "caBundle" not in configuration["webhooks"][0]["clientConfig"]
    issuer = render(*APIS, EVICTIONS, "--set=tls.certManager.enabled=true,tls.certManager.issuerRef.name=internal")
    assert the(issuer, "Certificate", NAME)["spec"]["issuerRef"] == {"name": "internal"}


def test_its_port_is_its_own() -> None:
    said = template(EVICTIONS, "--set=evictionWebhook.port=9101")
    assert said.returncode != 0
    assert "evictionWebhook.port is 9101, which is another port of the operator already" in said.stderr
