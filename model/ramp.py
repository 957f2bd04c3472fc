"""How many sequences each optimizer step takes: constant, or growing at the start of a run. Imports no torch.

`model.recipe` holds the stages; the loop, the resolver and the watch ask here. Invariant: a pure function of the
number of the data step, so that which samples a step sees depends neither on the world size nor on a restart.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import Field

from model.config import Frozen

MAX_STAGES = 64


class BatchStage(Frozen):
    """From `first_step` on, a step takes `sequences`."""

    first_step: int = Field(ge=0)
    sequences: int = Field(ge=1)


@dataclass(frozen=True)
class BatchSchedule:
    """Stages by their first data step, which begin at 0."""

    first_steps: tuple[int, ...]
    first_samples: tuple[int, ...]
    """Samples before each stage."""
    sequences: tuple[int, ...]

    @classmethod
    def of(cls, stages: Sequence[BatchStage]) -> BatchSchedule:
        """ValueError unless the stages begin at step 0, in order."""
        steps = [stage.first_step for stage in stages]
        if not steps or steps[0] != 0 or sorted(set(steps)) != steps:
            raise ValueError(f"batch stages must begin at step 0 and follow each other, got first steps {steps}")
        samples = [0]
        for before, after in pairwise(stages):
            samples.append(samples[-1] + (after.first_step - before.first_step) * before.sequences)
        return cls(tuple(steps), tuple(samples), tuple(stage.sequences for stage in stages))

    def at(self, step: int) -> int:
        """Sequences of a data step."""
        return self.sequences[self._stage(step)]

    def samples_before(self, step: int) -> int:
        """Sequences of all data steps before this one."""
        stage = self._stage(step)
        return self.first_samples[stage] + (step - self.first_steps[stage]) * self.sequences[stage]

    def samples_done(self, position: int, skipped: Collection[int]) -> int:
        """The same without the data steps that were left out."""
        return self.samples_before(position) - sum(self.at(one) for one in skipped if one < position)

    def steps_for(self, samples: int) -> int:
        """The fewest steps that take at least so many samples."""
        stage = max(bisect_right(self.first_samples, samples - 1) - 1, 0)
        rest = max(0, samples - self.first_samples[stage])
        return self.first_steps[stage] + -(-rest // self.sequences[stage])

    def _stage(self, step: int) -> int:
        if step < 0:
            raise ValueError(f"steps count from 0, got {step}")
        return bisect_right(self.first_steps, step) - 1


def ramp(first: int, final: int, samples: int, unit: int) -> tuple[BatchStage, ...]:
    """Stages from `first` to `final` sequences, the sizes evenly apart, the final one reached after about `samples`.

    DeepSeek-V3 raises the batch from 3072 to 15360 sequences over its first 469B tokens (arXiv 2412.19437, section
    4.2); as there, the size grows with the tokens seen. `first` and `final` are multiples of `unit`, and so is every
    size between. At most MAX_STAGES stages.
    """
    if first % unit or final % unit or not 0 < first <= final:
        raise ValueError(f"a batch cannot grow from {first} to {final} sequences in multiples of {unit}")
    count = min((final - first) // unit, MAX_STAGES - 1)
    sizes = [first + (final - first) // unit * k // count * unit for k in range(count)] if count else []
    stages, step, done = [], 0, 0
    for k, size in enumerate(sizes):
        steps = -(-(samples * (k + 1) // count - done) // size)
        if steps > 0:
            stages.append(BatchStage(first_step=step, sequences=size))
            step, done = step + steps, done + steps * size
    return (*stages, BatchStage(first_step=step, sequences=final))
