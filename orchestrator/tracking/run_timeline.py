"""A simulated run as a picture: where its time went, and which failure struck when. PNG, or one HTML file.

Called by `fathom goodput --timeline`. Pure: a run in, bytes out. Invariants: the HTML holds everything in itself
(inline SVG, no script, nothing from elsewhere); the same run gives the same bytes; matplotlib is imported late.
"""

from __future__ import annotations

import html
import io
from itertools import pairwise
from typing import TYPE_CHECKING

from orchestrator.plan.bins import Bins, bins
from orchestrator.plan.policy import in_words
from orchestrator.plan.simulate import CLASSES, Run, TimeClass
from orchestrator.tracking.plots import DPI, GRID, INK, MUTED, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    "checkpoint": "#9db4c8", "lost": "#2563a8", "slow": "#4d9078", "detecting": "#f0b429", "waiting": "#7a4fa3",
    "replacing": "#c2570c", "restarting": "#e9a36b",
}  # fmt: skip
ROWS = 9
"""Causes with a row of their own; all others share the last."""
LONGEST = 26
"""Characters of a row's label; the tables have the whole names."""
_HOUR = 3_600_000_000


def draw_png(run: Run, subtitle: str) -> bytes:
    """900 by 660 pixels."""
    out = io.BytesIO()
    _figure(run, subtitle).savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def draw_html(run: Run, subtitle: str) -> bytes:
    """One page with the picture and its figures."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": "fathom"}):  # names inside the file; matplotlib would draw them by chance
        _figure(run, subtitle).savefig(out, format="svg", metadata={"Date": None})
    picture = out.getvalue()
    picture = picture[picture.index("<svg") :].replace(
        "<svg ", '<svg role="img" aria-label="Timeline of the run; the tables below hold its figures" ', 1
    )
    hours = {LABELS[name]: run.times[name] for name in CLASSES}
    page = _PAGE.format(
        title=html.escape(subtitle),
        piece=_length(bins(run).width),
        picture=picture,
        classes=_rows(hours, run.wall),
        causes=_rows(run.lost_by_cause(), run.wall, run.counts()),
    )
    return page.encode()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Timeline: {title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: white; max-width: 980px; margin: 2em auto;
  padding: 0 1em }}
svg {{ width: 100%; height: auto }}
p {{ max-width: 44em; color: #66727f }}
table {{ border-collapse: collapse; margin: 1.5em 0 }}
th {{ text-align: left; color: #66727f; font-weight: 600 }}
td, th {{ padding: .2em 1.2em .2em 0 }}
td + td, th + th {{ text-align: right; font-variant-numeric: tabular-nums }}
</style></head><body>
{picture}
<p>The bars show, per {piece}, the share of the time that brought no progress. Their colours say what it went into;
the figures beside the colours are shares of the whole run. All that is above the bars is training that counts. Below,
each mark is one failure at the moment when it struck.</p>
<table><thead><tr><th>where the time went</th><th>hours</th><th>share</th></tr></thead><tbody>{classes}</tbody></table>
<table><thead><tr><th>lost by cause</th><th>hours</th><th>share</th><th>failures</th></tr></thead>
<tbody>{causes}</tbody></table>
</body></html>
"""


def _rows(times: dict[str, int], wall: int, counts: dict[str, int] | None = None) -> str:
    rows = []
    for name, micro in times.items():
        if micro:
            cells = [html.escape(name), f"{micro / _HOUR:,.1f}", f"{micro / wall:.2%}"]
            if counts is not None:
                cells.append(f"{counts[name]:,}" if name in counts else "")
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "\n".join(rows)


# ------------------------------------------------------------------ the picture
def _figure(run: Run, subtitle: str) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    found = bins(run)
    rows = _grouped(found)
    figure = Figure(
        figsize=(9.0, 3.9 + 0.27 * max(1, len(rows))), dpi=DPI, facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08),
    )  # fmt: skip
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[10, max(2, 1.05 * len(rows))])
    unit, name = _unit(run.wall)
    lines = -(-sum(1 for lost in CLASSES[1:] if run.times[lost]) // 3)
    title = f"What failures take: {1 - run.goodput:.1%} of {in_words(run.wall / 1e6)}"
    figure.suptitle(title, x=0.015, ha="left", color=INK, fontsize=14, fontweight="bold")
    upper.set_title(subtitle, loc="left", color=MUTED, fontsize=10, pad=12 + 17 * lines, parse_math=False)
    _draw_lost(upper, run, found, unit)
    _draw_failures(lower, run, rows, unit)
    lower.set_xlabel(name, color=INK)
    for axes in (upper, lower):
        plain(axes)
        axes.tick_params(colors=MUTED, length=0)
        axes.set_xlim(0, run.wall / unit)
    return figure


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
    if below and max(below) > 0:
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
        for column, count in sorted(hits.items()):
            alpha = 0.85 if most <= 3 else 0.15 + 0.8 * count / most
            at = (column + 0.5) / columns * run.wall / unit
            axes.vlines(at, place - 0.33, place + 0.33, color=INK, alpha=alpha, linewidth=1.1)
    if rows:
        axes.set_yticks(range(len(rows)), [label for label, _ in rows], parse_math=False, fontsize=9)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no failure", transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.set_ylim(max(1, len(rows)) - 0.4, -0.6)
    title = "Failures by cause: a mark for each, their number beside the name"
    axes.set_title(title, loc="left", color=INK, fontsize=10, fontweight="bold")
