"""The DeepSpeed engine: ZeRO sharding of the optimizer, AutoEP sharding of the experts.

`deepspeed_config` is the only place where DeepSpeed's options are written; users have no way past it.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from model.again import choose as choose_recomputation
from model.checkpoint import Topology
from model.collective import together
from model.engine.autoep import autoep_config, bind
from model.engine.base import topology_of
from model.engine.host import HostCheckpoints
from model.engine.lean_deepspeed import deepspeed, is_moe_param, split_params_into_different_moe_groups_for_optimizer
from model.engine.universal import convert, require_loadable
from model.flops import count
from model.loss import Losses, training_losses
from model.names import autoep_to_memory
from model.optim import build_optimizer, parameter_groups
from model.precision import use
from model.precision.backends import Choice, Sizes, choose
from model.precision.policy import policy_of
from model.recipe import Optimizer, Recipe
from model.router import Routing
from model.transformer import CausalLM, Output, documents_of
from model.weights import load_weights

STATE_KEY, BIASES_KEY = "fathom", "fathom_routing_biases"
"""DeepSpeed mixes its own keys into the client state; ours are these."""
RANDOM_FILE = "random-states-{}.pt"
REDUCE_BUCKET = 500_000_000
"""Elements in which gradients are collected before they are reduced, at most: DeepSpeed's default."""
BuildOptimizer = Callable[[list[dict[str, Any]], Optimizer, float], torch.optim.Optimizer]


