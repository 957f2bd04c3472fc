"""Engines of one process, for scoring after training: from whole weights, or from a checkpoint of any layout."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from model.checkpoint import Found, Store
from model.engine.base import topology_of
from model.engine.universal import problem
from model.recipe import Recipe
from model.transformer import CausalLM, documents_of
from model.weights import load_weights

if TYPE_CHECKING:
    from model.engine.zero import ZeroEngine


class PlainEngine:
    """A whole model in this process; the parts of `Engine` that scoring needs."""

    rank, world_size = 0, 1

    def __init__(self, model: CausalLM, recipe: Recipe) -> None:
        self.recipe, self.device = recipe, torch.device(usable_device(recipe))
        self.model = model.to(self.device).eval()

    @torch.no_grad()
    def evaluate(self, window_BL: Tensor, depth: int) -> tuple[Tensor, ...]:
        """See `Engine`."""
        tokens = window_BL[:, :-1]
        documents = documents_of(tokens, self.recipe.end_of_text) if self.recipe.isolate_documents else None
        logits: tuple[Tensor, ...] = self.model(tokens, depth, documents).logits
        return logits


@contextmanager
def process_group() -> Iterator[None]:
    """This process alone as a group, without a port: what is collective needs one."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def from_weights(recipe: Recipe, uri: str) -> PlainEngine:
    """From a folder or URL that `write_weights` made; computes in FP32."""
    model = CausalLM(recipe.model)
    load_weights(model, uri)
    return PlainEngine(model, recipe)


@contextmanager
def from_checkpoint(recipe: Recipe, store: Store, found: Found) -> Iterator[ZeroEngine]:
    """The engine of `single(recipe)` as the checkpoint left it; `found` has been verified, since it is unpickled.

    ValueError where the checkpoint has no form that one process can load.
    """
    one, saved = single(recipe), found.manifest.topology
    if saved != topology_of(one) and (reason := problem(saved, topology_of(one))) is not None:
        raise ValueError(
            f"step-{found.manifest.step} was written by {saved} and cannot be loaded by one process: {reason}; "
            "evaluate the weights at the end of the run instead"
        )
    from model.engine.zero import ZeroEngine  # late: DeepSpeed takes seconds

    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it even where the group is there
    engine = ZeroEngine(one)
    try:
        with tempfile.TemporaryDirectory(prefix="fathom-evaluate-") as scratch:
            local = Path(scratch)
            folder = store.fetch(found, local)
            engine.load(folder, found.tag, saved, local / "converted")
        yield engine
    finally:
        engine.close()


def single(recipe: Recipe) -> Recipe:
    """The recipe for one process, without the weights that training began with; nothing else of it changes, so that a
    checkpoint's weights fit."""
    layout = recipe.layout.model_copy(update={"world_size": 1, "expert_parallel": 1})
    return recipe.model_copy(update={"layout": layout, "device": usable_device(recipe), "init_from": None})


def usable_device(recipe: Recipe) -> str:
    """That of the run where this machine has it."""
    return "cuda" if recipe.device == "cuda" and torch.cuda.is_available() else "cpu"
