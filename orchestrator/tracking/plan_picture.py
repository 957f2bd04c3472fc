"""A forecast as a picture: memory of a GPU by part beside what it has, time of a step by part. PNG, or one HTML file.

Called by `fathom plan --plot`. Pure: `orchestrator.plan.figure` in, bytes out. matplotlib is imported late, see
`plots`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from orchestrator.plan.figure import Bar, Figure, Row, memory_label, time_label
from orchestrator.tracking import palette
from orchestrator.tracking.html_page import drawing, facts, heading, page, paragraph, table
from orchestrator.tracking.names import clipped
from orchestrator.tracking.palette import BLUE, INK, PAPER, SKY
from orchestrator.tracking.plots import Form, blank, drawn, headed, stacked, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Paper
    from matplotlib.figure import SubFigure

_GB = 1e9
_COLOURS = {
    "weights": palette.NAVY, "master": palette.BLUE, "gradients": palette.SKY, "moments": palette.ICE,
    "activations": palette.RUST, "logits": palette.AMBER, "buckets": palette.VIOLET, "gathered": palette.GREEN,
    "exchange": palette.CRIMSON, "update": palette.AMBER, "fragmentation": palette.SILVER,
}  # fmt: skip
"""In the order of a stack: what stays from step to step is blue."""
_LONGEST = 3.0
"""Times the device's memory that a bar is drawn at most; a longer one is cut, and says so."""

_LONGEST_NAME, _LONGEST_IN_LEGEND = 46, 32
"""Characters of a part's name; the tables have the whole one."""


def plan_png(figure: Figure, title: str, lines: Sequence[str]) -> bytes:
    """900 pixels wide, as high as the parts need; `lines` stand below the title."""
    return _drawn(figure, "png", title, lines)


def plan_html(figure: Figure, title: str, answers: Iterable[tuple[str, str]]) -> bytes:
    """One page with the picture and its figures; `answers`, each with its name, stand below the title."""
    said = "Memory of a GPU by part and time of a step by part; the tables below hold the figures"
    parts = [
        heading(title),
        facts(answers),
        drawing(_drawn(figure, "svg"), said),
    ]
    if figure.bars:
        head = ("memory of the fullest GPU (GB)", *(_name(bar) for bar in figure.bars))
        parts += [heading("Memory by recomputation", 2), table(head, _memory_rows(figure.bars))]
    if figure.rows:
        parts += [
            heading(f"Time of one step: {figure.seconds:.3g} s", 2),
            table(("part", "counts (s)", "share", "hidden (s)"), _time_rows(figure)),
            paragraph("Hidden seconds pass behind other parts and cost nothing."),
        ]
    return page(title, parts)


# ------------------------------------------------------------------ tables


def _name(bar: Bar) -> str:
    return f"{bar.policy} (chosen)" if bar.chosen else bar.policy


def _memory_rows(bars: tuple[Bar, ...]) -> list[tuple[str, ...]]:
    rows = [(memory_label(part), *(_gigabytes(bar.parts.get(part, 0)) for bar in bars)) for part in _parts(bars)]
    fits = ("", *("fits" if bar.fits else "does not fit" for bar in bars))
    return [*rows, ("at its highest", *(_gigabytes(bar.peak) for bar in bars)), fits]


def _parts(bars: tuple[Bar, ...]) -> list[str]:
    """Each part that any bar has, in the order of a stack; what has no colour of its own comes last."""
    present = dict.fromkeys(part for bar in bars for part in bar.parts)
    return [*(part for part in _COLOURS if part in present), *(part for part in present if part not in _COLOURS)]


def _gigabytes(size: int) -> str:
    return f"{size / _GB:,.2f}" if size else "-"


def _time_rows(figure: Figure) -> list[tuple[str, ...]]:
    rows = [
        (
            time_label(row.part),
            f"{row.counts:.3f}" if row.counts else "-",
            _share(row.counts, figure.seconds) if row.counts else "-",
            f"{row.hidden:.3f}" if row.hidden else "",
        )
        for row in figure.rows
    ]
    hidden = sum(row.hidden for row in figure.rows)
    return [*rows, ("together", f"{figure.seconds:.3f}", "100.0%", f"{hidden:.3f}" if hidden else "")]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


# ------------------------------------------------------------------ the picture


def _drawn(figure: Figure, form: Form, title: str = "", lines: Sequence[str] = ()) -> bytes:
    halves: list[tuple[float, Callable[[Axes, Figure], None]]] = []
    if figure.bars:
        halves.append((max(1.4 + 0.42 * len(figure.bars), 1.0 + 0.22 * len(_parts(figure.bars))), _draw_memory))
    if figure.rows:
        halves.append((1.3 + 0.23 * len(figure.rows), _draw_time))
    heights = [height for height, _ in halves]
    picture: Paper
    place: Paper | SubFigure
    if title:
        picture, place = headed(sum(heights), title, *lines)
    else:
        picture = place = blank(sum(heights))
    for axes, (_, draw) in zip(stacked(place, heights), halves, strict=True):
        draw(axes, figure)
    return drawn(picture, form)


