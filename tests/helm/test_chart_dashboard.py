"""The dashboard asks for metrics that there are, with labels that they have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.helm import CHART, Helm, the
from support.service import Runs

from orchestrator.controller.health import Health
from orchestrator.status import Cost, JobStatus, Phase

DASHBOARD: dict[str, Any] = json.loads((CHART / "dashboards" / "fathom.json").read_text())
OF_PROMETHEUS = {"namespace"}
"""Labels that come with the scrape."""


def _asked() -> dict[str, set[str]]:
    """Names of metrics, each with the labels that it is asked by."""
    found: dict[str, set[str]] = {}
    expressions = [one["expr"] for panel in DASHBOARD["panels"] for one in panel["targets"]]
    expressions += [one["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    assert len(expressions) > 10
    for text in expressions:
        labels = {word.strip() for words in re.findall(r"by \(([^)]*)\)", text) for word in words.split(",")}
        labels |= set(re.findall(r"\{(\w+)=", text))
        for name in re.findall(r"fathom_\w+", text):
            found.setdefault(name, set()).update(labels)
    return found


@pytest.fixture
def told(tmp_path: Path) -> dict[str, set[str]]:
    """Names of all metrics of a service that does something, each with its labels."""
    runs = Runs(tmp_path / "home", health=Health())
    try:
        cost = Cost(spent="3", burn_per_hour="2", wasted="0.5", currency="USD")
        runs.store.set_status(runs.job("a", "default").uid, JobStatus(phase=Phase.RUNNING, cost=cost))
        assert runs.health is not None
        with runs.health.turn():
            runs.get("/v1/jobs")
        families = list(text_string_to_metric_families(runs.get("/metrics").text))
    finally:
        runs.close()
    found: dict[str, set[str]] = {}
    for one in (sample for family in families for sample in family.samples):
        found.setdefault(one.name, set()).update(one.labels)
    return found


def test_every_metric_is_one_of_the_service(told: dict[str, set[str]]) -> None:
    asked = _asked()
    assert {name: labels - OF_PROMETHEUS - told.get(name, {name}) for name, labels in asked.items()} == {
        name: set() for name in asked
    }
    assert set(asked) <= set(told)


def test_grafana_finds_it(helm: Helm) -> None:
    objects = helm.rendered({"metrics": {"dashboard": {"enabled": True}}})
    found = the(objects, "ConfigMap", "fathom-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(found["data"]["fathom.json"]) == DASHBOARD
