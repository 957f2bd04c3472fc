"""The numbers of a run as one table, and as CSV, JSON or Parquet. Pure: events in, rows or bytes out.

Used by `fathom metrics` and, for the files beside a run, by `tracking.artifacts`. Needs no MLflow. Invariant: each
step appears once, as it finally counted: what a restart went back behind is left out until it is done again.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from orchestrator.cost.meter import Rate, Spent
from orchestrator.launch.events import Evaluated, Event, Progress, Started

Row = dict[str, float]
"""By column; what a step has not measured is not there."""

FIXED = ("step", "time", "attempt", "tokens", "hours", "cost")
"""Columns of every step. `time`: unix seconds here, UTC in files. `hours`: in which the job held its devices,
whatever their number. `cost`: money spent by then, in the currency that `About` names."""
_WHOLE = ("step", "attempt", "tokens")
_LATEST = 1e11
"""Unix seconds; a worker with a mad clock must not leave the range of a date."""


@dataclass(frozen=True)
class About:
    """Whose numbers these are."""

    job: str
    uid: str
    rate: Rate | None
    """Of the newest attempt; None if none was ever started."""

    def as_text(self) -> dict[str, str]:
        """For a file's own description of itself."""
        found = {"job": self.job, "uid": self.uid}
        if self.rate is None:
            return found
        return found | {"currency": self.rate.currency, "price_source": f"{self.rate.source} ({self.rate.date})"}


@dataclass(frozen=True)
class Table:
    """All steps of a run."""

    about: About
    metrics: tuple[str, ...]
    """Columns after the fixed ones, in the order in which they were first measured."""
    rows: list[Row]

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them."""
        return (*FIXED, *self.metrics)

    def only(self, wanted: Sequence[str]) -> Table:
        """With these metrics, and the steps that have one of them. KeyError if one was never measured."""
        for name in wanted:
            if name not in self.columns:
                raise KeyError(name)
        chosen = tuple(dict.fromkeys(name for name in wanted if name not in FIXED))
        kept = set(FIXED) | set(chosen)
        rows = [row for row in self.rows if not chosen or not row.keys().isdisjoint(chosen)]
        return replace(self, metrics=chosen, rows=[{n: v for n, v in row.items() if n in kept} for row in rows])


def build(events: Sequence[Event], spent_at: Callable[[float], Spent], about: About) -> Table:
    """The table of a run; `spent_at` gives the money spent at a unix time."""
    evaluations = evaluated(events)
    rows = [_row(event, spent_at(event.time), evaluations.get(event.step, {})) for event in surviving(events)]
    metrics = tuple(dict.fromkeys(name for row in rows for name in row if name not in FIXED))
    return Table(about, metrics, rows)


def surviving(events: Iterable[Event]) -> list[Progress]:
    """One progress event for each step, the last that was reported; metrics of one step are put together."""
    found: dict[int, Progress] = {}
    for event in events:
        if isinstance(event, Started):
            found = {step: kept for step, kept in found.items() if step <= event.step}
        if not isinstance(event, Progress):
            continue
        before = found.get(event.step)
        if before is not None and _same_work(before, event):
            event = event.model_copy(update={"metrics": before.metrics | event.metrics})
        found[event.step] = event
    return [found[step] for step in sorted(found)]


def evaluated(events: Iterable[Event]) -> dict[int, dict[str, float]]:
    """By step, what was measured outside of training; the first value stays (as in MLflow), none of a lost state."""
    found: dict[int, dict[str, float]] = {}
    for event in events:
        if isinstance(event, Started):
            found = {step: kept for step, kept in found.items() if step <= event.step}
        elif isinstance(event, Evaluated):
            found[event.step] = event.metrics | found.get(event.step, {})
    return found


def _same_work(before: Progress, after: Progress) -> bool:
    return (before.attempt, before.incarnation) == (after.attempt, after.incarnation) and not (
        before.metrics.keys() & after.metrics.keys()
    )


def _row(event: Progress, used: Spent, evaluation: Mapping[str, float]) -> Row:
    """A metric that has the name of a fixed column must not stand in its place."""
    fixed = {"step": event.step, "time": event.time, "attempt": event.attempt, "tokens": event.tokens}
    fixed |= {"hours": float(used.seconds / 3600), "cost": float(used.amount)}
    found = event.metrics | {name: value for name, value in evaluation.items() if name not in event.metrics}
    return fixed | {name: value for name, value in found.items() if name not in fixed}


# Files


def csv_text(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Rows as CSV with a head; what is missing stays empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_csv(table: Table) -> bytes:
    """With times as people and programs read them."""
    return csv_text((_readable(row) for row in table.rows), table.columns).encode()


def as_json(table: Table) -> bytes:
    """One object: whose numbers these are, and a list of the rows."""
    rows = [_readable(row) for row in table.rows]
    content = table.about.as_text() | {"columns": list(table.columns), "rows": rows}
    return (json.dumps(content, indent=1) + "\n").encode()


def as_parquet(table: Table) -> bytes:
    """Typed columns; the file's metadata says whose numbers these are. ImportError without pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = dict.fromkeys(_WHOLE, pa.int64()) | {"time": pa.timestamp("us", tz="UTC")}
    schema = pa.schema([(name, types.get(name, pa.float64())) for name in table.columns])
    schema = schema.with_metadata({f"fathom.{key}": value for key, value in table.about.as_text().items()})
    columns = [
        pa.array([moment(row) if name == "time" else row.get(name) for row in table.rows], field.type)
        for name, field in zip(table.columns, schema, strict=True)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def _readable(row: Row) -> dict[str, object]:
    return row | {"time": moment(row).isoformat(timespec="microseconds")}


def moment(row: Row) -> datetime:
    """When the step was done, UTC."""
    return datetime.fromtimestamp(min(row["time"], _LATEST), UTC)
