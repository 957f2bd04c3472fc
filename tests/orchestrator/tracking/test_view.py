"""The view of the runs: MLflow's loader must understand it, and its names must be those that runs have."""

from __future__ import annotations

import base64
import functools
import importlib.util
import json
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from support.runs import resolved

from orchestrator.controller.report import run_parameters
from orchestrator.tracking import names
from orchestrator.tracking.page import _SETTINGS
from orchestrator.tracking.view import VIEW_KEY, VIEW_TAG, compare_url, experiment_tags, runs_url, view_state


@functools.cache
def scripts() -> str:
    """All of MLflow's page."""
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "server" / "js" / "build" / "static" / "js"
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.js")))


def opened(currency: str = "USD") -> dict[str, Any]:
    """The state as MLflow unpacks it from the tag."""
    view = json.loads(experiment_tags(currency)[VIEW_TAG])
    assert {name: type(value) for name, value in view.items()} == {"name": str, "createdAt": int, "state": str}
    head, _, packed = view["state"].partition(";")
    assert head == "deflate"
    state = json.loads(zlib.decompress(base64.b64decode(packed, validate=True)))
    assert isinstance(state, dict)
    return state


def test_the_tag_unpacks_to_the_state_and_never_changes() -> None:
    assert opened() == view_state("USD")
    assert experiment_tags("USD") == experiment_tags("USD")
    assert experiment_tags("usd")[VIEW_TAG] == experiment_tags("USD")[VIEW_TAG]


def test_tags_are_small_enough_and_say_what_kind_it_is() -> None:
    tags = experiment_tags("EUR")
    assert tags["mlflow.experimentKind"] == names.EXPERIMENT_TAGS["mlflow.experimentKind"]
    assert "EUR" in tags["mlflow.note.content"]
    assert all(len(value) < 5000 for value in tags.values())


def test_mlflow_knows_every_word_of_it() -> None:
    state = opened()
    words = {*state, *(key for chart in state["compareRunCharts"] for key in chart)}
    words |= {key for section in state["compareRunSections"] for key in section}
    words |= {"mlflow.sharedViewState.", "viewStateShareKey", "compareRunsMode", "workflowType", "machine_learning"}
    words |= {"/compare-runs", "deflate;", *(name.removesuffix("_v1") for name in _SETTINGS)}
    words |= {chart["type"] for chart in state["compareRunCharts"]}
    assert sorted(word for word in words if word not in scripts()) == []


def test_columns_are_what_runs_have() -> None:
    state, params = opened(), run_parameters(resolved(), "cpu")
    kinds: dict[str, list[str]] = {}
    for column in state["selectedColumns"]:
        kind, _, name = column.removesuffix("`").partition(".`")
        kinds.setdefault(kind, []).append(name)
    assert set(kinds["params"]) <= set(params)
    assert kinds["tags"] == [names.TAG_OUTCOME]
    assert {"train/loss", "eval/bits_per_byte", "cost/usd", "progress/tokens"} <= set(kinds["metrics"])
    assert "cost/usd_per_billion_tokens" in kinds["metrics"]
    assert set(state["columnWidths"]) == set(state["selectedColumns"])
    assert state["columnOrder"][1:] == state["selectedColumns"]


def test_charts_are_drawn_against_tokens_money_and_work() -> None:
    charts = opened("EUR")["compareRunCharts"]
    drawn = {(one["metricKey"], one["selectedXAxisMetricKey"]) for one in charts if one["type"] == "LINE"}
    assert drawn >= {
        ("train/loss", "progress/tokens"), ("train/loss", "cost/eur"), ("loss_by/gflop", ""),
        ("bits_per_byte_by/tokens", ""), ("bits_per_byte_by/micro_eur", ""), ("moe/max_violation", "progress/tokens"),
    }  # fmt: skip
    sections = {one["uuid"] for one in opened("EUR")["compareRunSections"]}
    assert {one["metricSectionId"] for one in charts} == sections
    assert len({one["uuid"] for one in charts}) == len(charts)


@pytest.mark.parametrize("base", ["http://127.0.0.1:5000", "http://127.0.0.1:5000/"])
def test_addresses(base: str) -> None:
    parts = urlsplit(runs_url(base, "7", as_charts=True))
    page, _, query = parts.fragment.partition("?")
    assert (parts.netloc, parts.path, page) == ("127.0.0.1:5000", "/", "/experiments/7/runs")
    assert parse_qs(query)["viewStateShareKey"] == [VIEW_KEY]
    assert parse_qs(query)["compareRunsMode"] == ["CHART"]
    page, _, query = urlsplit(compare_url(base, ["7"], ["a", "b"])).fragment.partition("?")
    assert page == "/compare-runs"
    asked = parse_qs(query)
    assert [json.loads(asked[name][0]) for name in ("runs", "experiments")] == [["a", "b"], ["7"]]
