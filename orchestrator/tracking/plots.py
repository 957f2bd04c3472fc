"""Pictures of a run as PNG bytes, 900 by 540 pixels, or as SVG. Pure: numbers in, bytes out.

Called by `tracking.artifacts`. Invariant: matplotlib's object interface with the Agg canvas only, so that
nothing global (pyplot, a display) is touched; imported late, because it is slow.
"""

from __future__ import annotations

import io
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.tracking.names import clipped
from orchestrator.tracking.palette import BLUE, GRID, HAZE, INK, MUTED, PAPER, RUST, SAND

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_TRAIN, _EVAL = BLUE, RUST
DPI = 100
_SIZE = (9.0, 5.4)

Form = Literal["png", "svg"]
"""SVG with letters as paths, so that it looks the same without our fonts."""


@dataclass(frozen=True)
class Curve:
    """Points of one quantity; xs and ys have the same length, values that are not finite are left out."""

    xs: Sequence[float]
    ys: Sequence[float]

    def finite(self) -> Curve:
        """Without the points that cannot be drawn."""
        pairs = [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        return Curve([x for x, _ in pairs], [y for _, y in pairs])


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis in which nothing was learned, and why."""

    start: float
    end: float
    why: str
    wasted: bool


def loss_against_tokens(loss: Curve, bits: Curve, *, subtitle: str = "") -> bytes:
    """Training loss (nats per token) and held-out bits per byte against tokens trained."""
    figure, axes = canvas("Loss against tokens", subtitle)
    draw_loss(axes, loss, bits, "tokens trained")
    return drawn(figure)


def loss_against_money(
    loss: Curve, bits: Curve, *, currency: str, bands: Sequence[Band] = (), subtitle: str = "", form: Form = "png"
) -> bytes:
    """The same against money spent, in the currency's units; `bands` say what was paid for without a step."""
    figure, axes = canvas("Loss against money", subtitle)
    draw_loss_against_money(axes, loss, bits, currency, bands)
    return drawn(figure, form)


def draw_loss_against_money(axes: Axes, loss: Curve, bits: Curve, currency: str, bands: Sequence[Band]) -> None:
    """On axes that have their title already."""
    if bands:
        _draw_bands(axes, bands)
    draw_loss(axes, loss, bits, f"spent ({currency})", "$" if currency == "USD" else "", bands)
    if bands:
        axes.set_xlim(0, max([*loss.finite().xs, *bits.finite().xs, *(band.end for band in bands)]) * 1.01)


def _draw_bands(axes: Axes, bands: Sequence[Band]) -> None:
    """Grey is the price of a start, sand is waste; a name stands where there is room for it."""
    for wasted, colour in ((True, SAND), (False, HAZE)):
        spans = [(band.start, band.end - band.start) for band in bands if band.wasted is wasted]
        axes.broken_barh(spans, (0, 1), transform=axes.get_xaxis_transform(), facecolor=colour, linewidth=0, zorder=0)
    end = max((band.end for band in bands), default=0.0)
    for band in bands:
        if band.end - band.start > 0.03 * end:
            axes.text(
                (band.start + band.end) / 2, 0.97, band.why, transform=axes.get_xaxis_transform(), rotation=90,
                ha="center", va="top", color=MUTED, fontsize=9, parse_math=False,
            )  # fmt: skip


def smoothed(ys: Sequence[float], half_life: float) -> list[float]:
    """Exponential moving average, free of the bias of its start; `half_life` in points."""
    keep = 0.5 ** (1 / half_life)
    total, weight, found = 0.0, 0.0, []
    for y in ys:
        total, weight = keep * total + y, keep * weight + 1
        found.append(total / weight)
    return found


def expert_load(layers: Sequence[str], load: Sequence[Sequence[float]], *, step: int) -> bytes:
    """Layer-by-expert map of load / fair share: 1.0 is fair, 0 a dead expert.

    `load[i][j]` is how many tokens layer `layers[i]` sent to expert j. ValueError if sizes differ.
    """
    from matplotlib.colors import TwoSlopeNorm

    shares = _shares(layers, load)
    experts = len(shares[0])
    top = max(2.0, *(value for row in shares for value in row))
    figure, axes = canvas("Load of each expert", f"step {step:,}: tokens routed / fair share; 1.0 is fair")
    image = axes.imshow(shares, aspect="auto", cmap="RdBu_r", interpolation="nearest", norm=TwoSlopeNorm(1.0, 0.0, top))
    axes.set_xlabel("expert", color=INK)
    axes.set_ylabel("layer", color=INK)
    every = max(1, math.ceil(experts / 16))
    axes.set_xticks(range(0, experts, every))
    rows = _labelled(layers)
    axes.set_yticks(rows, [_layer_name(layers[row]) for row in rows])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    if len(layers) <= 12 and experts <= 16:
        _write_values(axes, shares, top)
    bar = figure.colorbar(image, ax=axes, pad=0.02, ticks=_bar_ticks(top))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, colors=MUTED)
    bar.ax.set_yticklabels([f"{tick:g}" for tick in _bar_ticks(top)])
    return drawn(figure)


