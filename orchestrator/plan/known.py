"""Published training runs that a plan is compared with. Imports no torch.

Called by `orchestrator.cli.plan`. Invariant: of a run only what was published stands in the data file; FLOPs and
utilisation are computed here by the same formulas as a plan's (`model.flops`, causal, without multi-token prediction,
dense BF16 peak).
"""

from __future__ import annotations

import datetime
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from pydantic import Field, field_validator
from pydantic.alias_generators import to_camel

from model.config import Frozen
from model.flops import count
from model.recipe import PrecisionName
from orchestrator.errors import UsageError
from orchestrator.plan.dense import DenseModel
from orchestrator.plan.files import read_rows
from orchestrator.plan.hardware import accelerator
from orchestrator.plan.published import architecture
from orchestrator.plan.work import Architecture, model_flops

DATA = Path(__file__).parent / "data" / "runs.yaml"


class _Row(Frozen, alias_generator=to_camel, populate_by_name=True):
    """Outside in camelCase."""


class Stage(_Row):
    """A part of a run."""

    name: str = Field(min_length=1, max_length=60)
    gpu_hours: int = Field(ge=1, le=10**12)


class KnownRun(_Row):
    """One published run."""

    name: str = Field(pattern=r"^[a-z0-9][-.a-z0-9]*$", max_length=60)
    title: str = Field(min_length=1, max_length=40)
    model: str
    """A preset, or a dense architecture of `plan.published`."""
    on_top_of: str | None = None
    """The run whose weights this one started from."""
    tokens: int | None = Field(None, ge=1)
    """Of the first stage; None: not published."""
    sequence_length: int | None = Field(None, ge=1)
    precision: PrecisionName | None = None
    accelerator: str
    gpus: int | None = Field(None, ge=1)
    stages: tuple[Stage, ...] = Field(min_length=1)
    """The first is the one that a plan of pre-training is compared with."""
    assumed_price: Decimal | None = Field(None, gt=0)
    """US dollars per GPU-hour that the authors reckon with."""
    excludes: str
    source: str = Field(min_length=1)
    date: datetime.date

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        architecture(name)
        return name

    @property
    def architecture(self) -> Architecture:
        """Of the model that was trained."""
        return architecture(self.model)

    @property
    def gpu_hours(self) -> int:
        """Of the first stage."""
        return self.stages[0].gpu_hours

    @property
    def total_gpu_hours(self) -> int:
        """Of all stages, without the run that it started from."""
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def parameters(self) -> tuple[int, int]:
        """All, and those that one token uses."""
        model = self.architecture
        if isinstance(model, DenseModel):
            return model.parameters, model.parameters
        counts = count(model)
        return counts.total, counts.active

    @property
    def flops(self) -> float | None:
        """Of the first stage, causal, without multi-token prediction; None where the tokens are not published."""
        if self.tokens is None or self.sequence_length is None:
            return None
        return model_flops(self.architecture, self.sequence_length) * self.tokens

    @property
    def mfu(self) -> float | None:
        """FLOPs over GPU-hours times the dense BF16 peak: of the whole run, whatever it lost included."""
        if self.flops is None:
            return None
        return self.flops / (self.gpu_hours * 3600 * accelerator(self.accelerator).bf16_flops)


def known_run(name: str) -> KnownRun:
    """The run of that name; UsageError names the nearest."""
    runs = known_runs()
    if name in runs:
        return runs[name]
    near = get_close_matches(name.lower(), runs, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"there is no known run {name!r}{hint} (known: {', '.join(runs)})")


def read_runs(path: Path) -> dict[str, KnownRun]:
    """All runs of a data file by name; UsageError names file, row and field."""
    rows = read_rows(path, "file of runs", "check the path", KnownRun)
    runs = {row.name: row for row in rows}
    if len(runs) != len(rows):
        raise UsageError(f"file of runs {path}: {len(rows)} rows, but only {len(runs)} different names")
    for row in rows:
        if row.on_top_of is not None and row.on_top_of not in runs:
            raise UsageError(f"file of runs {path}: {row.name} is on top of {row.on_top_of!r}, which is not in it")
    return runs


@cache
def known_runs() -> dict[str, KnownRun]:
    """Those that ship with Fathom."""
    return read_runs(DATA)
