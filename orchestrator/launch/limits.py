"""What the engine cannot do: layouts that the job's form admits and no run could have. Pure; called by `choose`.

One row each: when it applies, the field to blame, and why, with what to do instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.errors import InvalidJob, Problem


@dataclass(frozen=True)
class Asked:
    """What the rows look at, as it was decided."""

    world_size: int
    expert_parallel: int
    zero_stage: int
    pipeline: int
    precision: str
    accelerator: str

    @property
    def bf16_tensors(self) -> bool:
        """Whether weights are BF16 in the forward pass, as in `model.precision.policy`."""
        return self.precision == "bf16" or (self.precision == "fp8" and self.accelerator != "cpu")


@dataclass(frozen=True)
class Limit:
    """One thing that the engine cannot do."""

    path: str
    """The field to change, below `spec`."""
    applies: Callable[[Asked], bool]
    message: Callable[[Asked], str]


LIMITS: tuple[Limit, ...] = (
    Limit(
        "parallelism.pipeline",
        lambda asked: asked.pipeline > 1,
        lambda asked: (
            f"{asked.pipeline} stages cannot run: DeepSpeed's pipeline engine takes sequential layers only, and its "
            "expert parallelism (AutoEP) requires a pipeline of 1: use parallelism.expert and parallelism.zeroStage"
        ),
    ),
    Limit(
        "parallelism.zeroStage",
        lambda asked: asked.zero_stage == 0 and asked.bf16_tensors,
        lambda asked: (
            f"is 0, and training.precision is {asked.precision}: without ZeRO the engine keeps no FP32 master "
            "weights, and small updates are lost: use zeroStage 1"
        ),
    ),
    Limit(
        "training.precision",
        lambda asked: asked.precision == "fp8" and asked.accelerator == "A100",
        lambda _: "is fp8, but the A100 has no 8-bit floating point: use bf16, or H100 and newer",
    ),
)


def require_possible(asked: Asked) -> None:
    """InvalidJob with all that the engine cannot do."""
    problems = [Problem(f"spec.{limit.path}", limit.message(asked)) for limit in LIMITS if limit.applies(asked)]
    if problems:
        raise InvalidJob(problems)
