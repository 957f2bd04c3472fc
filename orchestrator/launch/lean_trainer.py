"""Ray Train's trainer without the helpers that this product has no work for; imported by the driver only.

Each is a process that imports Ray Train and pandas: two seconds of a core and 150 MB, the first one again whenever
workers are started again. Where a later Ray makes them elsewhere, it starts them, and all else stays as it is.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer

UNUSED = (
    "DatasetsCallback",  # hands out Ray datasets: training reads its own files
    "PlacementGroupCleanerCallback",  # frees what a lost run has reserved: each run has a Ray of its own, that ends too
)
ASKS_FOR_NODES = ("_maybe_send_resource_request", "_send_resource_request", "_cancel_resource_request")
"""What a scaling policy tells the coordinator of Ray Data, which tells an autoscaler: a laptop has none, and the Ray of
an attempt in a cluster is as large as the attempt."""


class LeanTrainer(TorchTrainer):  # type: ignore[misc]  # Ray has no types
    """As large as its configuration says."""

    def _create_default_callbacks(self) -> list[object]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in UNUSED]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:  # noqa: ANN401 - Ray has no types
        asks_nobody(parts.get("scaling_policy"))
        return super()._initialize_and_run_controller(**parts)


def asks_nobody(policy: object) -> None:
    """Changes it."""
    for name in ASKS_FOR_NODES:
        if hasattr(policy, name):
            setattr(policy, name, _nothing)


def _nothing() -> None:
    pass
