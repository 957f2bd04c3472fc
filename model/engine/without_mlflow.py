"""What the engine uses of DeepSpeed, imported without MLflow.

DeepSpeed's autotuner, which nobody calls here, imports MLflow where it is installed, and that pandas and a web server:
in each training process a third of the time that its start takes, and its memory for as long as it trains.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def absent(name: str) -> Iterator[None]:
    """The module cannot be imported meanwhile, unless it already was."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


with absent("mlflow"):
    import deepspeed
    import deepspeed.ops
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
    from deepspeed.moe.ep_experts import GroupedExperts
    from deepspeed.moe.ep_router import TokenChoiceTopKRouter
    from deepspeed.moe.utils import is_moe_param, split_params_into_different_moe_groups_for_optimizer
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

__all__ = [
    "AutoEPMoELayer",
    "CheckpointCommitInfo",
    "CheckpointEngine",
    "GroupedExperts",
    "TokenChoiceTopKRouter",
    "deepspeed",
    "is_moe_param",
    "split_params_into_different_moe_groups_for_optimizer",
]
