"""Which point of which metric each event gives, on the parent run and on that of its attempt. Pure.

A fold over the events in the order of their file. Invariant: the same file gives the same points to the last bit,
whoever folds it and whenever. What is sent twice is therefore equal in key, step, time and value, and MLflow's SQL
store, whose primary key is just that, keeps it once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from orchestrator.cost.ledger import Ledger
from orchestrator.cost.meter import Spent
from orchestrator.launch.events import CheckpointCommitted, Evaluated, Event, MachineLoad, Progress, Started
from orchestrator.tracking import names

_LATEST = 1e11
"""Unix seconds; a worker with a mad clock must not leave the range of the database."""
_LARGEST_STEP = 2**63 - 1
_BITS = "eval/bits_per_byte"
_EVALUATIONS = "eval/"
"""Metrics that may be measured at any later time, and so at steps that others have passed."""


@dataclass(frozen=True)
class Point:
    """One number, as MLflow knows it; `time` in milliseconds."""

    name: str
    value: float
    time: int
    step: int


@dataclass
class _Marks:
    """What one run shows already: a step of a metric once, and in order, except for evaluations."""

    highest: dict[str, int] = field(default_factory=dict)
    evaluated: dict[str, set[int]] = field(default_factory=dict)

    def take(self, name: str, step: int) -> bool:
        if name.startswith(_EVALUATIONS):
            steps = self.evaluated.setdefault(name, set())
            new = step not in steps
            steps.add(step)
            return new
        new = step > self.highest.get(name, -1)
        if new:
            self.highest[name] = step
        return new


class Fold:
    """Takes events one by one; remembers what each run shows already."""

    def __init__(
        self,
        spent_at: Callable[[float], Spent],
        flops_per_token: Callable[[int], float | None],
    ) -> None:
        self._spent_at, self._flops = spent_at, flops_per_token
        self._marks: dict[int | None, _Marks] = {}
        self._began: float | None = None
        self._nodes: dict[int, set[str]] = {}
        self._refused: set[str] = set()
        self.remarks: list[str] = []
        """What a person should know of points that the last event would have given."""
        self.newest: dict[str, float] = {}
        """Last value of each training metric."""
        self._bits: dict[int, float] = {}
        """Bits per byte of the steps that still count."""

    def add(self, event: Event) -> dict[int | None, list[Point]]:
        """Points of the parent (None) and of the event's attempt."""
        self.remarks = []
        self._began = event.time if self._began is None else self._began
        time = round(min(event.time, _LATEST) * 1000)
        found: dict[int | None, list[Point]] = {}
        known: list[str] = []
        for name, value, step in self._values(event):
            for run in (None, event.attempt):
                if self._marks.setdefault(run, _Marks()).take(name, step):
                    found.setdefault(run, []).append(Point(name, value, time, step))
                elif run is None and isinstance(event, Evaluated):
                    known.append(name)
        if known and isinstance(event, Evaluated):
            self.remarks.append(
                f"step {event.step} has been evaluated before: MLflow keeps the first values of {', '.join(known)}"
            )
        self._remember(event)
        return found

    @property
    def best(self) -> tuple[float, int] | None:
        """Lowest bits per byte, and its step."""
        return min(((bits, step) for step, bits in self._bits.items()), default=None)

    def _remember(self, event: Event) -> None:
        """What a restart goes back behind does not count until it is measured again."""
        if isinstance(event, Started):
            self._bits = {step: bits for step, bits in self._bits.items() if step <= event.step}
        elif isinstance(event, Progress) and _BITS in event.metrics:
            self._bits[event.step] = event.metrics[_BITS]
        elif isinstance(event, Evaluated) and _BITS in event.metrics:
            self._bits.setdefault(event.step, event.metrics[_BITS])

    def _values(self, event: Event) -> Iterator[tuple[str, float, int]]:
        if isinstance(event, Progress):
            yield from self._progress(event)
        elif isinstance(event, Evaluated):
            yield from ((name, value, event.step) for name, value in self._named(event.metrics).items())
        elif isinstance(event, CheckpointCommitted):
            yield names.CHECKPOINT_SECONDS, event.seconds, event.step
            yield names.CHECKPOINT_BYTES, float(event.size_bytes), event.step
        elif isinstance(event, MachineLoad):
            yield from self._load(event)

    def _progress(self, event: Progress) -> Iterator[tuple[str, float, int]]:
        spent = self._spent_at(event.time)
        metrics = self._named(event.metrics)
        self.newest |= metrics
        own = {names.PROGRESS_TOKENS: float(event.tokens)} | names.cost_metrics(event.tokens, spent)
        yield from ((name, value, event.step) for name, value in (own | metrics).items())
        axes = names.axes(event.tokens, spent, self._flops(event.attempt))
        for source, group in names.BY.items():
            if source in metrics:
                for axis, at in axes.items():
                    yield f"{group}/{axis}", metrics[source], min(at, _LARGEST_STEP)

    def _load(self, event: MachineLoad) -> Iterator[tuple[str, float, int]]:
        """By seconds since the job began, because training may stand still; by machine where there are several."""
        nodes = self._nodes.setdefault(event.attempt, set())
        nodes.add(event.node)
        prefix = names.SYSTEM if len(nodes) == 1 else f"{names.SYSTEM}{event.node}/"
        seconds = max(0, int(event.time - (self._began or 0.0)))
        named = self._named({f"{prefix}{name}": value for name, value in event.metrics.items()})
        yield from ((name, value, min(seconds, _LARGEST_STEP)) for name, value in named.items())

    def _named(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Those that MLflow takes: a single bad name makes it refuse a whole batch."""
        for name in metrics:
            if not names.is_metric_name(name) and name not in self._refused:
                self._refused.add(name)
                self.remarks.append(f"MLflow takes no metric named {name!r}; it is left out")
        return {name: value for name, value in metrics.items() if name not in self._refused}


def final_points(ledger: Ledger, best: tuple[float, int] | None) -> list[Point]:
    """Totals of the job at the end of an attempt, and its best evaluation; the step is the attempt."""
    if not ledger.rows:
        return []
    time = round(min(max(row.charge_period_end for row in ledger.rows).timestamp(), _LATEST) * 1000)
    values = names.ledger_metrics(ledger)
    if best is not None:
        values |= {names.BEST_BITS: best[0], names.BEST_STEP: float(best[1])}
    return [Point(name, value, time, max(row.attempt for row in ledger.rows)) for name, value in values.items()]
