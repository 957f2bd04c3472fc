"""A comparison as one HTML page that needs no other file, no network and no script. Pure: a comparison in, bytes out.

Called by `fathom compare --html` and `GET /v1/compare`. Made without matplotlib, so that the API can do it. The switch
of axes is five radio buttons and CSS; the JSON of the same numbers lies in a link.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from orchestrator.compare import svg
from orchestrator.compare.document import Comparison, Equal, Row
from orchestrator.compare.facts import Axis
from orchestrator.compare.pictures import curves, money_bars, purchases
from orchestrator.compare.words import axis_name, cells, far_along, metric, on_axis, standing, verdict
from orchestrator.cost.meter import money, precise
from orchestrator.tracking.html_page import colour, heading, page, paragraph
from orchestrator.tracking.palette import AMBER, BLUE, GRID, INK, MUTED, SAND

Cell = str | tuple[str, bool]
"""Words, or words and whether they are the best of their row."""
_SWITCH = {
    Axis.step: "steps", Axis.tokens: "tokens", Axis.flops: "FLOPs", Axis.hours: "hours", Axis.dollars: "dollars",
}  # fmt: skip
_SHOWN = "\n".join(f"#on-{axis}:checked ~ .on-{axis} {{ display: block }}" for axis in Axis)
_STYLE = f"""
body {{ max-width: 72rem }}
.caution {{ border-left: 4px solid {colour(AMBER)}; background: {colour(SAND)}; padding: .4rem .9rem; margin: .5rem 0 }}
.verdict {{ font-size: 1.1rem }}
td.best {{ font-weight: 700 }} td.best::before {{ content: "★ "; color: {colour(BLUE)} }}
.wide td, .wide th {{ white-space: nowrap }} .settings td {{ white-space: normal; min-width: 7rem }}
.units td:last-child {{ text-align: left; color: {colour(MUTED)} }}
td small {{ color: {colour(MUTED)}; font-weight: 400; display: block }}
.key {{ display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; vertical-align: -.05rem }}
.switch figure {{ display: none }}
{_SHOWN}
.switch input {{ position: absolute; opacity: 0 }}
.switch label {{ display: inline-block; padding: .2rem .8rem; border: 1px solid {colour(GRID)}; cursor: pointer }}
.switch input:checked + label {{ border-color: {colour(BLUE)}; color: {colour(INK)}; font-weight: 600 }}
.switch input:focus-visible + label {{ outline: 2px solid {colour(BLUE)} }}
svg {{ font-variant-numeric: tabular-nums }} a {{ color: {colour(BLUE)} }}
.note {{ color: {colour(MUTED)}; font-size: .9rem }}
"""


def compare_page(of: Comparison) -> bytes:
    """The whole page."""
    title = " against ".join(run.name for run in of.runs) if len(of.runs) < 4 else f"{len(of.runs)} runs compared"
    parts = [
        heading(title),
        *(f'<p class="verdict">{escape(verdict(one, of))}</p>' for one in _verdicts(of)),
        note("One run each: runs that differ in nothing but their seed differ, too; compare several of each kind."),
        *(f'<p class="caution">{escape(caution.message)}</p>' for caution in of.cautions),
        _links(of),
        _runs(of),
        *_curves(of),
        *_equal(of),
        *_purchases(of),
        heading("All numbers", 2),
        note("★ marks the best of a row, where runs differ and one direction is better."),
        f'<div class="units">{table(["", *_heads(of), ""], (_row(row, of) for row in of.rows))}</div>',
        *_money(of),
        *_configuration(of),
        note(
            f"FLOPs: {of.flops_convention}. Hours and money are of all attempts, what was wasted included; steps that "
            "a restart did again count once."
        ),
    ]
    return page(title, (part for part in parts if part), _STYLE)


def note(words: str) -> str:
    """What is said in small letters."""
    return f'<p class="note">{escape(words)}</p>'


def table(head: Iterable[str], rows: Iterable[Sequence[Cell]]) -> str:
    """As `html_page.table`, with the best of a row marked; heads are HTML already."""
    titles = "".join(f'<th scope="col">{one}</th>' for one in head)
    lines = ["<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows]
    if not lines:
        return ""
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    words, best = cell if isinstance(cell, tuple) else (cell, False)
    shown, _, small = words.partition("\n")
    more = f"<small>{escape(small)}</small>" if small else ""
    return f"<td{' class=best' if best else ''}>{escape(shown)}{more}</td>"


def _heads(of: Comparison) -> list[str]:
    """Names of the runs, each with the colour of its line."""
    return [
        f'<span class="key" style="background:{svg.look(i)[0]}"></span>{escape(run.name)}'
        for i, run in enumerate(of.runs)
    ]


def _verdicts(of: Comparison) -> list[Equal]:
    """On the chosen axis, and by what each dollar bought (or each token, where dollars are chosen)."""
    wanted = {of.by, Axis.dollars if of.currency is not None and of.by is not Axis.dollars else Axis.tokens}
    return [one for one in of.equal if one.axis in wanted]


def _links(of: Comparison) -> str:
    data = base64.b64encode(of.model_dump_json(by_alias=True).encode()).decode()
    links = [f'<a download="comparison.json" href="data:application/json;base64,{data}">all these numbers as JSON</a>']
    if of.mlflow_url is not None:
        local = of.mlflow_url.startswith("http://127.0.0.1:5000/")
        hint = " (start it with <code>fathom mlflow</code>)" if local else ""
        links.append(f'<a href="{escape(of.mlflow_url)}">these runs in MLflow</a>{hint}')
    return f"<p>{' · '.join(links)}</p>"


def _runs(of: Comparison) -> str:
    rows = []
    for run in of.runs:
        spent = "-" if run.spent is None else precise(run.spent, run.currency)
        limit = "none" if run.limit is None else money(run.limit, run.currency)
        rows.append([run.name, run.team, run.phase.value, spent, limit, run.uid[:8]])
    return table(["run", "team", "phase", "spent", "budget", "uid"], rows)


def _curves(of: Comparison) -> list[str]:
    if not any(one.step for one in of.series):
        return []
    axes = [axis for axis in Axis if of.currency is not None or axis is not Axis.dollars]
    chosen = of.by if of.by in axes else Axis.tokens
    buttons, figures = [], []
    for axis in axes:
        checked = " checked" if axis is chosen else ""
        buttons.append(f'<input type="radio" name="axis" id="on-{axis}"{checked}>')
        buttons.append(f'<label for="on-{axis}">{_SWITCH[axis]}</label>')
        figures.append(f'<figure class="on-{axis}">{curves(of, axis)}</figure>')
    thin = [one for one in of.series if one.measured > len(one.step)]
    said = "The first eighth of a run may lie outside of the picture. "
    if thin:
        said += f"Of {thin[0].measured:,} points {len(thin[0].step)} are drawn: the best and the last of each stretch."
    switch = f'<div class="switch" role="group" aria-label="axis">{"".join(buttons)}{"".join(figures)}</div>'
    return [heading(f"{of.metric.name} against what it took", 2), switch, note(said)]


def _equal(of: Comparison) -> list[str]:
    """All runs at equal expense, and what it took each to be as good as all became."""
    rows = []
    for one in of.equal:
        cells_: list[Cell] = [f"{axis_name(one.axis, of.currency)}\n{on_axis(one.axis, one.x, of.currency)}"]
        cells_ += [(_lines(standing(value), far_along(value)), value.run in one.best) for value in one.values]
        rows.append(cells_)
    if not rows:
        return []
    text = (
        "As much as the shortest run has used up. ~ is interpolated between two evaluations. Where a run stands at a "
        "part of its own length, its learning rate had not come down yet: made to end there, it would be better."
    )
    unit = of.metric.unit or of.metric.name
    parts = [heading(f"{unit[0].upper()}{unit[1:]} at equal …", 2), table(["equal", *_heads(of)], rows), note(text)]
    return parts + _level(of)


def _lines(*words: str) -> str:
    return "\n".join(word for word in words if word)


def _level(of: Comparison) -> list[str]:
    if of.level is None:
        return []
    by_run = {one.run: one for one in of.level.runs}
    rows = []
    for axis in of.level.best:
        row: list[Cell] = [axis_name(axis, of.currency)]
        for run in of.runs:
            there = by_run.get(run.name)
            words = "-" if there is None else on_axis(axis, getattr(there, axis.value), of.currency)
            row.append((words, run.name in of.level.best[axis]))
        rows.append(row)
    text = f"What it took to reach {metric(of.level.value)}, which every run did"
    return [heading(text, 2), table(["until then", *_heads(of)], rows)]


def _purchases(of: Comparison) -> list[str]:
    if of.pareto is None or of.currency is None:
        return []
    rows: list[list[Cell]] = [
        [
            spot.run,
            precise(spot.dollars, of.currency),
            metric(spot.value),
            f"beaten by {', '.join(spot.dominated_by)}" if spot.dominated_by else "nobody beats it",
        ]
        for spot in of.pareto.spots
    ]
    steps = []
    for step in of.pareto.steps:
        more = f"From {step.cheaper} to {step.better}: {precise(step.dollars, of.currency)} more buy "
        more += f"{metric(step.improvement)} {of.metric.unit}"
        if step.per_hundredth is not None:
            more += f", {precise(step.per_hundredth, of.currency)} for each 0.01"
        steps.append(paragraph(f"{more}."))
    outside = [f"{run.name} {money(run.limit, run.currency)}" for run in of.runs if run.limit is not None]
    return [
        heading("What the money bought", 2),
        f"<figure>{purchases(of)}</figure>",
        note(
            "Full dots: no run costs less and is better. Thin lines: how each run got there. The dashed line is the "
            f"best that there is for so much money. Budgets: {', '.join(outside) or 'none'}."
        ),
        table(["run", "spent", "best value", ""], rows),
        *steps,
    ]


def _row(row: Row, of: Comparison) -> list[Cell]:
    marked = list(zip(cells(row, of), row.best, strict=True))
    return [row.name, *marked, row.unit]


def _money(of: Comparison) -> list[str]:
    if not of.cost:
        return []
    rows = table(["class of time", *_heads(of)], ([row.name, *cells(row, of)] for row in of.cost))
    return [heading("Where the money went", 2), f"<figure>{money_bars(of)}</figure>", rows]


def _configuration(of: Comparison) -> list[str]:
    rows = ([one.key, *("-" if value is None else value for value in one.values)] for one in of.differing)
    same = f"{of.equal_settings} settings are equal in all runs" if of.equal_settings else "No settings are known"
    return [
        heading("Settings that differ", 2),
        f'<div class="settings">{table(["", *_heads(of)], rows)}</div>',
        note(f"{same}."),
    ]
