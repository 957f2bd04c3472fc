"""A simulated run as a picture: where its time went, and which failure struck when. PNG, or one HTML file.

Called by `fathom goodput --plot`. Pure: a run in, bytes out. Invariants: the HTML holds everything in itself
(inline SVG, no script, nothing from elsewhere); the same run gives the same bytes; matplotlib is imported late.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING

from orchestrator.plan.bins import Bins, bins
from orchestrator.plan.policy import in_words
from orchestrator.plan.simulate import CLASSES, Run, TimeClass
from orchestrator.tracking import palette
from orchestrator.tracking.html_page import drawing, heading, page, paragraph, table
from orchestrator.tracking.palette import GRID, INK, MUTED
from orchestrator.tracking.plots import blank, drawn, headed, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

LABELS: dict[TimeClass, str] = {
    "productive": "training that counts",
    "checkpoint": "standing still to save",
    "lost": "work done again",
    "slow": "slowed by stragglers",
    "detecting": "not noticed yet",
    "waiting": "waiting for a machine",
    "replacing": "replacing machines",
    "restarting": "starting, loading",
}
_COLOURS: dict[TimeClass, str] = {
    "checkpoint": palette.SILVER, "lost": palette.BLUE, "slow": palette.GREEN, "detecting": palette.AMBER,
    "waiting": palette.VIOLET, "replacing": palette.RUST, "restarting": palette.OCHRE,
}  # fmt: skip
ROWS = 9
"""Causes with a row of their own; all others share the last."""
LONGEST = 26
"""Characters of a row's label; the tables have the whole names."""
_HOUR = 3_600_000_000


def _title(run: Run) -> str:
    return f"What failures take: {1 - run.goodput:.1%} of {in_words(run.wall / 1e6)}"


def draw_png(run: Run, subtitle: str) -> bytes:
    """900 pixels wide, as high as the causes need."""
    found = bins(run)
    rows = _grouped(found)
    figure, body = headed(_height(rows), _title(run), subtitle)
    _draw(body, run, found, rows)
    return drawn(figure)


def draw_html(run: Run, subtitle: str, per_hour: Decimal, currency: str) -> bytes:
    """One page with the picture and its figures; `per_hour` is the price of the whole job."""
    found = bins(run)
    rows = _grouped(found)
    figure = blank(_height(rows))
    _draw(figure, run, found, rows)
    times = {LABELS[name]: run.times[name] for name in CLASSES}
    lost = run.lost_by_cause()
    counts = run.counts()
    failures = {name: f"{counts[name]:,}" if name in counts else "" for name in lost}
    columns = "hours", "share", f"cost ({currency})"
    parts = [
        heading(_title(run)),
        paragraph(subtitle),
        drawing(drawn(figure, "svg"), "Timeline of the run; the tables below hold its figures"),
        paragraph(
            f"The bars show, per {_length(found.width)}, the share of the time that brought no progress. Their colours "
            "say what it went into; the figures beside the colours are shares of the whole run. All that is above the "
            "bars is training that counts. Below, each mark is one failure at the moment when it struck."
        ),
        table(("where the time went", *columns), _rows(times, run.wall, per_hour)),
        table(
            ("lost by cause", *columns, "failures"),
            [(*row, failures.get(row[0], f"{sum(counts.values()):,}")) for row in _rows(lost, run.wall, per_hour)],
        ),
    ]
    return page(f"{_title(run)}: {subtitle}", parts)


def _rows(times: dict[str, int], wall: int, per_hour: Decimal) -> list[tuple[str, ...]]:
    """Name, hours, share and cost of each, and of all together; nothing where there is nothing."""
    given = {name: micro for name, micro in times.items() if micro}
    rows = [*given.items(), ("together", sum(given.values()))] if given else []
    return [
        (name, f"{micro / _HOUR:,.1f}", f"{micro / wall:.2%}", f"{micro * per_hour / _HOUR:,.2f}")
        for name, micro in rows
    ]


# ------------------------------------------------------------------ the picture


def _height(rows: list[tuple[str, list[str]]]) -> float:
    return 3.6 + 0.27 * max(1, len(rows))


