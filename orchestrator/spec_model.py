"""What a TrainingJob says of the architecture, and what all its parts are made of; see `orchestrator.spec`."""

from __future__ import annotations

import re
from typing import Annotated, Literal, NoReturn, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from orchestrator.schema import Part
from orchestrator.spec_words import NO_PASSWORD, PASSWORD, UNDECIDED


def _without_password(uri: str) -> str:
    if re.search(PASSWORD, uri):
        raise PydanticCustomError("password", "{message}", {"message": NO_PASSWORD})
    return uri


Uri = Annotated[
    str,
    Field(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$"),
    AfterValidator(_without_password),
]


def _whole(value: object) -> object:
    """A Literal of numbers takes what is equal to one: false for 0, and 1.0 for 1."""
    if type(value) is not int:
        raise PydanticKnownError("literal_error", {"expected": "0, 1, 2 or 3"})
    return value


ZeroStage = Annotated[Literal[0, 1, 2, 3], BeforeValidator(_whole)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]

MODEL_FIELDS: dict[str, str] = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_size",
    "layers": "num_hidden_layers", "dense_layers": "first_k_dense_replace",
    "heads": "num_attention_heads", "query_rank": "q_lora_rank",
    "kv_rank": "kv_lora_rank", "nope_head_dim": "qk_nope_head_dim",
    "rope_head_dim": "qk_rope_head_dim", "value_head_dim": "v_head_dim",
    "dense_hidden_size": "intermediate_size", "expert_hidden_size": "moe_intermediate_size",
    "experts": "n_routed_experts", "experts_per_token": "num_experts_per_tok",
    "shared_experts": "n_shared_experts", "groups": "n_group",
    "groups_per_token": "topk_group", "routed_scaling_factor": "routed_scaling_factor",
    "mtp_depth": "num_nextn_predict_layers", "rope_theta": "rope_theta",
    "max_positions": "max_position_embeddings", "initial_std": "initializer_range",
}  # fmt: skip
"""Field of `ModelOverrides` -> field of `model.config.ModelConfig`."""


def wrong(field: str, message: str) -> NoReturn:
    """Refuse a combination of fields; `field` (camelCase) is added to the path of the part."""
    raise PydanticCustomError("combination", "{message}", {"field": field, "message": message})


class SpecPart(Part):
    """A part that a user writes: strict about types."""

    model_config = ConfigDict(strict=True)


class ModelOverrides(SpecPart):
    """Sizes that differ from the preset; each stands for one field of the model's configuration."""

    vocab_size: int | None = Field(None, ge=2, le=10_000_000)
    """Entries of the vocabulary; at least those of the dataset's tokenizer."""
    hidden_size: Size | None = None
    """Width of the residual stream."""
    layers: int | None = Field(None, ge=1, le=10_000)
    """Main layers; those of multi-token prediction come on top."""
    dense_layers: int | None = Field(None, ge=0, le=10_000)
    """The first layers that are dense instead of a mixture of experts."""
    heads: int | None = Field(None, ge=1, le=100_000)
    """Attention heads."""
    query_rank: int | None = Field(None, ge=0, le=1_000_000)
    """Rank of the query compression; 0 means none."""
    kv_rank: Size | None = None
    """Rank of the latent that keys and values are made from."""
    nope_head_dim: Size | None = None
    """Part of a head's query and key that carries no position."""
    rope_head_dim: int | None = Field(None, ge=2, le=1_000_000)
    """Part of a head's query and key that carries the position; even."""
    value_head_dim: Size | None = None
    """Values of one head."""
    dense_hidden_size: Size | None = None
    """Inner size of the dense feed-forward layers."""
    expert_hidden_size: Size | None = None
    """Inner size of one expert."""
    experts: int | None = Field(None, ge=1, le=100_000)
    """Routed experts per layer."""
    experts_per_token: int | None = Field(None, ge=1, le=100_000)
    """Routed experts that one token visits."""
    shared_experts: int | None = Field(None, ge=0, le=1000)
    """Experts that every token visits."""
    groups: int | None = Field(None, ge=1, le=100_000)
    """Groups that the routed experts are divided into."""
    groups_per_token: int | None = Field(None, ge=1, le=100_000)
    """Groups that one token may reach."""
    routed_scaling_factor: float | None = Field(None, gt=0, le=1000)
    """Factor on the routed experts' output."""
    mtp_depth: int | None = Field(None, ge=0, le=16)
    """Further tokens that are predicted at once (multi-token prediction)."""
    rope_theta: float | None = Field(None, gt=0, le=1e12)
    """Base of the rotary frequencies."""
    max_positions: int | None = Field(None, ge=2, le=100_000_000)
    """Longest sequence that the model is made for, in tokens."""
    initial_std: float | None = Field(None, gt=0, le=10)
    """Standard deviation of the initial weights."""

    def config_changes(self) -> dict[str, int | float | None]:
        """The overrides that were given, by the names of `ModelConfig`."""
        given = self.model_dump(by_alias=False, exclude_none=True)
        changes: dict[str, int | float | None] = {MODEL_FIELDS[name]: value for name, value in given.items()}
        if changes.get("q_lora_rank") == 0:
            changes["q_lora_rank"] = None
        return changes


class Model(SpecPart):
    """The architecture to train."""

    preset: str | None = Field(None, max_length=63, pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    """A named architecture; `fathom model` lists them. Absent: that of initFrom."""
    overrides: ModelOverrides = ModelOverrides()
    """Sizes that differ from the preset; with initFrom only those that no weight's shape depends on."""
    init_from: Uri | None = None
    """Folder or URL of weights to start from: an export, a run, a released model. Absent: random weights."""

    @model_validator(mode="after")
    def _decided(self) -> Self:
        if self.preset is None and self.init_from is None:
            wrong("preset", UNDECIDED)
        return self