def deepspeed_config(recipe: Recipe) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe; pure."""
    layout, counts = recipe.layout, count(recipe.model)
    zero: dict[str, Any] = {"stage": layout.zero_stage}
    if layout.zero_stage:  # DeepSpeed allocates all of it at once: 1 GB of BF16 for a model of any size
        zero["reduce_bucket_size"] = min(REDUCE_BUCKET, counts.total + counts.mtp)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.accumulation,
        # without ZeRO, DeepSpeed takes the mean over processes of norms that differ by the experts each one holds:
        # the engine clips by the true norm instead
        "gradient_clipping": recipe.optimizer.grad_clip if layout.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW: DeepSpeed's fused one needs a compiler
        "steps_per_print": 10**9,
    }
    if policy_of(recipe.precision, recipe.device).tensors == "bf16":
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

    def __init__(self, recipe: Recipe, build: BuildOptimizer = build_optimizer) -> None:
        """`build` makes the optimizer from parameter groups, settings and learning rate."""
        init_distributed(recipe.device)
        self.recipe, self.rank, self.world_size = recipe, dist.get_rank(), dist.get_world_size()
        if self.world_size != recipe.layout.world_size:
            raise ValueError(f"recipe wants {recipe.layout.world_size} processes, started are {self.world_size}")
        model = CausalLM(recipe.model)
        model.initialise(recipe.seed)
        if recipe.init_from is not None:
            load_weights(model, recipe.init_from, recipe.init_fingerprint)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=lambda _: _optimizer_after_replacement(model, recipe, build),
            config=deepspeed_config(recipe),
            dist_init_required=False,
        )
        self._checkpoints = HostCheckpoints()
        self._engine.checkpoint_engine = self._checkpoints
        self._engine._copy_recovery_script = lambda _: None  # would write scripts beside the files
        self.model: CausalLM = self._engine.module
        self.device = torch.device(self._engine.device)
        self._layers = bind(self.model, recipe.model)
        chosen = self._choose_products()
        use(self.model, chosen.products)
        self.arithmetic = chosen.text
        self._passes_done = 0
        choose_recomputation(self.model, recipe.layout.recompute)

    def _choose_products(self) -> Choice:
        """The same in every process, tried with the shape of the first layer's feed-forward."""
        config = self.recipe.model
        policy = policy_of(self.recipe.precision, self.recipe.device)
        sizes = Sizes(inputs=config.hidden_size, outputs=config.moe_intermediate_size)
        return choose(policy, self.device, sizes, agree=lambda problems: together(lambda: problems))

    def topology(self) -> Topology:
        """See `Engine`."""
        return topology_of(self.recipe)

    def micro_step(self, window_BL: Tensor, *, ahead_weight: float, alpha: float, passes: int) -> Losses:
        """See `Engine`."""
        self._passes_done += 1
        # by our own count: DeepSpeed's goes wrong when the number of passes changes during a run
        layout = self.recipe.layout
        self._engine.set_train_batch_size(passes * layout.micro_batch * layout.world_size)
        self._engine.set_gradient_accumulation_boundary(self._passes_done == passes)
        output = self._forward(window_BL, asked=window_BL)
        losses = training_losses(output, window_BL, ahead_weight=ahead_weight, alpha=alpha)
        self._engine.backward(losses.total)
        if self._passes_done < passes:
            self._engine.step()  # counts the micro-step; updates nothing
        return losses

    def _forward(self, window_BL: Tensor, depth: int | None = None, asked: Tensor | None = None) -> Output:
        """The model's output, each document for itself where the recipe says so; with losses in place of logits for
        the targets of `asked`."""
        recipe, tokens = self.recipe, window_BL[:, :-1]
        depth = recipe.model.num_nextn_predict_layers if depth is None else depth
        documents = documents_of(tokens, recipe.end_of_text) if recipe.isolate_documents else None
        output: Output = self._engine(tokens, depth, documents, asked)
        return output

    def step(self, learning_rate: float) -> float:
        """See `Engine`."""
        assert self._engine.is_gradient_accumulation_boundary(), "step before all micro-steps"
        self._passes_done = 0
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None if self.recipe.layout.zero_stage else self._clip()
        self._engine.step()
        return float(self._engine.get_global_grad_norm()) if norm is None else norm

    def _clip(self) -> float:
        """Scale the gradients down to the limit by the norm over the whole model; -> that norm before."""
        # by expert size: processes of one expert group hold different experts, those across groups hold copies
        experts = {id(p) for _, layer in self._layers if layer.ep_size > 1 for p in layer.experts.parameters()}
        squares = torch.zeros(2, device=self.device, dtype=torch.float64)
        gradients = [(p, p.grad) for p in self.model.parameters() if p.grad is not None]
        for parameter, gradient in gradients:
            squares[int(id(parameter) in experts)] += gradient.double().square().sum()
        if experts:
            dist.all_reduce(squares[1:], group=self._layers[0][1].ep_group)
        norm = float(squares.sum().sqrt())
        if norm > (limit := self.recipe.optimizer.grad_clip):
            for _, gradient in gradients:
                gradient.mul_(limit / (norm + 1e-6))
        return norm

    @torch.no_grad()
    def evaluate(self, window_BL: Tensor, depth: int) -> tuple[Tensor, ...]:
        """See `Engine`."""
        self._engine.eval()
        logits = self._forward(window_BL, depth).logits
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

    def require_loadable(self, saved: Topology) -> None:
        """See `Engine`."""
        require_loadable(saved, self.topology())

    def snapshot(self, state: dict[str, Any]) -> Callable[[Path], None]:
        """See `Engine`."""
        biases = [bias.detach().cpu() for bias in self.routing_biases()]
        self._engine.save_checkpoint(
            "unused", tag="unused", client_state={STATE_KEY: state, BIASES_KEY: biases}, save_latest=False
        )
        files = self._checkpoints.take() | {RANDOM_FILE.format(self.rank): _random_states()}

        def write(folder: Path) -> None:
            for name, content in files.items():
                torch.save(content, folder / name)

        return write

    def load(self, folder: Path, tag: str, saved: Topology, scratch: Path) -> dict[str, Any]:
        """See `Engine`. The files must have been verified: DeepSpeed unpickles them."""
        self.require_loadable(saved)
        same = saved == self.topology()
        source = folder if same else self._universal(folder / tag, scratch / tag)
        self._engine._config.load_universal_checkpoint = not same
        groups = self._group_settings()
        path, client_state = self._engine.load_checkpoint(str(source), tag=tag)
        if path is None:
            raise ValueError(f"DeepSpeed found no checkpoint {tag} in {source}")
        if same:
            _restore_random_states(folder / tag / RANDOM_FILE.format(self.rank))
        else:
            self._after_universal(client_state[BIASES_KEY], groups)
        state: dict[str, Any] = client_state[STATE_KEY]
        return state

    def _universal(self, source: Path, target: Path) -> Path:
        """Converted by one process of this machine; -> the folder that holds the tag."""

        def work() -> None:
            if int(os.environ.get("LOCAL_RANK", "0")) == 0:
                shutil.rmtree(target, ignore_errors=True)
                convert(source, target)

        together(work)
        return target.parent

    def _group_settings(self) -> list[dict[str, Any]]:
        """Weight decay and the like of each parameter group."""
        groups = self._engine.optimizer.param_groups
        return [{name: value for name, value in group.items() if name != "params"} for group in groups]

    def _after_universal(self, biases: list[Tensor], groups: list[dict[str, Any]]) -> None:
        """What DeepSpeed 0.19.8 loses: it restores no buffers, and under ZeRO-3 it gives all groups the settings of the
        first and one common step counter, which then counts several times an update."""
        self._restore_biases(biases)
        self._restore_groups(groups)
        self._separate_adam_steps()

    def _restore_biases(self, biases: list[Tensor]) -> None:
        for own, loaded in zip(self.routing_biases(), biases, strict=True):
            own.copy_(loaded)

    def _restore_groups(self, groups: list[dict[str, Any]]) -> None:
        for group, settings in zip(self._engine.optimizer.param_groups, groups, strict=True):
            group.update(settings)

    def _separate_adam_steps(self) -> None:
        optimizer = self._engine.optimizer
        for state in getattr(optimizer, "optimizer", optimizer).state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Engine`. One tensor at a time, so that memory stays far below the model's size."""
        for name, parameter in self.model.named_parameters():
            if ".mlp.experts." not in name:
                with deepspeed.zero.GatheredParameters([parameter]):
                    yield autoep_to_memory(name), parameter.detach().cpu().clone()
        for name, bias in self.model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                yield autoep_to_memory(name), bias.detach().cpu()
        for name, layer in self._layers:
            experts = layer.experts
            with deepspeed.zero.GatheredParameters([experts.w1, experts.w2, experts.w3]):
                gate_up = torch.cat((experts.w1.detach(), experts.w3.detach()), dim=1)
                down = experts.w2.detach().clone()
            yield f"{name}.experts.gate_up_proj", _gather(gate_up, layer).cpu()
            yield f"{name}.experts.down_proj", _gather(down, layer).cpu()

    def close(self) -> None:
        """Free what DeepSpeed holds; another engine can then be made in this process."""
        self._engine.destroy()


def _optimizer_after_replacement(model: CausalLM, recipe: Recipe, build: BuildOptimizer) -> torch.optim.Optimizer:
    """Called by DeepSpeed when AutoEP's layers are in place. Experts, which only some processes share, need
    parameter groups of their own, marked for ZeRO."""
    groups = parameter_groups(model, recipe.optimizer.weight_decay)
    if any(is_moe_param(p) for p in model.parameters()):
        groups = split_params_into_different_moe_groups_for_optimizer(groups)
    return build(groups, recipe.optimizer, recipe.schedule.learning_rate)


def _gather(local: Tensor, layer: Any) -> Tensor:  # noqa: ANN401 - DeepSpeed is untyped
    """The experts of all processes of this layer's group, in order of the experts."""
    if layer.ep_size == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(layer.ep_size)]
    dist.all_gather(parts, local.contiguous(), group=layer.ep_group)
    return torch.cat(parts)


def _random_states() -> dict[str, Any]:
    """Of every generator that a process may draw from. Training itself draws from none."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _restore_random_states(file: Path) -> None:
    states = torch.load(file, weights_only=False)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
