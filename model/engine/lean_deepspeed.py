"""What the engine uses of DeepSpeed, without MLflow and without torch's compiler.

DeepSpeed's autotuner, which nobody calls here, imports MLflow where it is installed, and that pandas and a web server:
in each training process a third of the time that its start takes, and its memory for as long as it trains. ZeRO asks
of every optimizer whether it is Muon, and imports that, whose functions are compiled as they are defined: almost a
second of a core, 600 modules and 45 MB for an optimizer that nobody uses here. It is imported now, uncompiled.
For torch's own optimizers see `model.optim`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


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


@contextmanager
def uncompiled() -> Iterator[None]:
    """What DeepSpeed marks to be compiled meanwhile stays as it was written."""
    from deepspeed.runtime import compiler

    marks = compiler.compile
    compiler.compile = lambda *_, **__: _as_it_is
    try:
        yield
    finally:
        compiler.compile = marks


def _as_it_is(function: T) -> T:
    return function


with absent("mlflow"):
    import deepspeed
    import deepspeed.ops
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
    from deepspeed.moe.ep_experts import GroupedExperts
    from deepspeed.moe.ep_router import TokenChoiceTopKRouter
    from deepspeed.moe.utils import is_moe_param, split_params_into_different_moe_groups_for_optimizer
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
with uncompiled():
    import deepspeed.runtime.zero.muon.muon_optimizer

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
