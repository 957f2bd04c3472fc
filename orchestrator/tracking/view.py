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

from orchestrator.tracking import charts, names

VIEW_KEY = "fathom"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
NAME = "Fathom: loss and money"
_SAVED = 1767225600000
"""When the view was made, as MLflow sorts views by it; fixed, so that the same view has the same tag."""
_LOSS, _BITS = charts.LOSS, charts.BITS
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


def runs_url(base: str, experiment_id: str, *, as_charts: bool = False) -> str:
    """The page of an experiment's runs in our view: its table, or its charts."""
    mode = "CHART" if as_charts else "TABLE"
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
        "compareRunCharts": charts.charts(currency),
        "compareRunSections": charts.sections(currency),
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


def _description(currency: str) -> str:
    money, by = currency.upper(), names.BY[_LOSS]
    return f"""Training runs of Fathom. One run for each job, one inside it for each attempt.

- **{_LOSS}** in nats per token, **{_BITS}** on held-out text, **{names.cost_name(currency)}** in {money} with every
  second that devices were held
- **{by}/tokens**, **{by}/gflop** and **{by}/micro_{currency.lower()}** are the loss again: there a step is a token,
  a GFLOP, a millionth of a {money}
- the view *{NAME}* has the columns and charts that compare runs
"""