def _bar_ticks(top: float) -> list[float]:
    above = round(top, 1) if top < 10 else float(math.floor(top))
    return [0.0, 0.5, 1.0, *([round((1 + above) / 2, 1)] if above > 1.4 else []), min(above, top)]


def _shares(layers: Sequence[str], load: Sequence[Sequence[float]]) -> list[list[float]]:
    if not layers or len(layers) != len(load):
        raise ValueError(f"{len(layers)} layers are named, but the load has {len(load)} rows")
    if not load[0] or any(len(row) != len(load[0]) for row in load):
        raise ValueError(f"rows must have the same number of experts, got {sorted({len(row) for row in load})}")
    if any(not math.isfinite(value) or value < 0 for row in load for value in row):
        raise ValueError("loads are counts: finite and not negative")
    # A layer that routed nothing yet is shown as fair rather than divided by zero.
    return [[value * len(row) / sum(row) for value in row] if sum(row) else [1.0] * len(row) for row in load]


def _labelled(layers: Sequence[str]) -> list[int]:
    """Rows that get a label: about 24, always those of multi-token prediction, none so near as to overlap."""
    every = max(1, math.ceil(len(layers) / 24))
    extra = [row for row, name in enumerate(layers) if name.startswith("mtp.")]
    main = [row for row in range(0, len(layers), every) if all(abs(row - one) >= every for one in extra)]
    return sorted(main + extra)


def _layer_name(name: str) -> str:
    return f"MTP {name.removeprefix('mtp.')}" if name.startswith("mtp.") else name


def _write_values(axes: Axes, shares: Sequence[Sequence[float]], top: float) -> None:
    for y, row in enumerate(shares):
        for x, value in enumerate(row):
            dark = value < 0.3 or value > 1 + 0.7 * (top - 1)
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else INK)


def draw_loss(axes: Axes, loss: Curve, bits: Curve, x_label: str, prefix: str = "", bands: Sequence[Band] = ()) -> None:
    """Loss on the left axis, bits per byte on one of their own on the right."""
    loss, bits = loss.finite(), bits.finite()
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel("training loss (nats per token)", color=_TRAIN)
    axes.tick_params(axis="y", colors=_TRAIN)
    axes.xaxis.set_major_formatter(lambda value, _: prefix + short_number(value))
    if loss.xs:
        mean = smoothed(loss.ys, max(1.0, len(loss.ys) / 80))
        for part in _parts(loss.xs, bands):
            axes.plot(loss.xs[part], loss.ys[part], color=_TRAIN, linewidth=0.8, alpha=0.28)
            axes.plot(loss.xs[part], mean[part], color=_TRAIN, linewidth=2.0)
        _limit(axes, loss.ys, mean)
        axes.set_ylabel(f"training loss (nats per token), {mean[-1]:.3f} at last", color=_TRAIN)
    else:
        axes.text(0.5, 0.5, "no step yet", transform=axes.transAxes, ha="center", color=MUTED)
    if bits.xs:
        right = axes.twinx()
        plain(right)
        right.set_ylabel(f"held-out bits per byte, {bits.ys[-1]:.3f} at last", color=_EVAL)
        right.tick_params(axis="y", colors=_EVAL, length=0)
        right.plot(bits.xs, bits.ys, color=_EVAL, linewidth=1.6, marker="o", markersize=5)
        low, high = min(bits.ys), max(bits.ys)
        room = (high - low) or max(abs(high), 1.0) * 0.1
        # More room above than below keeps the two curves apart.
        right.set_ylim(low - 0.35 * room, high + 0.15 * room)


