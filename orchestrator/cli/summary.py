"""The last screen of a run: quality beside simple compressors, balance, money, a sample, and where to look next."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from model.dataset import read_manifest
from orchestrator.cli.live import duration
from orchestrator.cost.meter import money

if TYPE_CHECKING:
    from orchestrator.controller.record import Record
    from orchestrator.controller.result import Result


def summary(record: Record, result: Result) -> dict[str, Any]:
    """Everything that the last screen shows, as plain values."""
    from orchestrator.controller.expected import against, expected
    from orchestrator.controller.finished import compared
    from orchestrator.settings import Settings

    speed = compared(record.folder.root, Settings.load())
    seen, totals, rate = result.observation, result.ledger.totals, result.resolved.rate
    forecast = against(expected(record.folder), result.ledger)
    baselines = read_manifest(result.resolved.recipe.data).baselines
    sample = record.folder.artifacts / "sample.txt"
    return {
        "run": str(record.folder.root),
        "outcome": result.ended.outcome,
        "step": seen.step,
        "steps": seen.steps,
        "tokens": seen.tokens,
        "metrics": seen.metrics,
        "speed": None if speed is None else asdict(speed),
        "forecast": None if forecast is None else forecast.model_dump(mode="json"),
        "order0BitsPerByte": baselines.order0_bits_per_byte,
        "xzBitsPerByte": baselines.xz_bits_per_byte,
        "attempts": result.resolved.attempt,
        "workerRestarts": seen.restarts,
        "ledger": {
            "currency": rate.currency,
            "cost": format(totals.cost, "f"),
            "wasted": format(totals.wasted, "f"),
            "costPerBillionTokens": format(totals.cost_per_billion_tokens or 0, "f"),
            "heldSeconds": format(totals.held_seconds, "f"),
            "deviceHours": format(totals.hours, "f"),
            "unit": rate.unit,
            "secondsByClass": {k: format(v, "f") for k, v in totals.seconds_by_class.items()},
            "price": f"{rate.per_hour / rate.units} {rate.currency} per {rate.unit}, {rate.source}, {rate.date}",
        },
        "sample": sample.read_text() if sample.exists() else None,
    }


def summary_table(content: dict[str, Any]) -> Group:
    """The same for people."""
    parts: list[Any] = [Panel(_facts(content), title=escape(f"{content['run']}  {content['outcome']}"), expand=False)]
    if content["sample"]:
        parts.append(Panel(Text(content["sample"].rstrip()), title="sample, after a held-out prompt", expand=False))
    parts.append(
        Text.from_markup(
            "[bold]look around[/bold]  make mlflow (then http://127.0.0.1:5000)   "
            f"fathom generate {escape(content['run'])} --prompt 'def '   ls {escape(content['run'])}/artifacts"
        )
    )
    return Group(*parts)


def _facts(content: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in _rows(content):
        table.add_row(f"[dim]{name}", value)
    return table


def _rows(content: dict[str, Any]) -> list[tuple[str, str]]:
    metrics, ledger = content["metrics"], content["ledger"]
    rows = [("trained", f"{content['step']}/{content['steps']} steps, {content['tokens']:,} tokens")]
    if (bits := metrics.get("eval/bits_per_byte")) is not None:
        order0, xz = content["order0BitsPerByte"], content["xzBitsPerByte"]
        rows.append(
            (
                "held-out text",
                f"[bold]{bits:.3f}[/bold] bits per byte = {bits / order0:.2f} of its order-0 entropy "
                f"({order0:.3f}); xz -9e: {xz:.3f}",
            )
        )
    if "eval/mtp_accuracy" in metrics:
        rows.append(("second token", f"{metrics['eval/mtp_accuracy']:.1%} right on held-out text"))
    if "moe/cv" in metrics:
        rows.append(
            (
                "expert balance",
                f"variation {metrics['moe/cv']:.2f}, most loaded {metrics['moe/max_violation']:+.0%} over its share, "
                f"dead {metrics['moe/dead_share']:.0%}",
            )
        )
    if "train/tokens_per_second" in metrics:
        rows.append(
            (
                "speed (last step)",
                f"{metrics['train/tokens_per_second']:,.0f} tokens/s, "
                f"{metrics['train/gflops_per_second']:,.1f} GFLOP/s",
            )
        )
    if speed := content["speed"]:
        off = speed["forecast"] / speed["actual"] - 1
        words = f"{speed['forecast']:,.0f} tokens per {speed['per']}, actual {speed['actual']:,.0f} ({off:+.1%})"
        rows.append(("speed forecast", words))
    return rows + _money_rows(content, ledger)


def _money_rows(content: dict[str, Any], ledger: dict[str, Any]) -> list[tuple[str, str]]:
    from decimal import Decimal

    cost, wasted, per_billion = (Decimal(ledger[k]) for k in ("cost", "wasted", "costPerBillionTokens"))
    currency = ledger["currency"]
    spent = ", ".join(
        f"{name} {duration(float(seconds))}"
        for name, seconds in ledger["secondsByClass"].items()
        if float(seconds) >= 0.5
    )
    rows = [
        (
            "cost",
            f"[bold]{money(cost, currency)}[/bold], {money(per_billion, currency)} per billion tokens, "
            f"{money(wasted, currency)} wasted",
        ),
        ("price", escape(ledger["price"])),
        ("time", f"{duration(float(ledger['heldSeconds']))}: {spent}"),
        ("restarts", f"{content['workerRestarts']} of workers, {content['attempts'] - 1} of the driver"),
    ]
    if forecast := content["forecast"]:
        rows.insert(1, ("cost forecast", _forecast(forecast)))
    return rows


def _forecast(found: dict[str, str]) -> str:
    """Before the run, and after."""
    from decimal import Decimal

    low, middle, high, actual = (Decimal(found[name]) for name in ("low", "expected", "high", "actual"))
    currency = found["currency"]
    off = f" ({float(actual / middle) - 1:+.0%})" if middle else ""
    return (
        f"{money(middle, currency)} ({money(low, currency)} to {money(high, currency)}) for {found['what']}; "
        f"actual {money(actual, currency)}{off}"
    )
