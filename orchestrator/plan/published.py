"""Runs that others have published, as workloads: facts with source and date from data/published.yaml. No torch.

Called by `orchestrator.plan.fit` (the rows marked `fitted`) and `orchestrator.plan.validate` (all others).
"""

from __future__ import annotations

import datetime
from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from model.config import Frozen, ModelConfig
from model.presets import preset
from model.recipe import PrecisionName
from orchestrator.plan.dense import DenseModel
from orchestrator.plan.files import read_rows
from orchestrator.plan.hardware import accelerator
from orchestrator.plan.work import Architecture
from orchestrator.plan.workload import Cluster, Dispatch, Parallel, Recompute, Schedule, Workload

DATA = Path(__file__).parent / "data"


class DenseRow(DenseModel, alias_generator=to_camel, populate_by_name=True):
    """A dense architecture of the data file."""

    name: str = Field(min_length=1)
    source: str = Field(min_length=1)
    date: datetime.date


class Phase(Frozen, alias_generator=to_camel):
    """Steps of one kind."""

    sequence_length: int = Field(ge=1)
    batch_sequences: int = Field(ge=1)
    tokens: float = Field(gt=0)
    context: int = Field(1, ge=1)


class Run(Frozen, alias_generator=to_camel):
    """What was run, and what was published of it: GPU-hours of the whole run or tokens per second and GPU of steps."""

    name: str = Field(min_length=1)
    model: str
    accelerator: str
    gpus: int = Field(ge=1)
    gpus_per_node: int = Field(8, ge=1)
    precision: PrecisionName
    phases: tuple[Phase, ...] = Field(min_length=1)
    tensor: int | None = None
    """Absent: the layout was not published, and the best one that is found is taken."""
    pipeline: int = 1
    expert: int = 1
    zero_stage: int = 1
    chunks: int = 1
    micro_batch: int = 1
    recompute: Recompute = "none"
    schedule: Schedule = "1f1b"
    dispatch: Dispatch = "node"
    prediction_modules: int | None = Field(None, ge=0)
    """Of multi-token prediction, where the run had fewer than the preset has."""
    gpu_hours: float | None = Field(None, gt=0)
    tokens_per_second_per_gpu: float | None = Field(None, gt=0)
    use: Literal["fitted", "predicted"]
    assumed: str = ""
    """What of the layout or batch was not published."""
    source: str = Field(min_length=1)
    date: datetime.date

    @model_validator(mode="after")
    def _one_result(self) -> Self:
        if (self.gpu_hours is None) == (self.tokens_per_second_per_gpu is None):
            raise ValueError("one of gpuHours and tokensPerSecondPerGpu must be given")
        return self

    @property
    def tokens(self) -> float:
        """Of all phases."""
        return sum(phase.tokens for phase in self.phases)

    @property
    def throughput(self) -> float:
        """Tokens per second and GPU, as published, or out of the hours."""
        if self.tokens_per_second_per_gpu is not None:
            return self.tokens_per_second_per_gpu
        assert self.gpu_hours is not None
        return self.tokens / (self.gpu_hours * 3600)

    @property
    def cluster(self) -> Cluster:
        """What it ran on."""
        return Cluster(accelerator(self.accelerator), self.gpus, self.gpus_per_node)

    def workload(self, phase: Phase) -> Workload:
        """One phase of it."""
        batch = phase.sequence_length * phase.batch_sequences
        config = architecture(self.model)
        if self.prediction_modules is not None and isinstance(config, ModelConfig):
            config = config.replace(num_nextn_predict_layers=self.prediction_modules)
        return Workload(config, phase.sequence_length, batch, self.precision, round(phase.tokens))

    def parallel(self, phase: Phase) -> Parallel | None:
        """Its layout, if it was published."""
        if self.tensor is None:
            return None
        return Parallel(
            data=self.gpus // (self.tensor * self.pipeline),
            tensor=self.tensor,
            pipeline=self.pipeline,
            expert=self.expert,
            zero_stage=self.zero_stage,
            micro_batch=self.micro_batch,
            recompute=self.recompute,
            context=phase.context,
            schedule=self.schedule,
            chunks=self.chunks,
            dispatch=self.dispatch,
        )


@cache
def dense_models() -> dict[str, DenseModel]:
    """By name."""
    rows = read_rows(DATA / "dense.yaml", "data file", "reinstall", DenseRow)
    return {row.name: row for row in rows}


@cache
def runs() -> tuple[Run, ...]:
    """All, in the order of the file."""
    return tuple(read_rows(DATA / "published.yaml", "data file", "reinstall", Run))


def architecture(name: str) -> Architecture:
    """A dense model of the data file, or a preset; pre-training goes before any extension of the context."""
    return dense_models()[name] if name in dense_models() else preset(name).replace(yarn=None)