def _limit(axes: Axes, ys: Sequence[float], mean: Sequence[float]) -> None:
    """A single spike must not flatten the curve: the range follows the mean, and most of the points."""
    ordered = sorted(ys)
    low = min(ordered[len(ordered) // 100], min(mean))
    high = max(ordered[-1 - len(ordered) // 100], max(mean))
    room = (high - low) or max(abs(high), 1.0) * 0.1
    axes.set_ylim(low - 0.08 * room, high + 0.08 * room)


def _parts(xs: Sequence[float], bands: Sequence[Band]) -> list[slice]:
    """Runs of points with no waste between them: a line across it would be of steps that nobody did."""
    cuts = set()
    for band in bands:
        # money by the meter and by the ledger agree to some 12 decimals, not to the last bit
        slack = 1e-6 * (band.end - band.start)
        after = bisect_right(xs, band.start + slack)
        if band.wasted and 0 < after < len(xs) and xs[after] >= band.end - slack:
            cuts.add(after)
    return [slice(*ends) for ends in pairwise([0, *sorted(cuts), len(xs)])]


def canvas(title: str, subtitle: str) -> tuple[Figure, Axes]:
    """An empty picture in the style of all."""
    figure = blank(_SIZE[1])
    axes = figure.add_subplot()
    styled(axes, title, subtitle)
    return figure, axes


def blank(height: float) -> Figure:
    """Paper as wide as all pictures, `height` inches high."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    return Figure(figsize=(_SIZE[0], height), dpi=DPI, layout=layout, facecolor=PAPER)


def headed(height: float, title: str, *lines: str) -> tuple[Figure, SubFigure]:
    """Paper with a title and lines over all, and the place below them; texts that are too long for it are cut."""
    top = 0.5 + 0.2 * len(lines)
    figure = blank(height + top)
    head, body = figure.subfigures(2, 1, height_ratios=[top, height], squeeze=False)[:, 0]
    axes = head.add_subplot()
    axes.set_axis_off()
    axes.text(0, 1, clipped(title, 64), va="top", color=INK, fontsize=14, fontweight="bold", parse_math=False)
    text = "\n".join(clipped(line, 118) for line in lines)
    axes.text(0, 0, text, va="bottom", color=MUTED, fontsize=10, linespacing=1.4, parse_math=False)
    return figure, body


def stacked(place: Figure | SubFigure, heights: Sequence[float]) -> list[Axes]:
    """One picture below the other, each with margins of its own; `heights` in any unit."""
    places = place.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    return [part.add_subplot() for part in places]


def styled(axes: Axes, title: str, subtitle: str = "", *, grid: Literal["x", "y"] = "y") -> None:
    """Heads, and lines along one axis only."""
    axes.set_facecolor(PAPER)
    axes.set_title(title, loc="left", color=INK, fontsize=14, fontweight="bold", pad=24 if subtitle else 10)
    if subtitle:
        axes.text(
            0, 1.02, subtitle, transform=axes.transAxes, color=MUTED, fontsize=10, va="bottom",
            parse_math=False,
        )  # fmt: skip
    plain(axes)
    axes.grid(visible=True, axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0)


def plain(axes: Any) -> None:  # noqa: ANN401 - matplotlib has no types for us
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def short_number(value: float) -> str:
    """1500000 as 1.5M."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def drawn(figure: Figure, form: Form = "png") -> bytes:
    """The finished picture; the same picture gives the same bytes. `savefig` would lay it out and draw it twice."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    if form == "svg":
        out = io.BytesIO()
        with rc_context({"svg.hashsalt": "fathom"}):  # names inside a drawing; matplotlib would draw them by chance
            FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
        return out.getvalue()
    paper = FigureCanvasAgg(figure)
    paper.draw()
    return _small(paper.buffer_rgba())


def _small(pixels: memoryview) -> bytes:
    """A third of the size, for pages and the README, by a table of the 256 most frequent colours.

    Those of paper, bars, lines and swatches stay exactly as they are, only edges of letters are rounded; Pillow's own
    `quantize` merges small swatches. Where more than 3 % of the picture has other colours, as in a map, all are kept.
    """
    import numpy
    from PIL import Image

    coloured, out = numpy.asarray(pixels)[..., :3], io.BytesIO()
    picture = Image.fromarray(numpy.ascontiguousarray(coloured))
    red, green, blue = coloured.reshape(-1, 3).astype(int).T
    packed = red * 65536 + green * 256 + blue
    starts = numpy.flatnonzero(numpy.diff(packed, prepend=-1))  # most pixels are as the one before: counted as one
    lengths = numpy.diff(starts, append=len(packed))
    found, kinds = numpy.unique(packed[starts], return_inverse=True)
    counts = numpy.bincount(kinds, weights=lengths).astype(int)
    places = numpy.repeat(kinds, lengths)
    frequent = numpy.argsort(-counts, kind="stable")[:256]
    if counts[frequent].sum() >= 0.97 * len(packed):
        colours = numpy.stack([found >> 16, found >> 8 & 255, found & 255], axis=1)
        table = colours[frequent]
        nearest = [int(((table - colour) ** 2).sum(axis=1).argmin()) for colour in colours]
        indices = numpy.array(nearest, dtype=numpy.uint8)[places]
        picture = Image.frombytes("P", picture.size, indices.tobytes())
        picture.putpalette(table.astype(numpy.uint8).tobytes())
    picture.save(out, "png", optimize=True, dpi=(DPI, DPI))
    return out.getvalue()
