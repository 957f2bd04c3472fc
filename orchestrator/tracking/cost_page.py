"""Where the money of a run went, as a picture and as one page that needs no other file. Pure: a ledger in, bytes out.

Called by `tracking.artifacts` and `controller.pictures`. matplotlib is imported late, see `plots`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from html import escape

from orchestrator.cost.meter import money
from orchestrator.cost.records import CLASSES, FLOPS_CONVENTION, WASTED, Ledger
from orchestrator.tracking.plots import GRID, INK, MUTED, Curve, Form, canvas, drawn, loss_against_money

_COLOURS = {
    "queued": "#9aa5b1", "pulling": "#b8c2cc", "starting": "#7b8794", "productive": "#2563a8", "checkpoint": "#6fa8dc",
    "recovering": "#c2570c", "lost": "#9b1c1c", "idle": "#e0a458",
}  # fmt: skip

Bar = tuple[str, list[tuple[str, Decimal]]]
"""A class of time, and its money by cause ("" where it has none)."""


def ledger_picture(ledger: Ledger, *, form: Form = "png") -> bytes:
    """Money by class of time; what was wasted is divided by its cause."""
    currency, bars = ledger.rate.currency, _bars(ledger)
    figure, axes = canvas("Where the money went", _subtitle(ledger))
    largest = max((sum(amount for _, amount in parts) for _, parts in bars), default=Decimal(0))
    if not largest:
        axes.text(0.5, 0.5, "nothing is paid for yet", transform=axes.transAxes, ha="center", color=MUTED)
        return drawn(figure, form)
    for y, (name, parts) in enumerate(bars):
        left = 0.0
        for part, (_, amount) in enumerate(parts):
            alpha = max(0.35, 1 - 0.22 * part)
            axes.barh(y, float(amount), left=left, color=_COLOURS[name], alpha=alpha, height=0.62, edgecolor="white")
            left += float(amount)
        axes.text(left + float(largest) * 0.012, y, _label(ledger, parts), va="center", color=INK, fontsize=10)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.tick_params(axis="y", colors=INK, labelsize=11)
    axes.set_ylim(max(len(bars), 3) - 0.4, -0.6)
    axes.set_xlim(0, float(largest) * 1.42)
    axes.set_xlabel(f"spent ({currency})", color=INK)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=GRID, linewidth=0.8)
    return drawn(figure, form)


def cost_page(ledger: Ledger, loss: Curve, bits: Curve, *, title: str) -> bytes:
    """HTML with both pictures inside, and the sums as a table."""
    currency = ledger.rate.currency
    pictures = [
        ledger_picture(ledger, form="svg"),
        loss_against_money(loss, bits, currency=currency, subtitle=_subtitle(ledger), form="svg"),
    ]
    body = "\n".join(
        [
            f"<h1>{escape(title)}</h1>",
            f"<p>{escape(_subtitle(ledger))}</p>",
            *(f"<figure>{_inline(picture)}</figure>" for picture in pictures),
            _table(("class", "time (s)", f"cost ({currency})", "share"), _class_rows(ledger)),
            _table(("cause of waste", f"cost ({currency})"), _cause_rows(ledger)),
            f"<p>{escape(_bought(ledger))}</p>",
            *(f"<p>Price: {escape(line)}</p>" for line in _prices(ledger)),
        ]
    )
    return _HTML.format(title=escape(title), body=body).encode()


_HTML = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
figure {{ margin: 1.5rem 0 }} svg {{ width: 100%; height: auto }} table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #e4e7eb }}
th:first-child, td:first-child {{ text-align: left }}
</style></head><body>
{body}
</body></html>
"""


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
    causes = [cause for cause, _ in parts if cause]
    shown = ", ".join(causes[:2]) + (f" and {len(causes) - 2} more" if len(causes) > 2 else "")
    text = f"{money(amount, ledger.rate.currency)}  {float(amount / ledger.totals.cost):.1%}"
    return (f"{text}\n{shown}" if shown else text).replace("$", r"\$")


def _subtitle(ledger: Ledger) -> str:
    totals, currency = ledger.totals, ledger.rate.currency
    attempts = len({row.attempt for row in ledger.rows if row.held})
    plural = "s" if attempts != 1 else ""
    return (
        f"{money(totals.cost, currency)} for {totals.hours:.3f} {ledger.rate.unit}s in {attempts} attempt{plural}, "
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


def _class_rows(ledger: Ledger) -> list[tuple[str, ...]]:
    totals = ledger.totals
    return [
        (name, f"{seconds:,.1f}", f"{totals.cost_by_class[name]:f}", _share(totals.cost_by_class[name], totals.cost))
        for name, seconds in totals.seconds_by_class.items()
        if seconds
    ]


def _share(part: Decimal, whole: Decimal) -> str:
    return f"{float(part / whole):.1%}" if whole else "-"


def _cause_rows(ledger: Ledger) -> list[tuple[str, ...]]:
    return [(cause, f"{amount:f}") for cause, amount in ledger.totals.wasted_by_cause.items()]


def _prices(ledger: Ledger) -> list[str]:
    return [
        f"{rate.unit_price:f} {rate.currency} per {rate.unit} from {rate.date}, {rate.source}"
        for rate in ledger.rates or (ledger.rate,)
    ]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{titles}</tr>\n{lines}</table>"


def _inline(svg: bytes) -> str:
    """The drawing without the head of a file of its own."""
    text = svg.decode()
    return text[text.index("<svg") :]
