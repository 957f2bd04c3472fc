"""A comparison as programs get it: by `fathom compare -o json`, `GET /v1/compare` and inside the page.

Money is in decimal strings, as everywhere; the columns of `Series` that curves are drawn by are numbers, except money.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import PlainSerializer

from orchestrator.compare.curve import How
from orchestrator.compare.facts import Axis
from orchestrator.compare.measures import Better
from orchestrator.schema import Part
from orchestrator.status import Phase

Amount = Annotated[Decimal, PlainSerializer(lambda value: format(value, "f"), return_type=str, when_used="json")]
"""A Decimal that JSON shows as a plain string."""
Kind = Literal["metric", "money", "count", "flops", "hours", "seconds", "share", "speed"]
"""How a row's numbers are written for people."""


class Metric(Part):
    """What is compared."""

    name: str
    unit: str
    better: Better | None
    """None: more is neither good nor bad, so nothing is marked."""
    window: int
    """Steps that each value is the mean of; 1: values as they were measured."""


class Run(Part):
    """Who takes part."""

    name: str
    """Unique here."""
    job: str
    team: str
    uid: str
    phase: Phase
    currency: str
    unit: str
    """What is paid for, e.g. gpu-hour."""
    spent: Amount | None
    wasted: Amount | None
    limit: Amount | None
    """Of the budget."""
    mlflow_url: str | None


class Caution(Part):
    """Why the runs, or some numbers of them, should not be put side by side without a thought."""

    code: str
    message: str


class Series(Part):
    """The metric of one run as columns of equal length."""

    run: str
    measured: int
    """Points that there are; where it is more than the columns have, each stretch shows its best and its last."""
    step: list[int]
    tokens: list[int]
    flops: list[float]
    hours: list[float]
    dollars: list[Amount]
    value: list[float]
    mean: list[float] | None
    """Of the last `window` steps; None for a window of 1."""


class Value(Part):
    """A run's metric somewhere; absent before its first value."""

    run: str
    value: float | None
    how: How | None
    noise: float | None
    """Standard error of a mean over steps; 0 for what was evaluated, which says nothing of other seeds."""
    share: float | None
    """Of all that the run itself has used up on that axis: far below 1, its learning rate had not come down yet."""


class Equal(Part):
    """All runs where each has used up the same: as much as the shortest of them has."""

    axis: Axis
    x: float
    values: list[Value]
    best: list[str]
    """None where all are equal, or within twice the noise of their difference."""


class Reached(Part):
    """What a run had used up when it first was as good as all runs became."""

    run: str
    step: int
    tokens: int
    flops: float
    hours: float
    dollars: Amount
    how: How


class Level(Part):
    """The best value that every run has reached, and what each had used up by then."""

    value: float
    runs: list[Reached]
    best: dict[Axis, list[str]]


class Row(Part):
    """One number of every run."""

    name: str
    unit: str
    kind: Kind
    better: Better | None
    values: list[str | int | float | None]
    """Money in decimal strings."""
    best: list[bool]
    """All false where the runs are equal, or nothing is better."""
    wide: bool = False
    """Shown only where there is room."""


class Spot(Part):
    """A run as a purchase."""

    run: str
    dollars: Amount
    """All that was paid."""
    value: float
    """Best value."""
    dominated_by: list[str]
    """Runs that cost no more and are no worse; empty: nobody beats it."""


class Step(Part):
    """From one run of the frontier to the next better one."""

    cheaper: str
    better: str
    dollars: Amount
    improvement: float
    per_hundredth: Amount | None
    """Money for 0.01 of the metric's unit."""


class Pareto(Part):
    """Metric against money: which runs are worth their price."""

    spots: list[Spot]
    frontier: list[str]
    """By price."""
    steps: list[Step]


class Difference(Part):
    """A setting in which the runs differ; None where a run has none."""

    key: str
    values: list[str | None]


class Comparison(Part):
    """Several runs side by side."""

    version: Literal[1] = 1
    by: Axis
    metric: Metric
    currency: str | None
    """None where runs are paid in several: then no money is compared."""
    flops_convention: str
    runs: list[Run]
    cautions: list[Caution]
    equal: list[Equal]
    """The chosen axis first."""
    level: Level | None
    rows: list[Row]
    pareto: Pareto | None
    differing: list[Difference]
    equal_settings: int
    """Settings in which all runs agree."""
    cost: list[Row]
    """Money by class of time."""
    series: list[Series]
    mlflow_url: str | None
    """MLflow's own page that compares these runs."""

    def equal_at(self, axis: Axis) -> Equal | None:
        """The runs at the same x of an axis, if they have one in common."""
        return next((one for one in self.equal if one.axis is axis), None)
