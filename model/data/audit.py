"""Proves afterwards what a run was trained on: recomputes each step's sequences and compares with what was reported."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from model.anomaly import data_step
from model.data.batches import TrainingBatches, sample_checksum


@dataclass(frozen=True)
class SourceAudit:
    """What was seen of one source."""

    name: str
    windows: int
    """Sequences that it has."""
    samples: int
    """Sequences that were trained on, repetitions counted."""
    least: int
    most: int
    """How often the least and the most seen of its sequences were seen."""

    @property
    def sound(self) -> bool:
        """No sequence was seen a second time before all others were seen once."""
        return self.most - self.least <= 1


@dataclass(frozen=True)
class Audit:
    """The finding."""

    steps: int
    samples: int
    missing: tuple[int, ...]
    """Steps that nobody has reported."""
    different: tuple[int, ...]
    """Steps whose sequences are not those that they should have been."""
    sources: tuple[SourceAudit, ...]
    skipped: tuple[int, ...]
    """Data steps that were left out on purpose; where there are some, sequences may be missing from an epoch."""

    @property
    def sound(self) -> bool:
        """Nothing lost, nothing twice, nothing else."""
        whole = self.skipped or all(source.sound for source in self.sources)
        return not self.missing and not self.different and bool(whole)


def audit(
    batches: TrainingBatches,
    reported: Mapping[int, int | None],
    skipped: Collection[int] = (),
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Audit:
    """`reported`: checksum of each step (counted from 1) by `sample_checksum`, as it finally counted."""
    last = max(reported, default=0)
    seen = np.zeros(batches.windows.count, dtype=np.int64)
    different, missing, samples = [], [], 0
    for step in range(1, last + 1):
        numbers = batches.numbers(data_step(step - 1, tuple(sorted(skipped))))
        np.add.at(seen, numbers, 1)
        samples += numbers.size
        if (found := reported.get(step)) is None:
            missing.append(step)
        elif sample_checksum(numbers, batches.windows.read(numbers)) != found:
            different.append(step)
        told(step, last)
    parts = []
    for name, mine in zip(batches.windows.names, np.split(seen, batches.windows.ends[:-1]), strict=True):
        parts.append(SourceAudit(name, mine.size, int(mine.sum()), int(mine.min()), int(mine.max())))
    return Audit(last, samples, tuple(missing), tuple(different), tuple(parts), tuple(sorted(skipped)))
