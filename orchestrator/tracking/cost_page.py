"""Where the money of a run went, as a picture and as one page that needs no other file. Pure: a ledger in, bytes out.

Called by `tracking.artifacts` and `fathom cost --plot`. matplotlib is imported late, see `plots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrator.cost.groups import Dimension, grouped
from orchestrator.cost.meter import money
from orchestrator.cost.records import CLASSES, FLOPS_CONVENTION, WASTED, Ledger
from orchestrator.cost.timeline import TimeClass
from orchestrator.tracking import palette
from orchestrator.tracking.html_page import drawing, heading, page, paragraph, table
from orchestrator.tracking.palette import GRID, INK, MUTED, PAPER
from orchestrator.tracking.plots import (
    Band,
    Curve,
    Form,
    canvas,
    draw_loss_against_money,
    drawn,
    headed,
    loss_against_money,
    short_number,
    stacked,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEARNING: tuple[TimeClass, ...] = ("productive", "checkpoint")

Bar = tuple[TimeClass, list[tuple[str, Decimal]]]
"""A class of time, and its money by cause ("" where it has none)."""


def ledger_picture(ledger: Ledger, *, form: Form = "png", subtitle: bool = True) -> bytes:
    """Money by class of time; what was wasted is divided by its cause."""
    figure, axes = canvas("Where the money went", _subtitle(ledger) if subtitle else "")
    _draw_ledger(axes, ledger)
    return drawn(figure, form)


def cost_picture(ledger: Ledger, loss: Curve, bits: Curve, *, title: str) -> bytes:
    """Both pictures on one PNG, 900 by 970 pixels."""
    figure, body = headed(9.0, title, _subtitle(ledger))
    upper, lower = stacked(body, [1, 1])
    styled(upper, "Where the money went", grid="x")
    _draw_ledger(upper, ledger)
    styled(lower, "Loss against money")
    draw_loss_against_money(lower, loss, bits, ledger.rate.currency, bands(ledger))
    return drawn(figure)


def cost_page(ledger: Ledger, loss: Curve, bits: Curve, *, title: str) -> bytes:
    """HTML with both pictures inside, and the sums as tables."""
    currency = ledger.rate.currency
    money_axis = loss_against_money(loss, bits, currency=currency, bands=bands(ledger), form="svg")
    parts = [
        heading(title),
        paragraph(_subtitle(ledger)),
        drawing(ledger_picture(ledger, form="svg", subtitle=False), "Money by class of time; the tables hold it"),
        drawing(money_axis, "Loss against money"),
        _table(ledger, "class", "class of time"),
        _table(ledger, "attempt", "attempt"),
        _table(ledger, "cause", "cause of waste"),
        paragraph(_bought(ledger)),
        *(paragraph(f"Price: {line}") for line in _prices(ledger)),
        paragraph("Amounts here are rounded; fathom cost RUN -o csv has every digit."),
    ]
    return page(title, parts)


def bands(ledger: Ledger) -> list[Band]:
    """Stretches of the money spent in which no step counted, in their order; neighbours of one reason are one."""
    found: list[Band] = []
    spent = Decimal(0)
    for row in sorted(ledger.rows, key=lambda row: row.charge_period_start):
        before, spent = spent, spent + row.billed_cost
        if row.time_class in _LEARNING or not row.billed_cost:
            continue
        wasted = row.time_class in WASTED
        band = Band(float(before), float(spent), row.cause or row.time_class if wasted else row.time_class, wasted)
        if found and (found[-1].why, found[-1].end) == (band.why, band.start):
            band = Band(found.pop().start, band.end, band.why, wasted)
        found.append(band)
    return found


def _draw_ledger(axes: Axes, ledger: Ledger) -> None:
    rows = _bars(ledger)
    largest = max((sum(amount for _, amount in parts) for _, parts in rows), default=Decimal(0))
    if not largest:
        axes.text(0.5, 0.5, "nothing is paid for yet", transform=axes.transAxes, ha="center", color=MUTED)
        return
    for y, (name, parts) in enumerate(rows):
        left = 0.0
        for part, (_, amount) in enumerate(parts):
            alpha = max(0.35, 1 - 0.22 * part)
            axes.barh(y, float(amount), left=left, color=palette.TIME_CLASSES[name], alpha=alpha, height=0.62)
            left += float(amount)
            if part < len(parts) - 1:  # an edge all around would hide a bar of a pixel
                axes.vlines(left, y - 0.31, y + 0.31, color=PAPER, linewidth=1.2)
        axes.text(left + float(largest) * 0.012, y, _label(ledger, parts), va="center", color=INK, fontsize=10)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.tick_params(axis="y", colors=INK, labelsize=11)
    axes.set_ylim(max(len(rows), 3) - 0.4, -0.6)
    axes.set_xlim(0, float(largest) * 1.42)
    axes.set_xlabel(f"spent ({ledger.rate.currency})", color=INK)
    axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=GRID, linewidth=0.8)


def _bars(ledger: Ledger) -> list[Bar]:
    bars: list[Bar] = []
    for name in CLASSES:
        parts: dict[str, Decimal] = {}
        for row in ledger.rows:
            if row.time_class == name and row.billed_cost:
                cause = row.cause or "" if name in WASTED else ""
                parts[cause] = parts.get(cause, Decimal(0)) + row.billed_cost
        if parts:
            bars.append((name, sorted(parts.items(), key=lambda part: -part[1])))
    return bars


def _label(ledger: Ledger, parts: Sequence[tuple[str, Decimal]]) -> str:
    amount = sum((part for _, part in parts), Decimal(0))
    causes = [(cause, part) for cause, part in parts if cause]
    alone = len(causes) == 1
    shown = ", ".join(cause if alone else f"{cause} {money(part, ledger.rate.currency)}" for cause, part in causes[:2])
    shown += f" and {len(causes) - 2} more" if len(causes) > 2 else ""
    text = f"{money(amount, ledger.rate.currency)}  {float(amount / ledger.totals.cost):.1%}"
    return (f"{text}\n{shown}" if shown else text).replace("$", r"\$")


def _subtitle(ledger: Ledger) -> str:
    totals, currency = ledger.totals, ledger.rate.currency
    attempts = len({row.attempt for row in ledger.rows if row.held})
    plural = "s" if attempts != 1 else ""
    return (
        f"{money(totals.cost, currency)} for {totals.hours:,.3f} {ledger.rate.unit}s in {attempts} attempt{plural}, "
        f"{money(totals.wasted, currency)} of it wasted"
    )


def _bought(ledger: Ledger) -> str:
    totals, currency = ledger.totals, ledger.rate.currency
    text = f"Bought: {totals.tokens:,} tokens"
    if totals.cost_per_billion_tokens is not None:
        text += f", {money(totals.cost_per_billion_tokens, currency)} per billion"
    if totals.cost_per_exaflop is not None:
        text += f", {money(totals.cost_per_exaflop, currency)} per useful exaFLOP ({FLOPS_CONVENTION})"
    return text + "."


def _table(ledger: Ledger, by: Dimension, name: str) -> str:
    """Sums of one dimension, and what they add up to; nothing where there is nothing to add."""
    groups = grouped([ledger], by)
    seconds, cost = sum((one.seconds for one in groups), Decimal(0)), sum((one.cost for one in groups), Decimal(0))
    hours, whole = seconds >= 3 * 3600, ledger.totals.cost
    lines = [*((one.name, one.seconds, one.cost) for one in groups), ("together", seconds, cost)]
    rows = [
        (
            each,
            f"{time / 3600:,.2f}" if hours else f"{time:,.1f}",
            f"{amount:,.{_decimals(whole)}f}",
            f"{float(amount / whole):.1%}" if whole else "-",
        )
        for each, time, amount in lines
    ]
    head = (name, f"time ({'h' if hours else 's'})", f"cost ({ledger.rate.currency})", "share of all")
    return table(head, rows) if groups else ""


def _decimals(whole: Decimal) -> int:
    """Cents of large amounts; of a small one about four digits that say something."""
    return 2 if whole >= 100 or not whole else min(12, 3 - whole.adjusted())


def _prices(ledger: Ledger) -> list[str]:
    return [
        f"{rate.unit_price:f} {rate.currency} per {rate.unit} from {rate.date}, {rate.source}"
        for rate in ledger.rates or (ledger.rate,)
    ]
