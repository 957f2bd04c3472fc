"""What MLflow's pages show of our runs without a click: columns, charts, descriptions and addresses. Imports no mlflow.

The view is a saved view of MLflow's page of runs: a tag of the experiment, opened by its key in the address and
listed under the page's views. Invariants: the key never changes, so that links stay good; the tag stays below the
5000 characters that MLflow 3.15 takes.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from orchestrator.tracking import names

VIEW_KEY = "fathom"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
NAME = "Fathom: loss and money"
_SAVED = 1767225600000
"""When the view was made, as MLflow sorts views by it; fixed, so that the same view has the same tag."""
_LOSS, _BITS = "train/loss", "eval/bits_per_byte"
_MODE = "workflowType=machine_learning"
"""MLflow's pages for training rather than for applications of language models."""
_PARAMS = (
    "model.parameters_total", "model.parameters_active", "batch_tokens", "total_tokens", "workers", "price_per_hour",
)  # fmt: skip


def experiment_tags(currency: str) -> dict[str, str]:
    """Tags of an experiment whose runs are paid in `currency` (ISO code)."""
    return {
        **names.EXPERIMENT_TAGS,
        "mlflow.note.content": _description(currency),
        VIEW_TAG: json.dumps({"name": NAME, "createdAt": _SAVED, "state": compressed(view_state(currency))}),
    }


def runs_url(base: str, experiment_id: str, *, charts: bool = False) -> str:
    """The page of an experiment's runs in our view: its table, or its charts."""
    mode = "CHART" if charts else "TABLE"
    page = f"{base.rstrip('/')}/#/experiments/{quote(experiment_id, safe='')}/runs"
    return f"{page}?viewStateShareKey={VIEW_KEY}&compareRunsMode={mode}&{_MODE}"


def compare_url(base: str, experiment_ids: Sequence[str], run_ids: Sequence[str]) -> str:
    """The page that puts runs side by side, in the order given."""
    runs, experiments = (quote(json.dumps(list(ids))) for ids in (run_ids, experiment_ids))
    return f"{base.rstrip('/')}/#/compare-runs?runs={runs}&experiments={experiments}&{_MODE}"


def view_state(currency: str) -> dict[str, Any]:
    """The state of MLflow's page; what is left out keeps MLflow's default, which its loader fills in."""
    columns = _columns(currency)
    return {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": ["attributes.`Run Name`", *columns],
        "columnWidths": {name: _width(name) for name in columns},
        "compareRunCharts": _charts(currency),
        "compareRunSections": [
            {"uuid": f"{VIEW_KEY}-{key}", "name": name, "display": True, "isReordered": True, "deleted": False}
            for key, name in _sections(currency).items()
        ],
        # Otherwise MLflow sorts the sections by name and puts its own first.
        "isAccordionReordered": True,
    }


def compressed(state: dict[str, Any]) -> str:
    """The state as MLflow packs it."""
    text = json.dumps(state, separators=(",", ":")).encode()
    return "deflate;" + base64.b64encode(zlib.compress(text, 9)).decode()


def _columns(currency: str) -> list[str]:
    cost = names.cost_name(currency)
    metrics = (_LOSS, _BITS, cost, f"{cost}_per_billion_tokens", names.PROGRESS_TOKENS)
    return [
        f"tags.`{names.TAG_OUTCOME}`",
        *(f"metrics.`{name}`" for name in metrics),
        *(f"params.`{name}`" for name in _PARAMS),
        "attributes.`Description`",
    ]


def _width(column: str) -> int:
    """Pixels; enough for the column's name, which MLflow would cut off."""
    return max(110, 8 * len(column.split("`")[1]) + 24)


def _sections(currency: str) -> dict[str, str]:
    """MLflow heads a chart with its metric's name only, so that these have to say what it is drawn against."""
    money = currency.upper()
    return {
        "loss": f"Loss against tokens, against {money}, against GFLOP (a step is one)",
        "bits": f"Held-out bits per byte against tokens, against {money}, and what all {money} bought",
        "more": f"Busiest expert above its share, tokens per second, {money} per billion tokens",
        "differences": "Parameters that differ",
    }


def _charts(currency: str) -> list[dict[str, Any]]:
    cost = names.cost_name(currency)
    return [
        _line("loss-tokens", "loss", _LOSS, names.PROGRESS_TOKENS),
        _line("loss-money", "loss", _LOSS, cost),
        _line("loss-flop", "loss", "loss_by/gflop"),
        _line("bits-tokens", "bits", _BITS, names.PROGRESS_TOKENS),
        _line("bits-money", "bits", _BITS, cost),
        _scatter("bits-bought", "bits", cost, _BITS),
        _line("balance", "more", "moe/max_violation", names.PROGRESS_TOKENS),
        _line("speed", "more", "train/tokens_per_second", names.PROGRESS_TOKENS),
        _chart("BAR", "rate", "more", metricKey=f"{cost}_per_billion_tokens"),
        _chart(
            "DIFFERENCE", "differences", "differences", compareGroups=["Parameters"], chartName="Parameters",
            showChangeFromBaseline=False, showDifferencesOnly=True, baselineColumnUuid="",
        ),
    ]  # fmt: skip


def _chart(kind: str, key: str, section: str, **more: object) -> dict[str, Any]:
    """A card as MLflow keeps it; not `isGenerated`, so that MLflow does not remake it from what the runs have."""
    return {
        "type": kind, "uuid": f"{VIEW_KEY}-{key}", "metricSectionId": f"{VIEW_KEY}-{section}",
        "runsCountToCompare": 10, "deleted": False, "isGenerated": False, **more,
    }  # fmt: skip


def _line(key: str, section: str, metric: str, against: str | None = None) -> dict[str, Any]:
    """`against` is the metric on the x axis; left out, it is the metric's own step."""
    return _chart(
        "LINE", key, section, metricKey=metric, selectedMetricKeys=[metric],
        xAxisKey="metric" if against else "step", selectedXAxisMetricKey=against or "", useGlobalXaxisKey=False,
        xAxisScaleType="linear", scaleType="linear", lineSmoothness=0, useGlobalLineSmoothing=True,
        yAxisKey="metric", yAxisExpressions=[], range={}, ignoreOutliers=False,
    )  # fmt: skip


def _scatter(key: str, section: str, x: str, y: str) -> dict[str, Any]:
    axes = {axis: {"key": metric, "type": "METRIC"} for axis, metric in (("xaxis", x), ("yaxis", y))}
    return _chart("SCATTER", key, section, **axes)


def _description(currency: str) -> str:
    money = currency.upper()
    return "\n".join([
        "Training runs of Fathom. One run for each job, one inside it for each attempt.",
        "",
        f"- **train/loss** in nats per token, **eval/bits_per_byte** on held-out text, **{names.cost_name(currency)}** "
        f"in {money} with every second that devices were held",
        "- **loss_by/tokens**, **loss_by/gflop** and **loss_by/micro_"
        f"{currency.lower()}** are the loss again: there a step is a token, a GFLOP, a millionth of a {money}",
        f"- the view *{NAME}* has the columns and charts that compare runs",
    ])  # fmt: skip
