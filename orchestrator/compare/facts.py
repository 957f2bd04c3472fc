"""What a comparison knows of each run: plain values, read by `compare.load`. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum

from orchestrator.cost.records import Totals
from orchestrator.status import Phase


class Axis(StrEnum):
    """What runs are put side by side by."""

    step = "step"
    tokens = "tokens"
    flops = "flops"
    hours = "hours"
    dollars = "dollars"


@dataclass(frozen=True, slots=True)
class Point:
    """An optimizer step as it finally counted, with what the run had used up when it was done.

    Steps that a restart did again are here once; what they cost the first time is in the hours and the money, as in
    MLflow's parent run. `dollars` is a position on an axis; amounts that are added up are Decimal.
    """

    step: int
    tokens: int
    flops: float
    """Training FLOPs of the tokens that count, see `cost.records.FLOPS_CONVENTION`."""
    hours: float
    """In which the run held its devices, whatever their number, all attempts together."""
    dollars: float
    """Paid by then in the run's currency, all attempts together."""
    metrics: Mapping[str, float]

    def at(self, axis: Axis) -> float:
        """Where it stands on an axis."""
        return float(getattr(self, axis.value))


@dataclass(frozen=True)
class DataIdentity:
    """Which text: digests as far as they are recorded, else None."""

    digest: str | None = None
    """Of the whole data set, as the run's checkpoints name it."""
    tokenizer: str | None = None
    heldout: str | None = None


@dataclass(frozen=True)
class InMlflow:
    """Where the run is in MLflow."""

    target: str
    """URI of the server or database, without credentials."""
    experiment_id: str
    run_id: str
    url: str | None


@dataclass(frozen=True)
class RunFacts:
    """One run as far as it is."""

    name: str
    team: str
    uid: str
    phase: Phase
    configuration: Mapping[str, str] = field(default_factory=dict)
    """Flat; empty where nothing was ever started."""
    points: tuple[Point, ...] = ()
    """By step."""
    totals: Totals | None = None
    """Of the run's ledger; None where nothing was ever held."""
    currency: str = "USD"
    unit: str = "gpu-hour"
    """What is paid for."""
    limit: Decimal | None = None
    """Of the budget."""
    data: DataIdentity = DataIdentity()
    mlflow: InMlflow | None = None
