"""How far a forecast may be off, from stated facts only. Pure; imports no torch.

Called by `orchestrator.plan.estimate`. Each reason carries two factors on what is expected. Those of the hours are
independent of each other, so their logarithms are added as squares; the price's comes on top in full, since a buyer
may well pay the dearest offer of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal

from orchestrator.plan.forecast import Cost, Range, Width
from orchestrator.plan.prices import Price


def together(widths: Iterable[Width]) -> tuple[float, float]:
    """Factors on hours of all reasons at once."""
    hours = [width for width in widths if width.affects == "hours"]
    low = math.sqrt(math.fsum(math.log(width.low) ** 2 for width in hours))
    high = math.sqrt(math.fsum(math.log(width.high) ** 2 for width in hours))
    return math.exp(-low), math.exp(high)


def spread(expected: float, widths: Iterable[Width]) -> Range:
    """Hours or GPU-hours from low to high."""
    low, high = together(widths)
    return Range(low=expected * low, expected=expected, high=expected * high)


def price_width(price: Price) -> Width | None:
    """The range of offers, where the price's source names one."""
    if price.low is None or price.high is None:
        return None
    return Width(
        affects="price",
        low=float(price.low / price.amount),
        high=float(price.high / price.amount),
        reason=f"offers from {price.low} to {price.high} {price.currency} per {price.unit}: {price.source}",
    )


def cost_of(device_hours: Range, price: Price) -> Cost:
    """In money: the lowest at the cheapest offer known, the highest at the dearest."""
    return Cost(
        low=amount(device_hours.low, price.low or price.amount),
        expected=amount(device_hours.expected, price.amount),
        high=amount(device_hours.high, price.high or price.amount),
        currency=price.currency,
    )


def amount(hours: float, each: Decimal) -> Decimal:
    """Money for so many device-hours."""
    return Decimal(repr(hours)) * each
