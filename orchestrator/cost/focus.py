"""Ledgers as a table with the columns of FOCUS 1.2, and as CSV or Parquet. Pure: ledgers in, rows or bytes out.

All mandatory columns are there. Those about an invoice stay empty, since nobody here has seen one: `UNKNOWN`. FOCUS
forbids that of all but one, so whoever loads the table into a FOCUS data set fills them in. Our own begin with `x_`.
"""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Sequence
from decimal import Decimal, localcontext

from orchestrator.cost.meter import Rate
from orchestrator.cost.records import Ledger, Row

Value = Decimal | datetime.datetime | datetime.date | str | int | bool | None

UNKNOWN = (
    "BillingAccountId", "BillingAccountName", "BillingPeriodEnd", "BillingPeriodStart", "InvoiceIssuerName",
    "ProviderName", "PublisherName",
)  # fmt: skip
"""Mandatory columns that only an invoice could fill."""
COLUMNS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd",
    "ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice", "EffectiveCost",
    "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory", "PricingQuantity", "PricingUnit",
    "ProviderName", "PublisherName", "ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName",
    "SubAccountId", "SubAccountName",
    "x_Attempt", "x_TimeClass", "x_Cause", "x_Held", "x_PriceClass", "x_PriceDate", "x_PriceSource",
)  # fmt: skip
_AMOUNTS = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost", "ContractedUnitPrice", "ListUnitPrice")
_QUANTITIES = ("ConsumedQuantity", "PricingQuantity")
_TIMES = ("BillingPeriodEnd", "BillingPeriodStart", "ChargePeriodEnd", "ChargePeriodStart")
_PRICING = {"on-demand": "Standard", "reserved": "Committed", "spot": "Dynamic"}


def focus_rows(ledgers: Sequence[Ledger]) -> list[dict[str, Value]]:
    """A dictionary with all COLUMNS for each row of each ledger."""
    return [_focus_row(ledger, row) for ledger in ledgers for row in ledger.rows]


def _focus_row(ledger: Ledger, row: Row) -> dict[str, Value]:
    rate = _rate(ledger, row)
    owner, what = ledger.owner, rate.accelerator or rate.unit.removesuffix("-hour").upper()
    cost, price = row.billed_cost, row.list_unit_price
    with localcontext(prec=60):
        hours = (row.consumed_quantity / 3600).quantize(Decimal(1).scaleb(-12))
    found: dict[str, Value] = dict.fromkeys(COLUMNS)
    found |= {
        **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), cost),
        **dict.fromkeys(("ContractedUnitPrice", "ListUnitPrice"), price),
        "BillingCurrency": row.billing_currency,
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{what}, {row.time_class}" + (f" ({row.cause})" if row.cause else ""),
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": row.charge_period_end,
        "ChargePeriodStart": row.charge_period_start,
        "ConsumedQuantity": row.consumed_quantity,
        "ConsumedUnit": row.consumed_unit,
        "PricingCategory": _PRICING.get(rate.price_class or "", "Other"),
        "PricingQuantity": hours,
        "PricingUnit": row.consumed_unit.replace("Seconds", "Hours"),
        "ServiceCategory": "Compute",
        "ServiceName": f"{what} {rate.price_class}" if rate.price_class else what,
        "x_Attempt": row.attempt,
        "x_TimeClass": row.time_class,
        "x_Cause": row.cause,
        "x_Held": row.held,
        "x_PriceClass": rate.price_class,
        "x_PriceDate": row.price_date,
        "x_PriceSource": rate.source if row.price_date is not None else None,
    }
    if owner is not None:
        found |= {
            "ResourceId": owner.uid,
            "ResourceName": owner.job,
            "ResourceType": what,
            "SubAccountId": owner.team,
            "SubAccountName": owner.team,
        }
    return found


def _rate(ledger: Ledger, row: Row) -> Rate:
    """The one that the row is priced at; of a ledger of version 1 the newest."""
    same = [rate for rate in ledger.rates if (rate.date, rate.unit_price) == (row.price_date, row.list_unit_price)]
    return same[0] if same else ledger.rate


def as_text(value: Value) -> str:
    """As CSV and JSON show it: plain decimals, times in UTC."""
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_csv(ledgers: Sequence[Ledger]) -> bytes:
    """With a head."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([as_text(value) for value in row.values()] for row in focus_rows(ledgers))
    return out.getvalue().encode()


def as_parquet(ledgers: Sequence[Ledger]) -> bytes:
    """Amounts as decimals, times in UTC. ImportError without pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = (
        dict.fromkeys(_AMOUNTS, pa.decimal128(38, 12))
        | dict.fromkeys(_QUANTITIES, pa.decimal128(38, 12))
        | dict.fromkeys(_TIMES, pa.timestamp("us", tz="UTC"))
        | {"x_Attempt": pa.int64(), "x_Held": pa.bool_(), "x_PriceDate": pa.date32()}
    )
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    rows = focus_rows(ledgers)
    columns = [pa.array([row[name] for row in rows], schema.field(name).type) for name in COLUMNS]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink)
    found: bytes = sink.getvalue().to_pybytes()
    return found