def _draw(place: Figure | SubFigure, run: Run, found: Bins, rows: list[tuple[str, list[str]]]) -> None:
    upper, lower = place.subplots(2, 1, sharex=True, height_ratios=[10, max(2, 1.05 * len(rows))])
    unit, name = _unit(run.wall)
    _draw_lost(upper, run, found, unit)
    _draw_failures(lower, run, rows, unit)
    lower.set_xlabel(name, color=INK)
    for axes in (upper, lower):
        plain(axes)
        axes.tick_params(colors=MUTED, length=0)
        axes.set_xlim(0, run.wall / unit)


def _unit(wall: int) -> tuple[int, str]:
    if wall >= 72 * _HOUR:
        return 24 * _HOUR, "day"
    return (_HOUR, "hour") if wall >= 3 * _HOUR else (_HOUR // 60, "minute")


def _draw_lost(axes: Axes, run: Run, found: Bins, unit: int) -> None:
    """Stacked shares of each bin that are not productive."""
    edges = [min(place * found.width, run.wall) for place in range(found.count + 1)]
    widths = [right - left for left, right in pairwise(edges)]
    below = [0.0] * found.count
    for name in CLASSES[1:]:
        if not run.times[name]:
            continue
        shares = [100 * max(0.0, time) / width for time, width in zip(found.times[name], widths, strict=True)]
        axes.bar(
            [edge / unit for edge in edges[:-1]], shares, [0.92 * width / unit for width in widths], below,
            align="edge", color=_COLOURS[name], label=f"{LABELS[name]}  {run.times[name] / run.wall:.1%}", linewidth=0,
        )  # fmt: skip
        below = [low + share for low, share in zip(below, shares, strict=True)]
    axes.set_ylim(0, min(100.0, 1.12 * max([*below, 1.0])))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_ylabel(f"share of time lost\nper {_length(found.width)}", color=INK)
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if not any(below):
        axes.text(0.5, 0.5, "nothing lost", transform=axes.transAxes, ha="center", va="center", color=MUTED)
    else:
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, frameon=False, fontsize=9,
            labelcolor=INK, handlelength=0.9, handleheight=0.9, columnspacing=1.3, borderaxespad=0.2,
        )  # fmt: skip


def _length(width: int) -> str:
    for size, one, many in ((24 * _HOUR, "day", "days"), (_HOUR, "hour", "hours"), (_HOUR // 60, "minute", "minutes")):
        if width >= size:
            return one if width == size else f"{width / size:g} {many}"
    return f"{width / 1e6:g} s"


def _grouped(found: Bins) -> list[tuple[str, list[str]]]:
    """Label and causes of each row, the most frequent first."""
    names = list(found.failures)
    rows = [(name, [name]) for name in names[:ROWS]]
    if len(names) > ROWS:
        rows.append((f"{len(names) - ROWS} others", names[ROWS:]))
    return [(f"{_short(label)}  {sum(sum(found.failures[cause]) for cause in of):,}", of) for label, of in rows]


def _short(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 1].rstrip() + "…"


def _draw_failures(axes: Axes, run: Run, rows: list[tuple[str, list[str]]], unit: int) -> None:
    """A mark for each failure; where more than one falls on the same pixel, a darker one."""
    columns = 640
    for place, (_, causes) in enumerate(rows):
        hits: dict[int, int] = {}
        for incident in run.incidents:
            if incident.cause in causes:
                column = min(columns - 1, incident.at * columns // run.wall)
                hits[column] = hits.get(column, 0) + 1
        most = max(hits.values(), default=1)
        at = [(column + 0.5) / columns * run.wall / unit for column in sorted(hits)]
        marks = [(INK, 0.85 if most <= 3 else 0.15 + 0.8 * hits[column] / most) for column in sorted(hits)]
        axes.vlines(at, place - 0.33, place + 0.33, color=marks, linewidth=1.1)  # all at once: each call takes 5 ms
    if rows:
        axes.set_yticks(range(len(rows)), [label for label, _ in rows], parse_math=False, fontsize=9)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no failure", transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.set_ylim(max(1, len(rows)) - 0.4, -0.6)
    title = "Failures by cause: a mark for each, their number beside the name"
    axes.set_title(title, loc="left", color=INK, fontsize=10, fontweight="bold")
