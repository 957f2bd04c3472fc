"""The DeepSpeed engine: ZeRO sharding of the optimizer, AutoEP sharding of the experts.

`deepspeed_config` is the only place where DeepSpeed's options are written; users have no way past it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.moe.utils import is_moe_param, split_params_into_different_moe_groups_for_optimizer
from torch import Tensor

from model.engine.autoep import autoep_config, bind
from model.loss import Losses, training_losses
from model.names import autoep_to_memory
from model.optim import build_optimizer, parameter_groups
from model.recipe import Recipe
from model.router import Routing
from model.transformer import CausalLM

STATE_KEY = "fathom"
"""DeepSpeed mixes its own keys into the client state; ours are kept under one."""


def deepspeed_config(recipe: Recipe) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe; pure."""
    layout = recipe.layout
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.accumulation,
        "gradient_clipping": recipe.optimizer.grad_clip,
        "zero_optimization": {"stage": layout.zero_stage},
        "zero_allow_untested_optimizer": True,  # torch's AdamW: DeepSpeed's fused one needs a compiler
        "steps_per_print": 10**9,
    }
    if recipe.precision == "bf16":
        config["bf16"] = {"enabled": True}
    if recipe.model.num_moe_layers or recipe.model.num_nextn_predict_layers:
        config["expert_parallel"] = autoep_config(recipe.model, layout.expert_parallel)
    return config


def init_distributed(device: str) -> None:
    """Join the process group that torchrun or Ray Train prepared (or make one from the environment)."""
    # On CPUs DeepSpeed would compile a shared-memory collective at first use: it takes a minute, and fails
    # where there is no compiler. Plain gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


class ZeroEngine:
    """`Engine` by DeepSpeed; make it after `init_distributed`."""

    def __init__(self, recipe: Recipe) -> None:
        init_distributed(recipe.device)
        self.recipe, self.rank, self.world_size = recipe, dist.get_rank(), dist.get_world_size()
        if self.world_size != recipe.layout.world_size:
            raise ValueError(f"recipe wants {recipe.layout.world_size} processes, started are {self.world_size}")
        model = CausalLM(recipe.model)
        model.initialise(recipe.seed)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=lambda _: _optimizer_after_replacement(model, recipe),
            config=deepspeed_config(recipe),
            dist_init_required=False,
        )
        self.model: CausalLM = self._engine.module
        self.device = torch.device(self._engine.device)
        self._layers = bind(self.model, recipe.model)
        for block in self.model.blocks().values():
            block.recompute = recipe.layout.recompute == "full"

    def micro_step(self, window_BL: Tensor, *, ahead_weight: float, alpha: float) -> Losses:
        """See `Engine`."""
        depth = self.recipe.model.num_nextn_predict_layers
        output = self._engine(window_BL[:, :-1], depth)
        losses = training_losses(output, window_BL, ahead_weight=ahead_weight, alpha=alpha)
        self._engine.backward(losses.total)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-step; updates nothing
        return losses

    def step(self, learning_rate: float) -> float:
        """See `Engine`."""
        assert self._engine.is_gradient_accumulation_boundary(), "step before all micro-steps"
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    @torch.no_grad()
    def evaluate(self, window_BL: Tensor, depth: int) -> tuple[Tensor, ...]:
        """See `Engine`."""
        self._engine.eval()
        logits: tuple[Tensor, ...] = self.model(window_BL[:, :-1], depth).logits
        self._engine.train()
        return logits

    def routings(self) -> list[Routing]:
        """See `Engine`."""
        return [layer.router.routing for _, layer in self._layers]

    def routing_biases(self) -> list[Tensor]:
        """See `Engine`."""
        return [layer.router.e_score_correction_bias for _, layer in self._layers]

    def layer_names(self) -> list[str]:
        """See `Engine`."""
        return [name for name, block in self.model.blocks().items() if block.routing is not None]

    def expert_calls(self) -> list[int]:
        """Forward passes of our expert code per MoE layer; proves that the binding holds."""
        return [layer.experts.calls for _, layer in self._layers]

    def save(self, folder: Path, tag: str, state: dict[str, Any]) -> None:
        """See `Engine`."""
        self._engine.save_checkpoint(str(folder), tag=tag, client_state={STATE_KEY: state}, save_latest=False)

    def load(self, folder: Path, tag: str) -> dict[str, Any]:
        """See `Engine`. The files must have been verified: DeepSpeed unpickles them."""
        path, client_state = self._engine.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise ValueError(f"DeepSpeed found no checkpoint {tag} in {folder}")
        state: dict[str, Any] = client_state[STATE_KEY]
        return state

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Engine`. One tensor at a time, so that memory stays far below the model's size."""
        biases = {n: b for n, b in self.model.named_buffers() if n.endswith("e_score_correction_bias")}
        for name, tensor in (dict(self.model.named_parameters()) | biases).items():
            if ".mlp.experts." not in name:
                yield autoep_to_memory(name), tensor.detach().cpu()
        for name, layer in self._layers:
            experts = layer.experts
            gate_up = torch.cat((experts.w1.detach(), experts.w3.detach()), dim=1)
            yield f"{name}.experts.gate_up_proj", _gather(gate_up, layer).cpu()
            yield f"{name}.experts.down_proj", _gather(experts.w2.detach(), layer).cpu()


def _optimizer_after_replacement(model: CausalLM, recipe: Recipe) -> torch.optim.Optimizer:
    """Called by DeepSpeed when AutoEP's layers are in place. Experts, which only some processes share, need
    parameter groups of their own, marked for ZeRO."""
    groups = parameter_groups(model, recipe.optimizer.weight_decay)
    if any(is_moe_param(p) for p in model.parameters()):
        groups = split_params_into_different_moe_groups_for_optimizer(groups)
    return build_optimizer(groups, recipe.optimizer, recipe.schedule.learning_rate)


def _gather(local: Tensor, layer: Any) -> Tensor:  # noqa: ANN401 - DeepSpeed is untyped
    """The experts of all processes of this layer's group, in order of the experts."""
    if layer.ep_size == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(layer.ep_size)]
    dist.all_gather(parts, local.contiguous(), group=layer.ep_group)
    return torch.cat(parts)
