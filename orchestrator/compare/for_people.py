"""A comparison as tables in a terminal. Pure: a comparison in, text out; rich is imported late.

Called by `fathom compare`. What is said of the data (cautions) is not here: it goes to stderr.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from orchestrator.compare.document import Comparison
from orchestrator.compare.words import axis_name, cells, far_along, metric, on_axis, standing, verdict
from orchestrator.cost.meter import precise

if TYPE_CHECKING:
    from rich.console import Console

_BEST = "*"


def as_text(of: Comparison, *, wide: bool, width: int | None, colour: bool) -> str:
    """Tables, the key numbers first; `wide`: every row there is."""
    from rich.console import Console

    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=colour, highlight=False)
    for one in of.equal[:1]:
        console.print(verdict(one, of), markup=False, soft_wrap=True)
    _equal(console, of)
    if wide:
        _level(console, of)
    rows = [row for row in of.rows if wide or not row.wide]
    _table(console, "all numbers", of, [[row.name, *_starred(cells(row, of), row.best), row.unit] for row in rows])
    if wide:
        _table(console, "cost by class of time", of, [[row.name, *cells(row, of), row.unit] for row in of.cost])
    _pareto(console, of)
    differing = [[one.key, *("-" if v is None else v for v in one.values), ""] for one in of.differing]
    _table(console, f"settings that differ ({of.equal_settings} are equal)", of, differing)
    return text.getvalue()


def _starred(words: Iterable[str], best: Iterable[bool]) -> list[str]:
    return [f"{word} {_BEST}" if marked else word for word, marked in zip(words, best, strict=True)]


def _equal(console: Console, of: Comparison) -> None:
    rows = []
    for one in of.equal:
        shown = (" ".join(filter(None, (standing(value), far_along(value)))) for value in one.values)
        marks = [value.run in one.best for value in one.values]
        where = f"{axis_name(one.axis, of.currency)} ({on_axis(one.axis, one.x, of.currency)})"
        rows.append([where, *_starred(shown, marks), ""])
    _table(console, f"{of.metric.name} at equal", of, rows)


def _level(console: Console, of: Comparison) -> None:
    if of.level is None:
        return
    found = {one.run: one for one in of.level.runs}
    rows = []
    for axis, best in of.level.best.items():
        spots = [found.get(run.name) for run in of.runs]
        shown = ["-" if s is None else on_axis(axis, getattr(s, axis.value), of.currency) for s in spots]
        rows.append([axis_name(axis, of.currency), *_starred(shown, (run.name in best for run in of.runs)), ""])
    _table(console, f"until {metric(of.level.value)} was reached", of, rows)


def _pareto(console: Console, of: Comparison) -> None:
    if of.pareto is None:
        return
    console.print()
    for spot in of.pareto.spots:
        beaten = f"beaten by {', '.join(spot.dominated_by)}" if spot.dominated_by else "nobody beats it"
        line = f"{spot.run}: {precise(spot.dollars, of.currency or '')} for {metric(spot.value)}: {beaten}"
        console.print(line, markup=False, soft_wrap=True)
    for step in of.pareto.steps:
        per = f", {precise(step.per_hundredth, of.currency or '')} for each 0.01" if step.per_hundredth else ""
        line = f"{step.cheaper} to {step.better}: {precise(step.dollars, of.currency or '')} more buy "
        console.print(f"{line}{metric(step.improvement)}{per}", markup=False, soft_wrap=True)


def _table(console: Console, title: str, of: Comparison, rows: Sequence[Sequence[str]]) -> None:
    """First column names, then one for each run, then units where there are any."""
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        return
    console.print()
    drawing = Table(box=None, pad_edge=False, header_style="bold")
    drawing.add_column(escape(title.upper()), overflow="fold")
    for run in of.runs:
        drawing.add_column(escape(run.name), justify="right", overflow="fold")
    drawing.add_column("", overflow="fold")
    for row in rows:
        drawing.add_row(*map(escape, row))
    console.print(drawing)
