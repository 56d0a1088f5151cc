"""The rules that every metric follows, and that what is exported is what is declared."""

import re

import pytest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from vfio_agent.metrics import AgentMetrics, Recovery, Stage
from vfio_api.catalogue import UNITS, Catalogue, Entry
from vfio_api.device import DeviceState as S
from vfio_api.downtime import DowntimeStep
from vfio_api.models_status import Phase
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.underway import Underway, Wait

CATALOGUES = {"operator": OperatorMetrics("1").catalogue, "agent": AgentMetrics("1").catalogue}
ENTRIES = [entry for catalogue in CATALOGUES.values() for entry in catalogue.entries]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_metric_follows_the_conventions(entry: Entry) -> None:
    assert re.fullmatch(r"vfio_[a-z0-9_]+", entry.name)
    assert re.fullmatch(r"\S.{8,}\.|.*; always 1\.", entry.help)
    assert entry.name.endswith("_total") == (entry.kind == "counter")
    assert entry.name.endswith("_info") == (entry.kind == "info")
    if re.search("_(duration|downtime|wait|age|rate)_", f"{entry.name}_"):
        assert entry.unit in UNITS, "a quantity ends with its unit"
    assert not re.search("millisecond|microsecond|_ms|_us|_mb", entry.name)
    for label in entry.labels:
        assert label.name not in ("migration", "name", "uid", "namespace", "migration_uid"), "unbounded"
        assert bool(label.values) != bool(label.bound), f"{label.name}: either its values or what bounds them"


@pytest.mark.parametrize("catalogue", CATALOGUES.values(), ids=CATALOGUES)
def test_what_is_declared_is_what_is_exported(catalogue: Catalogue) -> None:
    exported = {family.name for family in catalogue.registry.collect()}
    assert {re.sub("_(total|info)$", "", entry.name) for entry in catalogue.entries} == exported


@pytest.mark.parametrize("catalogue", CATALOGUES.values(), ids=CATALOGUES)
def test_series_are_there_before_anything_happens(catalogue: Catalogue) -> None:
    families = {family.name: family for family in catalogue.registry.collect()}
    for entry in catalogue.entries:
        if all(label.values for label in entry.labels) and entry.kind != "info":
            samples = families[entry.name.removesuffix("_total")].samples
            assert len(samples) == (entry.combinations or 1) * entry.lines, entry.name


def test_mutant_a_metric_that_is_declared_elsewhere_is_seen() -> None:
    catalogue = Catalogue()
    catalogue.gauge("vfio_one", "There is one of it.")
    catalogue.entries.clear()
    with pytest.raises(AssertionError):
        test_what_is_declared_is_what_is_exported(catalogue)


def exemplars(text: str) -> set[tuple[str, str]]:
    return {
        (sample.name, sample.exemplar.labels["migration_uid"])
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar is not None
    }


def test_exemplars_name_the_migration_and_labels_do_not() -> None:
    metrics = OperatorMetrics("1")
    metrics.measured_downtime(0.05, "uid-1", {DowntimeStep.TRANSFER: 40_000, DowntimeStep.VOTE: 10_000}, 60_000)
    metrics.ended("Succeeded", "Succeeded", "uid-1")
    text = openmetrics(metrics.registry).decode()
    assert {name for name, _ in exemplars(text)} == {
        entry.name + ("_bucket" if entry.kind == "histogram" else "")
        for entry in metrics.catalogue.entries
        if entry.exemplars
    }
    assert "uid-1" not in re.sub(r" # \{.*", "", text)


