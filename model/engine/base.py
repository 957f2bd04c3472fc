"""What the training loop asks of an engine. Another engine can stand beside DeepSpeed behind this protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model.checkpoint import Topology
from model.loss import Losses
from model.recipe import Recipe
from model.router import Routing


def topology_of(recipe: Recipe) -> Topology:
    """What a checkpoint of this recipe's engine fits without conversion."""
    layout = recipe.layout
    return Topology(
        world_size=layout.world_size,
        expert_parallel=layout.expert_parallel,
        zero_stage=layout.zero_stage,
        precision=recipe.precision,
    )


class Engine(Protocol):
    """A model spread over processes, with its optimizer. All methods are collective: every rank calls them."""

    rank: int
    world_size: int
    device: torch.device
    arithmetic: str
    """What matrix products run on, and why."""

    def micro_step(self, window_BL: Tensor, *, ahead_weight: float, alpha: float, passes: int) -> Losses:
        """Forward and backward of one micro-batch, one of `passes` before the next `step`; gradients add up."""

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear gradients. Returns the global gradient norm before clipping.

        Called exactly once after `passes` micro-steps."""

    def evaluate(self, window_BL: Tensor, depth: int) -> tuple[Tensor, ...]:
        """Logits [B, S, V] of the main head and of `depth` prediction modules, without gradients."""

    def routings(self) -> list[Routing]:
        """The routers' states, in the order of the layers."""

    def routing_biases(self) -> list[Tensor]:
        """The selection biases [E], FP32, in the same order; the caller may change them in place."""

    def layer_names(self) -> list[str]:
        """Names of the MoE layers, in the same order: "1", ..., "mtp.0"."""

    def topology(self) -> Topology:
        """What a checkpoint of this engine fits without conversion."""

    def require_loadable(self, saved: Topology) -> None:
        """CheckpointError, naming both, unless `load` can take a checkpoint of topology `saved`. Not collective."""

    def snapshot(self, state: dict[str, Any]) -> Callable[[Path], None]:
        """Copy everything that `load` needs to host memory; `state` is small and equal on all ranks.

        -> writes this rank's files into a folder; may be called later, in another thread, while training goes on."""

    def load(self, folder: Path, tag: str, saved: Topology, scratch: Path) -> dict[str, Any]:
        """Restore what was written into `folder/tag`; -> `state`. On another topology the checkpoint is converted into
        the local folder `scratch` first; CheckpointError names both topologies where that is not possible."""

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and buffer, whole, on the host, under its name in memory; only rank 0 gets values."""
