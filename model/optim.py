"""The optimizer of the paper: AdamW with decay on matrices only; moments in FP32 or BF16 (arXiv 2412.19437, 3.3.2)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from model.recipe import Optimizer

Made = TypeVar("Made", bound=torch.optim.Optimizer)
_KEEPS_OUT = "__dynamo_disable"
"""Where torch keeps, on a function, what keeps the compiler out of it; found there, it is not made (torch._compile)."""


def keep_compiler_away(kind: type) -> None:
    """The methods of this class that torch would keep out of what is compiled are called as they were written.

    torch imports its compiler with the first optimizer, to keep that out of what is compiled. Nothing is here.
    """
    for method in vars(kind).values():
        if inspect.isfunction(method) and method.__code__.co_filename == torch._compile.__file__:
            written = method.__wrapped__  # type: ignore[attr-defined]
            setattr(written, _KEEPS_OUT, written)


keep_compiler_away(torch.optim.Optimizer)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices (decayed), and norms and biases, which are the tensors of one dimension (not decayed)."""
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim >= 2]
    plain = [p for p in module.parameters() if p.requires_grad and p.ndim < 2]
    return [
        {"name": "matrices", "params": decayed, "weight_decay": weight_decay},
        {"name": "vectors", "params": plain, "weight_decay": 0.0},
    ]


def build_optimizer(groups: list[dict[str, Any]], settings: Optimizer, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW; built by torch, not by DeepSpeed, whose fused kernels need a compiler at first use.

    On a CPU by torch's fused kernel: the others hold up to two copies more of ZeRO's one large tensor.
    """
    common: dict[str, Any] = {"lr": learning_rate, "betas": (settings.beta1, settings.beta2), "eps": settings.eps}
    if settings.moments_precision == "bf16":
        return Bf16MomentsAdamW(groups, **common)
    on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
    return without_compiler(torch.optim.AdamW(groups, **common, fused=on_cpu or None))


def without_compiler(made: Made) -> Made:
    """The same optimizer, whose step does not import torch's compiler to tell it to stay away.

    That is as much as importing torch itself costs, and 70 MB for as long as training lasts. Not for one whose own
    settings are learned (`differentiable`).
    """
    made.step = MethodType(torch.no_grad()(inspect.unwrap(type(made).step)), made)  # type: ignore[method-assign]
    return made


MOMENTS = ("exp_avg", "exp_avg_sq")


class Bf16MomentsAdamW(torch.optim.Optimizer):
    """torch's AdamW but for the moments, which are stored in BF16 and computed in FP32: half of their memory.

    Names of the state are AdamW's, so that each can go on from a checkpoint of the other.
    """

    def __init__(
        self, params: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update. There is nothing to call again: `closure` must be None."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, self.state[parameter], group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch gives loaded moments the parameters' dtype; here they stay in BF16."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state.update({name: state[name].to(torch.bfloat16) for name in MOMENTS if name in state})


def _update(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    (beta1, beta2), rate = group["betas"], group["lr"]
    if not state:
        state["step"] = torch.tensor(0.0)
        state.update({name: torch.zeros_like(parameter, dtype=torch.bfloat16) for name in MOMENTS})
    gradient = parameter.grad.float()  # type: ignore[union-attr]
    state["step"] += 1
    step = state["step"].item()
    first = state["exp_avg"].float().lerp_(gradient, 1 - beta1)
    second = state["exp_avg_sq"].float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    spread = (second.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
    parameter.mul_(1 - rate * group["weight_decay"])
    parameter.addcdiv_(first, spread, value=-rate / (1 - beta1**step))
    state["exp_avg"].copy_(first)
    state["exp_avg_sq"].copy_(second)
