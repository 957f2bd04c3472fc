"""Ray Train's trainer without the helpers that this product has no work for; imported by the driver only.

Each is a process that imports Ray Train and pandas: two seconds of a core and 150 MB, the first one again whenever
workers are started again.
"""

from __future__ import annotations

from ray.train.torch import TorchTrainer

UNUSED = (
    "DatasetsCallback",  # hands out Ray datasets: training reads its own files
    "PlacementGroupCleanerCallback",  # frees what a lost run has reserved: each run has a Ray of its own, that ends too
)


class LeanTrainer(TorchTrainer):  # type: ignore[misc]  # Ray has no types
    """Where a later Ray makes its callbacks elsewhere, it starts its helpers, and all else stays as it is."""

    def _create_default_callbacks(self) -> list[object]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in UNUSED]
