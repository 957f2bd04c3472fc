"""How often machines and programs fail, by cause: rates from a data file, each with source and date.

Called by `plan.goodput`, `plan.simulate` and the command line. Invariant: rates are finite and not negative; all times
inside are hours. Pure but for reading the file; imports no torch.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from model.config import Frozen
from orchestrator.errors import UsageError
from orchestrator.plan.files import read_yaml

DATA = Path(__file__).parent / "data" / "failures.yaml"
Cure = Literal["process", "node"]
CHECKPOINTS, STRAGGLERS, LEMONS = "checkpoints", "stragglers", "lemon nodes"
"""Causes of lost time that are no failure, and that of nodes which fail again and again."""
PRODUCTIVE = "productive"
"""Time that is not lost; stands beside the causes where all of them are added up."""
NEVER = 1e-15
"""Failures per hour that are none: one in a hundred thousand million years."""


@dataclass(frozen=True)
class Cause:
    """One reason why training stops. Its rate is the sum of what each GPU, each node and the job as such adds."""

    name: str
    per_gpu_hour: float = 0.0
    per_node_hour: float = 0.0
    per_job_hour: float = 0.0
    cure: Cure = "node"
    """What makes the job whole again: new processes on the same machines, or another machine."""
    hangs: bool = False
    """Whether the job stands still instead of dying."""
    every_seconds: tuple[float, float] | None = None
    """Not random failures but a fault test: the next follows the last after a time drawn evenly between these two."""

    def per_hour(self, gpus: int, nodes: int) -> float:
        """Failures per hour of a job of that size."""
        if self.every_seconds is not None:
            return 7200 / sum(self.every_seconds)
        rate = self.per_gpu_hour * gpus + self.per_node_hour * nodes + self.per_job_hour
        return rate if rate > NEVER else 0.0


@dataclass(frozen=True)
class Lemons:
    """Nodes that fail again and again: a share of all nodes, and failures per hour of each. A restart in place seems to
    cure them, so that only counting failures by node finds them."""

    share: float
    per_hour: float

    def count(self, nodes: int) -> int:
        """How many there are among `nodes`."""
        return round(self.share * nodes)


@dataclass(frozen=True)
class Stragglers:
    """A slow device slows the whole job: how often per node-hour, to how many times the step time, for how long."""

    per_node_hour: float
    slowdown: float
    seconds: float


@dataclass(frozen=True)
class Failures:
    """A failure model."""

    name: str
    causes: tuple[Cause, ...]
    source: str = ""
    date: datetime.date | None = None
    description: str = ""
    lemons: Lemons | None = None
    stragglers: Stragglers | None = None

    def per_hour(self, gpus: int, gpus_per_node: int) -> float:
        """Failures per hour of a job, without those of lemons."""
        nodes = node_count(gpus, gpus_per_node)
        return math.fsum(cause.per_hour(gpus, nodes) for cause in self.causes)

    def mtbf_hours(self, gpus: int, gpus_per_node: int) -> float:
        """Mean time between failures of a job of that size; infinite if nothing ever fails."""
        rate = self.per_hour(gpus, gpus_per_node)
        return 1 / rate if rate else math.inf


def node_count(gpus: int, gpus_per_node: int) -> int:
    """Machines that hold so many GPUs; UsageError for nonsense."""
    for name, value in (("GPUs", gpus), ("GPUs per node", gpus_per_node)):
        if not 1 <= value <= 10_000_000:
            raise UsageError(f"{name} must be between 1 and 10,000,000, got {value}")
    return -(-gpus // gpus_per_node)


def failure_models() -> dict[str, Failures]:
    """All packaged models by name."""
    return dict(_packaged())


def find_failures(name_or_path: str) -> Failures:
    """A packaged model, or the one in a YAML file of the same form (one mapping). UsageError names the known ones."""
    known = _packaged()
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path)
    if not path.exists() and "/" not in name_or_path and path.suffix not in {".yaml", ".yml"}:
        raise UsageError(
            f"unknown failure model {name_or_path!r}; known: {', '.join(known)}; or give a YAML file with your own"
        )
    data = _content(path)
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    if not isinstance(data, dict):
        found = f"a list of {len(data)}" if isinstance(data, list) else type(data).__name__
        raise UsageError(f"failure file {path}: must hold one mapping with `name` and `causes`, got {found}")
    return _parse(path, data)


# ------------------------------------------------------------------ files
def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Rate = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1e6, allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1e12, allow_inf_nan=False)]
_RATES = ("count", "per_gpu_hour", "per_node_day", "per_job_day", "every_seconds")


class _Cause(Frozen, alias_generator=to_camel):
    name: str = Field(min_length=1, max_length=60)
    count: Rate | None = None
    per_gpu_hour: Rate | None = None
    per_node_day: Rate | None = None
    per_job_day: Rate | None = None
    every_seconds: tuple[Positive, Positive] | None = None
    cure: Cure
    hangs: bool = False

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        given = [to_camel(name) for name in _RATES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of {', '.join(map(to_camel, _RATES))}, got {', '.join(given) or 'none'}")
        if self.every_seconds is not None and self.every_seconds[0] > self.every_seconds[1]:
            raise ValueError(f"everySeconds must be [least, most], got {list(self.every_seconds)}")
        if self.name in (CHECKPOINTS, STRAGGLERS, LEMONS, PRODUCTIVE):
            raise ValueError(f"a cause cannot be called {self.name!r}, which stands for something else; rename it")
        return self


class _Observed(Frozen, alias_generator=to_camel):
    gpus: int = Field(ge=1, le=10_000_000)
    hours: Positive


class _Lemons(Frozen, alias_generator=to_camel):
    share: float = Field(ge=0, le=1, allow_inf_nan=False)
    per_node_day: Rate


class _Stragglers(Frozen, alias_generator=to_camel):
    per_node_day: Rate
    slowdown: float = Field(ge=1, le=1000, allow_inf_nan=False)
    minutes: Positive


class _Model(Frozen, alias_generator=to_camel):
    name: str = Field(min_length=1, max_length=60)
    description: str = Field("", max_length=500)
    source: str = Field(min_length=1, max_length=500)
    date: datetime.date
    observed: _Observed | None = None
    causes: list[_Cause] = Field(min_length=1, max_length=1000)
    lemons: _Lemons | None = None
    stragglers: _Stragglers | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        counted = [cause.name for cause in self.causes if cause.count is not None]
        if counted and self.observed is None:
            raise ValueError(f"`count` of {counted[0]} says nothing without `observed: {{gpus: ..., hours: ...}}`")
        names = [cause.name for cause in self.causes]
        if len(set(names)) < len(names):
            raise ValueError(f"{len(names)} causes, but only {len(set(names))} different names")
        return self


@cache
def _packaged() -> dict[str, Failures]:
    models = [_parse(DATA, row) for row in _content(DATA)]
    return {model.name: model for model in models}


def _content(path: Path) -> Any:  # noqa: ANN401 - whatever YAML holds
    known = "" if path == DATA else ", ".join(_packaged())
    return read_yaml(path, "failure file", f"packaged models: {known}")


def _parse(path: Path, row: object) -> Failures:
    try:
        model = _Model.model_validate(row)
    except ValidationError as error:
        raise UsageError(
            "\n".join(
                f"failure file {path}: {'.'.join(map(str, found['loc'])) or 'model'}: {found['msg']}"
                for found in error.errors(include_url=False)
            )
        ) from error
    exposure = model.observed.gpus * model.observed.hours if model.observed else 1.0
    lemons, slow = model.lemons, model.stragglers
    return Failures(
        name=model.name,
        causes=tuple(_cause(cause, exposure) for cause in model.causes),
        source=model.source,
        date=model.date,
        description=model.description,
        lemons=Lemons(lemons.share, lemons.per_node_day / 24) if lemons else None,
        stragglers=Stragglers(slow.per_node_day / 24, slow.slowdown, 60 * slow.minutes) if slow else None,
    )


def _cause(row: _Cause, gpu_hours: float) -> Cause:
    return Cause(
        name=row.name,
        per_gpu_hour=(row.count or 0) / gpu_hours + (row.per_gpu_hour or 0),
        per_node_hour=(row.per_node_day or 0) / 24,
        per_job_hour=(row.per_job_day or 0) / 24,
        cure=row.cure,
        hangs=row.hangs,
        every_seconds=row.every_seconds,
    )
