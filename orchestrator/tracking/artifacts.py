"""The files that a run leaves for people: configuration, ledger, pictures, and the numbers behind them.

Called by the launcher while a run goes on and at its end; the tracker copies the folder to MLflow. Invariant:
each step appears once, as it finally counted: what a restart repeated replaces what it was before.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path

from orchestrator.cost.ledger import Ledger
from orchestrator.cost.meter import Spent, money
from orchestrator.launch.events import Event, Progress
from orchestrator.tracking import names, plots
from orchestrator.tracking.cost_page import bands, cost_page, cost_picture, ledger_picture
from orchestrator.tracking.table import csv_text, surviving


def write_artifacts(
    folder: Path,
    events: Iterable[Event],
    ledger: Ledger,
    resolved_json: str,
    expert_load_json: str | bytes | None,
    *,
    spent_at: Callable[[float], Spent] | None = None,
) -> list[Path]:
    """Writes all files and returns their paths; the map of the experts only where there is a load.

    `spent_at` gives the money spent at a unix time, as for the tracker; without it the ledger's rows give it.
    ValueError if `expert_load_json` has another form than {"step", "layers", "load"}.
    """
    load = {} if expert_load_json is None else _expert_load(expert_load_json)
    steps = surviving(events)
    money_at = spent_at or spent_by(ledger)
    rows = [_row(event, money_at(event.time)) for event in steps]
    currency = ledger.rate.currency
    cost = names.cost_name(currency)
    subtitle = _subtitle(ledger)
    loss, bits = _curve(rows, cost, "train/loss"), _curve(rows, cost, "eval/bits_per_byte")
    contents: dict[str, bytes] = {
        "resolved.json": resolved_json.encode(),
        "ledger.json": ledger.to_json().encode(),
        "loss_vs_tokens.png": plots.loss_against_tokens(
            _curve(rows, names.PROGRESS_TOKENS, "train/loss"),
            _curve(rows, names.PROGRESS_TOKENS, "eval/bits_per_byte"),
            subtitle=subtitle,
        ),
        "loss_vs_dollars.png": plots.loss_against_money(
            loss, bits, currency=currency, bands=bands(ledger), subtitle=subtitle
        ),
        "ledger.png": ledger_picture(ledger),
        "cost.html": run_page(steps, ledger, money_at),
    }
    contents |= load
    contents["metrics.csv"] = _csv(rows).encode()  # the last one: its age tells whether all are up to date
    return _write_all(folder, contents)


def run_page(events: Iterable[Event], ledger: Ledger, spent_at: Callable[[float], Spent]) -> bytes:
    """The page about the money of a run, as HTML; no steps if its events are not known."""
    return cost_page(ledger, *_by_money(events, ledger, spent_at), title=_cost_title(ledger))


def run_picture(events: Iterable[Event], ledger: Ledger, spent_at: Callable[[float], Spent]) -> bytes:
    """The pictures of that page, as one PNG."""
    return cost_picture(ledger, *_by_money(events, ledger, spent_at), title=_cost_title(ledger))


def _by_money(
    events: Iterable[Event], ledger: Ledger, spent_at: Callable[[float], Spent]
) -> tuple[plots.Curve, plots.Curve]:
    """Training loss and held-out bits per byte against money spent."""
    rows = [_row(event, spent_at(event.time)) for event in surviving(events)]
    cost = names.cost_name(ledger.rate.currency)
    return _curve(rows, cost, "train/loss"), _curve(rows, cost, "eval/bits_per_byte")


def _cost_title(ledger: Ledger) -> str:
    return f"Cost of {ledger.owner.job if ledger.owner else 'a run'}"


def write_expert_load(folder: Path, load_json: str | bytes) -> list[Path]:
    """Only the map of the experts' load, as a picture and as a table, while the run goes on; ValueError as above."""
    return _write_all(folder, _expert_load(load_json))


def spent_by(ledger: Ledger) -> Callable[[float], Spent]:
    """Money spent up to a unix time, read from the ledger's rows; inside a row in proportion to its time."""
    intervals = [  # in whole microseconds: a share of floats is not exact
        (round(row.charge_period_start.timestamp() * 1_000_000), row.seconds * 1_000_000, row)
        for row in ledger.rows
        if row.held
    ]

    def at(time: float) -> Spent:
        seconds = hours = amount = Decimal(0)
        for start, length, row in intervals:
            held = min(max(Decimal(round(time * 1_000_000)) - start, Decimal(0)), length)
            share = held / length if length else Decimal(1)
            seconds += held / 1_000_000
            hours += row.consumed_quantity * share / 3600
            amount += row.billed_cost * held / length if length else row.billed_cost
        return Spent(seconds, hours, amount, ledger.rate.currency)

    return at


def _row(event: Progress, used: Spent) -> dict[str, float]:
    own = {"step": event.step, "time": event.time, "attempt": event.attempt}
    progress = {names.PROGRESS_TOKENS: event.tokens} | names.cost_metrics(event.tokens, used)
    return own | progress | event.metrics


def _csv(rows: list[dict[str, float]]) -> str:
    return csv_text(rows, list(dict.fromkeys(name for row in rows for name in row)))


def _curve(rows: list[dict[str, float]], x: str, y: str) -> plots.Curve:
    points = [(row[x], row[y]) for row in rows if y in row]
    return plots.Curve([point[0] for point in points], [point[1] for point in points])


def _subtitle(ledger: Ledger) -> str:
    totals, rate = ledger.totals, ledger.rate
    parts = [
        f"{totals.tokens:,} tokens",
        f"{money(totals.cost, rate.currency)} at {rate.source} ({rate.date})",
    ]
    return names.clipped(", ".join(parts), 110)


def _expert_load(text: str | bytes) -> dict[str, bytes]:
    """Files by name; the table has a row for each expert of each layer, with its share of a fair load."""
    try:
        found = json.loads(text)
        layers = [str(layer) for layer in found["layers"]]
        load = [[float(value) for value in row] for row in found["load"]]
        step = int(found["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"expert load must be {{step, layers, load}}: {error!r}") from error
    lines = ["step,layer,expert,tokens,load_over_fair"]
    for layer, row in zip(layers, load, strict=False):  # the picture refuses what does not fit
        fair = sum(row) / len(row) if row else 0.0
        for expert, tokens in enumerate(row):
            lines.append(f"{step},{layer},{expert},{tokens:.15g},{tokens / fair if fair else 1.0:.6g}")
    picture = plots.expert_load(layers, load, step=step)
    return {"expert_load.csv": ("\n".join(lines) + "\n").encode(), "expert_load.png": picture}


def _write_all(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    folder.mkdir(exist_ok=True)  # without parents: the run may be removed meanwhile, and stays so
    return [_write(folder / name, data) for name, data in contents.items()]


def _write(path: Path, data: bytes) -> Path:
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    fresh.write_bytes(data)
    os.replace(fresh, path)
    return path
