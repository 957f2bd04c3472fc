"""Our routing and expert mathematics inside DeepSpeed AutoEP.

AutoEP replaces every MoE block by its own layer, which places experts on processes, exchanges tokens and combines
results. Its router and expert classes are swapped here for subclasses that run `model.router` and `model.experts`, so
one implementation serves one process and many. Read with DeepSpeed 0.19.8; `bind` checks what it relies on.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from model.config import ModelConfig
from model.engine.lean_deepspeed import AutoEPMoELayer, GroupedExperts, TokenChoiceTopKRouter
from model.experts import feed_forward
from model.local import Choice, applies, routed
from model.moe import MoE
from model.precision import HIGH, Products
from model.router import Routing

MOE_LAYERS = r"model\.(layers\.\d+|mtp\.\d+\.block)\.mlp"


class BoundRouter(TokenChoiceTopKRouter):  # type: ignore[misc]
    """AutoEP's router with our routing. Class, not instance, attribute: survives copy.deepcopy."""

    routing: Routing
    selective: bool = False

    def forward(self, x_TD: Tensor, expert_bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """See `Routing.run`; AutoEP's own balancing (`expert_bias`) must stay off."""
        assert expert_bias is None
        return self.routing.run(x_TD, self.gate.weight, self.e_score_correction_bias, self.selective)


class BoundExperts(GroupedExperts):  # type: ignore[misc]
    """AutoEP's local experts with our feed-forward."""

    products: Products = HIGH
    selective: bool = False
    calls: int = 0
    """Forward passes so far (recomputed ones too), to prove that this code runs."""

    def forward(self, x_ND: Tensor, counts_E: Tensor | None = None, choice: Choice | None = None) -> Tensor:
        """See `model.experts.Experts.forward`; AutoEP's w1, w3, w2 are gate, up, down."""
        self.calls += 1
        if choice is not None:
            return routed(x_ND, choice, self.w1, self.w3, self.w2)
        assert counts_E is not None
        return feed_forward(x_ND, counts_E, self.w1, self.w3, self.w2, self.products, self.selective)


class BoundLayer(AutoEPMoELayer):  # type: ignore[misc]
    """AutoEP's layer; where no token leaves a CPU, without the copies that an exchange would need."""

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        if self.ep_size > 1 or not applies(x_BSD, self.experts.products):
            return super().forward(x_BSD)  # type: ignore[no-any-return]
        x = x_BSD.reshape(-1, x_BSD.shape[-1])
        choice = Choice(*self.router(x, self.expert_bias))
        output: Tensor = self.experts(x, choice=choice).view_as(x_BSD)
        return output if self.shared_experts is None else output + self.shared_experts(x_BSD)


def autoep_config(config: ModelConfig, size: int) -> dict[str, Any]:
    """DeepSpeed's `expert_parallel` section for our module names."""
    return {
        "enabled": True,
        "autoep_size": size,
        "moe_layer_pattern": MOE_LAYERS,
        "router_pattern": "gate",
        "expert_pattern": "experts",
        "expert_w1": "gate_up_proj",
        "expert_w2": "down_proj",
        "expert_w3": None,  # gate and up are one tensor
        "num_experts_attr": "n_routed_experts",
        "top_k_attr": "num_experts_per_tok",
        "has_shared_experts": config.n_shared_experts > 0,
        "shared_experts_pattern": "shared_experts",
        "score_func": config.scoring_func,
        "score_apply": "post",
        "route_norm": config.norm_topk_prob,
        "routed_scaling_factor": config.routed_scaling_factor,
        # our products run instead; this only keeps the constructor from asking for Triton
        "use_grouped_mm": False,
    }


def bind(module: nn.Module, config: ModelConfig) -> list[tuple[str, Any]]:
    """Put our router and experts into every AutoEP layer; -> (name, layer) in model order.

    Called once, after `deepspeed.initialize`. Fails if a MoE block was left out: it would train unsharded, silently.
    """
    bound = []
    for name, layer in module.named_modules():
        assert not isinstance(layer, MoE), f"AutoEP did not take {name}"
        if not isinstance(layer, AutoEPMoELayer):
            continue
        _check(name, layer, config)
        layer.__class__, layer.router.__class__, layer.experts.__class__ = BoundLayer, BoundRouter, BoundExperts
        layer.router.routing = Routing(config)
        bound.append((name, layer))
    return bound


def _check(name: str, layer: Any, config: ModelConfig) -> None:  # noqa: ANN401 - DeepSpeed is untyped
    """What AutoEP still does with our results must agree with them."""
    assert type(layer) is AutoEPMoELayer, name
    assert not layer.return_router_logits, name
    assert layer.shared_experts_gate is None, name
    assert type(layer.router) is TokenChoiceTopKRouter, name
    assert type(layer.experts) is GroupedExperts, name
    assert layer.top_k == config.num_experts_per_tok, name
    assert layer.num_experts == config.n_routed_experts, name
    assert layer.score_apply == "post", name
    assert layer.router.gate.bias is None, name
    assert layer.expert_bias is None, name
    assert (layer.shared_experts is not None) == (config.n_shared_experts > 0), name
    # a bias in lower precision would swallow steps of 0.001
    assert str(layer.router.e_score_correction_bias.dtype) == "torch.float32", name
