"""What each process reads at each step, and the checksum that proves it afterwards."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.data.windows import TrainingWindows
from model.ramp import BatchSchedule


@dataclass(frozen=True)
class TrainingBatches:
    """What each process reads at each step, and nothing else: it holds no position."""

    windows: TrainingWindows
    seed: int
    world_size: int
    micro_batch: int
    schedule: BatchSchedule
    _last: dict[int, NDArray[np.int64]] = field(default_factory=dict, compare=False, repr=False)
    """The numbers of one step: they are asked for with each of its passes."""

    def passes(self, step: int) -> int:
        """Forward passes of each process in a data step."""
        sequences, each = self.schedule.at(step), self.world_size * self.micro_batch
        if sequences % each:
            raise ValueError(
                f"step {step} takes {sequences} sequences, which {self.world_size} processes with {self.micro_batch} "
                "at a time cannot share"
            )
        return sequences // each

    def numbers(self, step: int) -> NDArray[np.int64]:
        """Window numbers of a whole data step."""
        if step not in self._last:
            self._last.clear()
            first, count = self.schedule.samples_before(step), self.schedule.at(step)
            self._last[step] = self.windows.order.samples(self.seed, first, count)
        return self._last[step]

    def numbers_for(self, step: int, rank: int, k: int) -> NDArray[np.int64]:
        """Window numbers of one forward pass: k-th of the step's `passes`, on process `rank`.

        Of the step's `numbers` these are [(k*world_size + rank)*micro_batch, ... + micro_batch).
        """
        if not (0 <= rank < self.world_size and 0 <= k < self.passes(step)):
            raise ValueError(
                f"rank {rank} of {self.world_size} processes, pass {k} of {self.passes(step)}: out of range"
            )
        first = (k * self.world_size + rank) * self.micro_batch
        return self.numbers(step)[first : first + self.micro_batch]

    def batch_for(self, step: int, rank: int, k: int) -> NDArray[np.int64]:
        """[micro_batch, S + extra] tokens of the windows that `numbers_for` names."""
        return self.windows.read(self.numbers_for(step, rank, k))


def sample_checksum(numbers: NDArray[np.int64], windows: NDArray[np.int64]) -> int:
    """Sum over sequences of CRC-32(number, tokens), each little-endian int64: below 2**32 per sequence.

    numbers [n], windows [n, S + extra]. However a step's sequences are divided and ordered, the sums of the parts
    add up to the same: equal sequences, equal number.
    """
    rows = np.ascontiguousarray(windows, dtype="<i8")
    heads = np.ascontiguousarray(numbers, dtype="<i8")
    return sum(zlib.crc32(row, zlib.crc32(head)) for head, row in zip(heads[:, None], rows, strict=True))
