"""Finished runs as calibration sees them: what was trained, how, and how long a step took. Imports no torch.

Read from run folders (`orchestrator.controller.finished`), MLflow (`orchestrator.tracking.finished`), or a JSON file
of the form that `fathom calibrate -o json` prints: {"runs": [...]}.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, ValidationError, field_validator, model_validator

from model.config import Frozen, ModelConfig
from model.recipe import Layout, PrecisionName
from orchestrator.errors import UsageError
from orchestrator.plan.files import read_text

CPU_METRIC, GPU_METRIC = "train/cpu_seconds", "train/step_seconds"
WARM_UP = 3
"""Steps after a start that are left out: memory is allocated, caches are filled."""
LEAST_STEPS = 3


class Observed(Frozen):
    """One run."""

    name: str = Field(min_length=1, max_length=300)
    device: str = Field(min_length=1, max_length=40)
    """`cpu`, or the accelerator's name."""
    model: ModelConfig
    sequence_length: int = Field(ge=1, le=100_000_000)
    precision: PrecisionName
    layout: Layout
    gpus_per_node: int = Field(8, ge=1, le=100_000)
    seconds: float | None = Field(None, gt=1e-6, lt=1e8)
    """Of one optimizer step: on GPUs by the clock; on CPUs CPU seconds of all workers together."""
    tokens_per_second: float | None = Field(None, gt=1e-3, lt=1e15)
    """In place of `seconds`, on GPUs: of the whole job."""

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        return "".join(character if character.isprintable() else "\ufffd" for character in name)

    @field_validator("sequence_length", "gpus_per_node", "seconds", "tokens_per_second", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError(f"must be a number, got {str(value).lower()}")
        return value

    @model_validator(mode="after")
    def _one(self) -> Observed:
        if (self.seconds is None) == (self.tokens_per_second is None):
            raise ValueError(f"give seconds or tokens_per_second, got {self.seconds} and {self.tokens_per_second}")
        if self.device == "cpu" and self.seconds is None:
            raise ValueError("tokens_per_second says nothing of CPU seconds: give seconds")
        return self

    @property
    def batch_tokens(self) -> int:
        """Of one step."""
        return self.layout.world_size * self.layout.micro_batch * self.layout.accumulation * self.sequence_length

    @property
    def measured(self) -> float:
        """Seconds of one step."""
        if self.seconds is not None:
            return self.seconds
        assert self.tokens_per_second is not None
        return self.batch_tokens / self.tokens_per_second


def metric_of(device: str) -> str:
    """What a run of this device is measured by."""
    return CPU_METRIC if device == "cpu" else GPU_METRIC


def step_seconds(name: str, metric: str, by_step: Mapping[int, float], starts: Sequence[int]) -> float:
    """Median over a run's steps; `starts`: steps after which its workers started. UsageError if there are too few."""
    if not by_step:
        raise UsageError(f"{name} has no {metric} with its full batch: a version of Fathom without it made that run?")
    cold = {start + number for start in starts for number in range(1, WARM_UP + 1)}
    warm = [by_step[step] for step in by_step.keys() - cold]
    if len(warm) < LEAST_STEPS:
        raise UsageError(
            f"{name} has {len(warm)} steps with {metric}, {WARM_UP} of warm-up left out: {LEAST_STEPS} are needed"
        )
    if not all(0 < seconds < math.inf for seconds in warm):
        raise UsageError(f"{name}: {metric} must be above 0 and finite, got {min(warm)} to {max(warm)}")
    return statistics.median(warm)


def read_observations(path: Path) -> list[Observed]:
    """From a JSON file; UsageError that names file and place."""
    text = read_text(path, "file of runs", "give what `fathom calibrate RUN -o json` prints")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("runs"), list):
        raise UsageError(f'{path} must hold {{"runs": [...]}}, as `fathom calibrate RUN -o json` prints it')
    return [_observed(path, number, row) for number, row in enumerate(content["runs"], start=1)]


def _observed(path: Path, number: int, row: object) -> Observed:
    try:
        return Observed.model_validate(row)
    except ValidationError as error:
        found = error.errors(include_url=False)
        lines = (f"{path}: run {number}: {'.'.join(map(str, one['loc'])) or 'row'}: {one['msg']}" for one in found)
        raise UsageError("\n".join(lines)) from error