def value(metrics: OperatorMetrics | AgentMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_the_prediction_is_compared_with_what_was_measured() -> None:
    metrics = OperatorMetrics("1")
    metrics.measured_downtime(0.09, "u", {}, 60_000)
    assert value(metrics, "vfio_migration_downtime_to_prediction_ratio_sum") == pytest.approx(1.5)
    assert value(metrics, "vfio_migration_predicted_downtime_seconds_sum") == pytest.approx(0.06)
    metrics.measured_downtime(0.09, "u", {}, None)
    assert value(metrics, "vfio_migration_predicted_downtime_seconds_count") == 1
    assert value(metrics, "vfio_migration_downtime_seconds_count") == 2


def test_who_leads_tells_of_agents_and_who_does_not_is_silent() -> None:
    metrics = OperatorMetrics("1")
    name = "vfio_operator_agent_connected"
    metrics.expect_agents(["a", "b"])
    assert (value(metrics, name, node="a"), value(metrics, name, node="b")) == (0, 0)
    metrics.agent("a", connected=True)
    metrics.agent("c", connected=True)
    assert value(metrics, "vfio_operator_agents_connected") == 2
    assert (value(metrics, name, node="a"), value(metrics, name, node="c")) == (1, 1)
    metrics.agent("a", connected=False)
    metrics.agent("c", connected=False)
    assert (value(metrics, name, node="a"), value(metrics, name, node="c")) == (0, None)
    metrics.expect_agents([])
    assert value(metrics, name, node="a") is None


def test_what_is_under_way_is_counted_and_its_age_told() -> None:
    moment = 0.0
    places = Underway(lambda: moment)
    places.at("u", Phase.PENDING, "AwaitInventory")
    moment = 5.0
    places.at("v", Phase.PENDING, "Authorize")
    places.at("u", Phase.PENDING, "PersistPairs")
    moment = 7.0
    assert (places.count(Phase.PENDING), places.oldest(Phase.PENDING)) == (2, 7.0)
    assert [places.waiting(wait) for wait in Wait] == [2, 0, 0, 0, 0]
    places.at("u", Phase.PRE_COPY, "Converge")
    assert (places.oldest(Phase.PENDING), places.oldest(Phase.PRE_COPY)) == (2.0, 0.0)
    places.at("u", Phase.SUCCEEDED, "Finish")
    places.failed("v")
    assert (places.count(Phase.PENDING), places.count(Phase.PRE_COPY), places.waiting(Wait.RESTART)) == (0, 0, 1)
    places.gone("v")
    assert places.waiting(Wait.RESTART) == 0


def test_who_waits_for_its_turn_is_queued_and_not_stuck() -> None:
    moment = 0.0
    places = Underway(lambda: moment)
    places.at("u", Phase.PENDING, "Authorize")
    moment = 5.0
    places.at("u", Phase.PENDING, "AwaitTurn")
    moment = 3600.0
    assert (places.waiting(Wait.TURN), places.count(Phase.PENDING), places.oldest(Phase.PENDING)) == (1, 1, 0.0)
    places.at("u", Phase.PENDING, "PersistPairs")
    moment = 3601.0
    assert (places.waiting(Wait.TURN), places.oldest(Phase.PENDING)) == (0, 1.0)


def test_the_driver_of_an_arc_is_that_of_the_inventory_and_devices_that_go_are_not_counted() -> None:
    metrics = AgentMetrics("1")
    metrics.inventory({"d0": ("mlx5_vfio_pci", True), "d1": ("vfio-pci", False)})
    metrics.inventory({"d0": ("mlx5_vfio_pci", True)})
    assert value(metrics, "vfio_agent_devices", driver="mlx5_vfio_pci", migratable="true") == 1
    assert value(metrics, "vfio_agent_devices", driver="vfio-pci", migratable="false") is None
    metrics.arc("d0", S.RUNNING, S.STOP, "ok", 0.001)
    labels = {"driver": "mlx5_vfio_pci", "from_state": "RUNNING", "to_state": "STOP", "result": "ok"}
    assert value(metrics, "vfio_agent_arc_duration_seconds_count", **labels) == 1
    metrics.sent(Stage.STOP_COPY, 7)
    metrics.recovered(Recovery.FAILED)
    assert value(metrics, "vfio_agent_sent_state_bytes_total", stage="StopCopy") == 7
    assert value(metrics, "vfio_agent_journal_recoveries_total", outcome="Failed") == 1
