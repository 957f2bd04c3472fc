"""A dense transformer with grouped-query attention, as far as a plan needs it. Imports no torch.

Known runs that ours are compared with (Llama) have this architecture; `model.config` cannot express it, and the engine
does not train it. Invariant: the counts are those of transformers' LlamaForCausalLM, to the last digit.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from model.config import Frozen


class DenseModel(Frozen):
    """RMSNorm, grouped-query attention with rotary embeddings, SwiGLU; no biases; embedding and head apart."""

    vocab_size: int = Field(ge=2, le=10_000_000)
    hidden_size: int = Field(ge=1, le=1_000_000)
    num_hidden_layers: int = Field(ge=1, le=10_000)
    num_attention_heads: int = Field(ge=1, le=100_000)
    num_key_value_heads: int = Field(ge=1, le=100_000)
    head_dim: int = Field(ge=1, le=100_000)
    intermediate_size: int = Field(ge=1)

    @model_validator(mode="after")
    def _groups(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads ({self.num_key_value_heads}) must divide num_attention_heads "
                f"({self.num_attention_heads})"
            )
        return self

    @property
    def attention_parameters(self) -> int:
        """Of one layer: queries, keys, values, output."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        return self.hidden_size * heads * self.head_dim

    @property
    def feed_forward_parameters(self) -> int:
        """Of one layer: gate, up, down."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def layer_parameters(self) -> int:
        """One layer with its two norms."""
        return self.attention_parameters + self.feed_forward_parameters + 2 * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """The embedding; the head has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All."""
        return 2 * self.embedding_parameters + self.num_hidden_layers * self.layer_parameters + self.hidden_size

    @property
    def matmul_parameters(self) -> int:
        """Those that a token is multiplied with: without embedding and norms."""
        layer = self.attention_parameters + self.feed_forward_parameters
        return self.embedding_parameters + self.num_hidden_layers * layer

    def attention_flops(self, sequence_length: int, causal: bool = True) -> float:
        """Training FLOPs per token and layer of attention itself, as `model.flops.attention_flops`."""
        keys = sequence_length / 2 if causal else float(sequence_length)
        return 6 * self.num_attention_heads * 2 * self.head_dim * keys

    def flops_per_token(self, sequence_length: int, causal: bool = True) -> float:
        """Training FLOPs per token, as `model.flops.flops_per_token`."""
        if sequence_length < 1:
            raise ValueError(f"sequence_length must be at least 1, got {sequence_length}")
        return 6 * self.matmul_parameters + self.num_hidden_layers * self.attention_flops(sequence_length, causal)
