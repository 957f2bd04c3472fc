"""The charts of MLflow's page of runs, as its saved views keep them. Used by `tracking.view`; imports no mlflow.

MLflow shows at most some 320 points of a metric and picks them for each metric by itself. A metric on the x axis
therefore goes with metrics of every step only; those of some steps are drawn against their own step, in the names
of `names.BY`.
"""

from __future__ import annotations

from typing import Any

from orchestrator.tracking import names

LOSS, BITS = "train/loss", "eval/bits_per_byte"
_OURS = "fathom"


def sections(currency: str) -> list[dict[str, Any]]:
    """Groups of charts. MLflow heads a chart with its metric only, so that these say what it is drawn against."""
    money = currency.upper()
    found = {
        "loss": f"Loss against tokens, against {money}, against GFLOP",
        "bits": f"Held-out bits per byte against tokens, micro-{money}, and at the end against {money}",
        "more": f"Busiest expert above its share, tokens per second, {money} per billion tokens",
        "differences": "Parameters that differ",
    }
    return [
        {"uuid": f"{_OURS}-{key}", "name": name, "display": True, "isReordered": True, "deleted": False}
        for key, name in found.items()
    ]


def charts(currency: str) -> list[dict[str, Any]]:
    """The cards, in their order."""
    cost, by_loss, by_bits = names.cost_name(currency), names.BY[LOSS], names.BY[BITS]
    return [
        _line("loss-tokens", "loss", LOSS, names.PROGRESS_TOKENS),
        _line("loss-money", "loss", LOSS, cost),
        _line("loss-flop", "loss", f"{by_loss}/gflop"),
        _line("bits-tokens", "bits", f"{by_bits}/tokens"),
        _line("bits-money", "bits", f"{by_bits}/micro_{currency.lower()}"),
        _scatter("bits-bought", "bits", cost, BITS),
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
        "type": kind, "uuid": f"{_OURS}-{key}", "metricSectionId": f"{_OURS}-{section}",
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
