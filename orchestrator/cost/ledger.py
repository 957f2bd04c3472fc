"""Where each held second of a job went, and what it cost. Pure: events and held intervals in, rows out.

Called by the local launcher and the controller while a job runs and when an attempt ends. Invariants: the
rows partition the held intervals, so that no second is lost or counted twice; amounts are differences of one
running total, so that they add up to the total exactly. Times are whole microseconds inside.

Held time is ours (process or pod lifetime); event times are the workers' and only divide it, clamped to it.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, localcontext

from orchestrator.cost.meter import Rate, cost
from orchestrator.cost.records import CLASSES, DIGITS, GRAIN, WASTED, Ledger, Owner, Row, Totals
from orchestrator.cost.tariff import Tariff
from orchestrator.cost.timeline import Held, Phase, Piece, TimeClass, timeline
from orchestrator.launch.events import Event

__all__ = ["CLASSES", "WASTED", "Held", "Ledger", "Owner", "Row", "TimeClass", "Totals", "build_ledger"]


def build_ledger(
    events: Iterable[Event],
    held: Sequence[Held],
    price: Rate | Tariff,
    prices: Mapping[int, Rate | Tariff] | None = None,
    *,
    phases: Sequence[Phase] = (),
    flops_per_token: float | None = None,
    owner: Owner | None = None,
) -> Ledger:
    """The ledger of a job from all its events and all the intervals in which it held its devices.

    `price` is the present one; `prices` has those of attempts that were started at another one. `flops_per_token`:
    forward and backward, see `records.FLOPS_CONVENTION`.
    """
    found = timeline(events, held, phases)
    present = _tariff(price)
    rows, rates = _priced(found.pieces, present, {attempt: _tariff(of) for attempt, of in (prices or {}).items()})
    useful = None if flops_per_token is None else (found.tokens * Decimal(str(flops_per_token))).scaleb(-18)
    return Ledger(
        owner=owner,
        rate=price if isinstance(price, Rate) else _newest(rates, present),
        rates=tuple(rates),
        rows=tuple(rows),
        totals=Totals.of(rows, found.step, found.tokens, useful),
    )


def _tariff(price: Rate | Tariff) -> Tariff:
    return price if isinstance(price, Tariff) else Tariff(rates=(price,))


def _newest(rates: Sequence[Rate], present: Tariff) -> Rate:
    """The last one of the present tariff that anything was paid at."""
    return next((rate for rate in reversed(present.rates) if rate in rates), present.rates[0])


def _priced(pieces: Sequence[Piece], present: Tariff, tariffs: Mapping[int, Tariff]) -> tuple[list[Row], list[Rate]]:
    """Rows whose amounts are differences of the running total at each border, and the rates that they are priced at."""
    rows: list[Row] = []
    rates: list[Rate] = []
    running, before = Decimal(0), Decimal(0)
    for piece in pieces:
        for start, end, rate in tariffs.get(piece.attempt, present).periods(piece.start, piece.end):
            if rate not in rates:
                rates.append(rate)
            with localcontext(prec=DIGITS):
                running += cost(_seconds(end - start), rate) if piece.held else 0
                after = running.quantize(GRAIN)
            rows.append(_row(piece._replace(start=start, end=end), rate, after - before))
            before = after
    return rows, rates


def _row(piece: Piece, rate: Rate, amount: Decimal) -> Row:
    return Row(
        attempt=piece.attempt,
        time_class=piece.time_class,
        cause=piece.cause,
        held=piece.held,
        charge_period_start=_moment(piece.start),
        charge_period_end=_moment(piece.end),
        consumed_quantity=_seconds(piece.end - piece.start) * rate.units if piece.held else Decimal(0),
        consumed_unit="GPU-Seconds" if rate.unit == "gpu-hour" else "CPU-Seconds",
        list_unit_price=rate.unit_price,
        price_date=rate.date,
        billed_cost=amount,
        billing_currency=rate.currency,
    )


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def _moment(microseconds: int) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(microseconds=microseconds)


def _seconds(microseconds: int) -> Decimal:
    return Decimal(microseconds) / 1_000_000