def _draw_memory(axes: Axes, figure: Figure) -> None:
    styled(axes, "Memory of the fullest GPU, by recomputation", grid="x")
    end = min(_LONGEST * figure.device, max(figure.device, *(bar.peak for bar in figure.bars))) / _GB
    for part in _parts(figure.bars):
        lefts, widths = zip(*(_span(bar, part) for bar in figure.bars), strict=True)
        axes.barh(
            range(len(figure.bars)), widths, left=lefts, height=0.62, color=_COLOURS.get(part, palette.STEEL),
            edgecolor=PAPER, linewidth=0.6, label=_legend(part, figure.bars),
        )  # fmt: skip
    limit = figure.usable / _GB
    axes.axvline(limit, color=INK, linewidth=1.3, linestyle=(0, (4, 2)))
    axes.annotate(
        f"{limit:.1f} GB usable", (limit, -0.5), xytext=(5, 0), textcoords="offset points", color=INK, fontsize=9
    )
    for y, bar in enumerate(figure.bars):
        axes.annotate(
            _verdict(bar, figure.usable), (min(bar.peak / _GB, end), y), xytext=(6, 0), textcoords="offset points",
            va="center", color=INK, fontsize=9.5, bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    axes.set_yticks(range(len(figure.bars)), [_name(bar) for bar in figure.bars])
    axes.tick_params(axis="y", colors=INK)
    axes.set_ylim(len(figure.bars) - 0.5, -0.85)
    axes.set_xlim(0, 1.55 * end)
    axes.set_xlabel("GB per GPU", color=INK)
    legend = axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.04), frameon=False, fontsize=9, labelcolor=INK,
        handlelength=0.9, handleheight=0.9, title=_legend_title(figure.bars), title_fontsize=9, alignment="left",
    )  # fmt: skip
    legend.get_title().set_color(INK)


def _span(bar: Bar, part: str) -> tuple[float, float]:
    """Where a part begins in its bar, and how wide it is, in GB; nothing where the bar has no such part."""
    before = 0
    for name in _parts((bar,)):
        if name == part:
            return before / _GB, bar.parts[name] / _GB
        before += bar.parts[name]
    return 0.0, 0.0


def _legend(part: str, bars: tuple[Bar, ...]) -> str:
    sizes = [bar.parts.get(part, 0) for bar in bars if bar.chosen]
    name = clipped(memory_label(part), _LONGEST_IN_LEGEND)
    return f"{name}  {_gigabytes(sizes[0])}" if sizes else name


def _legend_title(bars: tuple[Bar, ...]) -> str:
    return next((f"GB with {bar.policy}" for bar in bars if bar.chosen), "")


def _verdict(bar: Bar, usable: int) -> str:
    difference = abs(usable - bar.peak) / _GB
    return f"{bar.peak / _GB:.1f} GB: {difference:.1f} {'to spare' if bar.fits else 'too many'}"


def _draw_time(axes: Axes, figure: Figure) -> None:
    hidden_too = "; hatched: hidden behind other parts, costs nothing" if any(row.hidden for row in figure.rows) else ""
    styled(axes, f"Time of one step: {figure.seconds:.3g} s", f"Solid: what the step waits for{hidden_too}", grid="x")
    places = range(len(figure.rows))
    counts, hidden = [row.counts for row in figure.rows], [row.hidden for row in figure.rows]
    axes.barh(places, counts, height=0.68, color=BLUE)
    axes.barh(
        places, hidden, left=counts, height=0.68, facecolor=PAPER, edgecolor=SKY, hatch="////", linewidth=0.8,
    )  # fmt: skip
    for y, row in enumerate(figure.rows):
        axes.annotate(
            _seconds(row, figure), (row.counts + row.hidden, y), xytext=(5, 0), textcoords="offset points",
            va="center", color=INK, fontsize=9,
        )  # fmt: skip
    axes.set_yticks(
        places, [clipped(time_label(row.part), _LONGEST_NAME) for row in figure.rows], fontsize=9.5, parse_math=False
    )
    axes.tick_params(axis="y", colors=INK)
    axes.set_ylim(len(figure.rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * max(1e-9, *(row.counts + row.hidden for row in figure.rows), 0.0))
    axes.set_xlabel("seconds per step", color=INK)


def _seconds(row: Row, figure: Figure) -> str:
    words = [f"{row.counts:.3f} s, {_share(row.counts, figure.seconds)}"] if row.counts else []
    return ", ".join([*words, *([f"{row.hidden:.3f} s hidden"] if row.hidden else [])])
