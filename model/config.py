"""The architecture of a DeepSeek-style model as one frozen value. Imports no torch.

Field names are those of the released `config.json` files (and of transformers), so that a released
file can be read as it is. The planner, the command line and the model itself all read this class.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    """Base of all configuration values: immutable, no unknown keys, attribute docstrings are descriptions."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
    __slots__ = ("_known_hash",)  # a search asks some 100,000 times; copies, which may differ, do not take it along

    def __hash__(self) -> int:
        """Of all fields, once."""
        try:
            known: int = object.__getattribute__(self, "_known_hash")
        except AttributeError:
            known = hash((type(self), *(getattr(self, name) for name in type(self).model_fields)))
            object.__setattr__(self, "_known_hash", known)
        return known


class Yarn(Frozen):
    """YaRN extension of rotary embeddings (arXiv 2309.00071), applied to the decoupled key only."""

    factor: float = Field(gt=1.0, le=1_000_000)
    """Context extension, e.g. 40 for 4K to 160K."""
    original_max_position_embeddings: int = Field(4096, ge=1, le=1_000_000_000)
    """Length of the sequences before any extension."""
    beta_fast: float = Field(32.0, gt=0)
    """Pairs of dimensions that turn more often than this within the original length stay as they are."""
    beta_slow: float = Field(1.0, gt=0)
    """Those that turn less often are stretched by the whole factor; in between the stretch grows evenly."""
    mscale: float = Field(1.0, ge=0)
    mscale_all_dim: float = Field(1.0, ge=0)
    """Scores are multiplied by (0.1 x mscale_all_dim x ln(factor) + 1)^2; rotary ones by the ratio of `mscale` too."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.beta_fast < self.beta_slow:
            raise ValueError(f"beta_fast ({self.beta_fast:g}) is below beta_slow ({self.beta_slow:g}): swap them")
        return self

    @property
    def longest(self) -> int:
        """Positions that are covered: the original length times the factor."""
        return int(self.original_max_position_embeddings * self.factor)


class ModelConfig(Frozen):
    """One architecture. Sizes are numbers of elements; see DeepSeek-V3, arXiv 2412.19437, section 4.2. What is counted
    or enumerated by them stays possible: no bound is near any model, each is far below a number that never ends."""

    vocab_size: int = Field(ge=2, le=10_000_000)
    hidden_size: int = Field(ge=1, le=1_000_000)
    num_hidden_layers: int = Field(ge=1, le=10_000)
    """Main layers; the layers of multi-token prediction come on top."""
    num_attention_heads: int = Field(ge=1, le=100_000)
    q_lora_rank: int | None = Field(None, ge=1, le=1_000_000)
    """Rank of the query compression; None projects queries directly (V2-Lite)."""
    kv_lora_rank: int = Field(ge=1, le=1_000_000)
    """Rank of the joint key/value latent: what a cache has to hold, together with the rotary key."""
    qk_nope_head_dim: int = Field(ge=1, le=1_000_000)
    qk_rope_head_dim: int = Field(ge=2, le=1_000_000)
    """Dimension of the decoupled rotary key; must be even."""
    v_head_dim: int = Field(ge=1, le=1_000_000)
    intermediate_size: int = Field(ge=1, le=10_000_000)
    """Inner size of the dense feed-forward layers."""
    moe_intermediate_size: int = Field(ge=1, le=10_000_000)
    """Inner size of one expert."""
    first_k_dense_replace: int = Field(1, ge=0)
    """The first layers that are dense instead of MoE."""
    n_routed_experts: int = Field(ge=1, le=100_000)
    num_experts_per_tok: int = Field(ge=1)
    n_shared_experts: int = Field(1, ge=0, le=100_000)
    n_group: int = Field(1, ge=1)
    """Groups (nodes) that the routed experts are divided into."""
    topk_group: int = Field(1, ge=1)
    """Groups that one token may reach."""
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    topk_method: Literal["noaux_tc", "group_limited_greedy", "greedy"] = "noaux_tc"
    """noaux_tc: V3 (bias in the selection, a group is worth its two best); the others: V2."""
    norm_topk_prob: bool = True
    routed_scaling_factor: float = Field(1.0, gt=0)
    num_nextn_predict_layers: int = Field(0, ge=0, le=16)
    """Depth of multi-token prediction."""
    index_n_heads: int = Field(0, ge=0, le=100_000)
    """Heads of the sparse-attention indexer (V3.2); 0 means none. Counted, not yet trainable."""
    index_head_dim: int = Field(0, ge=0, le=1_000_000)
    index_topk: int = Field(0, ge=0, le=1_000_000_000)
    rms_norm_eps: float = Field(1e-6, gt=0)
    rope_theta: float = Field(10_000.0, gt=0)
    yarn: Yarn | None = None
    max_position_embeddings: int = Field(4096, ge=1, le=1_000_000_000)
    initializer_range: float = Field(0.006, gt=0)
    """Standard deviation of all initial weights (0.006 in the paper)."""
    tie_word_embeddings: Literal[False] = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim must be even, got {self.qk_rope_head_dim}")
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                f"first_k_dense_replace ({self.first_k_dense_replace}) exceeds num_hidden_layers "
                f"({self.num_hidden_layers})"
            )
        if self.n_routed_experts % self.n_group:
            raise ValueError(f"n_group ({self.n_group}) must divide n_routed_experts ({self.n_routed_experts})")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group ({self.topk_group}) exceeds n_group ({self.n_group})")
        reachable = self.topk_group * (self.n_routed_experts // self.n_group)
        if self.num_experts_per_tok > reachable:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) exceeds the {reachable} experts that "
                f"topk_group={self.topk_group} of n_group={self.n_group} groups hold"
            )
        if self.yarn is not None and self.rope_theta <= 1:
            raise ValueError(f"rope_theta ({self.rope_theta:g}) must exceed 1 for YaRN: frequencies have to fall")
        if self.topk_method == "noaux_tc" and self.n_group > 1 and self.n_routed_experts // self.n_group < 2:
            raise ValueError(
                f"a group is ranked by its two best experts, but n_routed_experts ({self.n_routed_experts}) / "
                f"n_group ({self.n_group}) leaves one; use at most {self.n_routed_experts // 2} groups"
            )
        return self

    @property
    def qk_head_dim(self) -> int:
        """Dimension of one head's query and key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        """MoE layers among the main layers."""
        return self.num_hidden_layers - self.first_k_dense_replace

    def stretched(self, length: int, yarn: Yarn) -> ModelConfig:
        """This architecture for sequences of up to `length` tokens; ValueError if `yarn` covers fewer."""
        if length > yarn.longest:
            original = yarn.original_max_position_embeddings
            raise ValueError(
                f"factor {yarn.factor:g} makes {yarn.longest} positions of {original}, {length} are wanted: "
                f"use a factor of {math.ceil(length / original)}"
            )
        return self.replace(yarn=yarn, max_position_embeddings=length)

    def replace(self, **changes: Any) -> ModelConfig:  # noqa: ANN401 - field values
        """A copy with some fields changed, validated again."""
        return ModelConfig.model_validate(self.model_dump() | changes)
