"""Bytes that training and generation take on one device, by part: exact arithmetic, no torch.

Called by the planner to refuse what does not fit. Invariant: the states (weights, master weights, gradients, moments)
are those that DeepSpeed 0.19.8 holds under `model.engine.zero`, and the activations those that autograd keeps of
`model/` inside AutoEP, as `benchmarks/memory.py` measures them on CPUs. What stands for GPUs only (`Kernels.fused`) is
read from PyTorch's source and was never measured.

Sources: ZeRO, arXiv 1910.02054, section 3 and 5 (what each stage divides); DeepSeek-V3, arXiv 2412.19437, sections 3.2
and 3.3 (recomputation, FP8 weights, BF16 moments).
Letters in comments: D hidden size, H heads, E experts, K experts per token, F inner size, S sequence, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum

from model.config import ModelConfig
from model.flops import BLOCK, count
from model.recipe import Layout, PrecisionName

ALIGN = 8
"""AutoEP pads every expert's rows to a multiple of this (`TOKEN_GROUP_ALIGN_SIZE_M`)."""
BUCKET = 500_000_000
"""Elements of DeepSpeed's reduction bucket at most (`model.engine.zero`): allocated whole."""
GROUP = 178_956_971
"""Elements at which DeepSpeed begins another parameter group of experts (`max_group_size`)."""
CHUNK, MIN_ROWS = {"cpu": 1 << 21, "cuda": 1 << 27}, 128
"""As in `model.head`, which imports torch."""
QUERIES, KEEP = 64, 512
"""As `BLOCK` and `KEEP` in `model.attend`."""
INDEX, FLOAT = 8, 4
"""Bytes of an int64 and of an FP32 number."""


@dataclass(frozen=True)
class Policy:
    """Bytes of one number of each kind; `moments` of both of Adam's together."""

    weights: int
    master: int
    """The FP32 copy that the optimizer updates; 0 where there is none."""
    gradients: int
    moments: int
    activations: int
    eight_bits: bool = False
    """Whether linear layers and experts keep their inputs in 8 bits, with an FP32 scale for each 128."""

    @property
    def bytes_per_parameter(self) -> int:
        """All states, on one device."""
        return self.weights + self.master + self.gradients + self.moments


FP32 = Policy(weights=4, master=4, gradients=4, moments=8, activations=4)
"""DeepSpeed's ZeRO keeps a flat copy as master weights even where the weights are FP32 already."""
BF16 = Policy(weights=2, master=4, gradients=2, moments=8, activations=2)
"""DeepSpeed accumulates gradients in the weights' type unless it is told otherwise."""
CLASSIC_BF16 = Policy(weights=2, master=4, gradients=4, moments=8, activations=2)
"""Mixed precision as most describe it (arXiv 1910.02054, section 3.1, with FP32 gradients): 18 bytes."""
FP8 = Policy(weights=2, master=4, gradients=2, moments=8, activations=2, eight_bits=True)
"""Weights stay BF16: they are quantised anew for each product, since ZeRO and AutoEP own them."""
FP8_ON_CPU = Policy(weights=4, master=4, gradients=4, moments=8, activations=4, eight_bits=True)
"""The reference backend among FP32 tensors, see `model.precision.policy`."""
OFFICIAL_FP8 = Policy(weights=1, master=4, gradients=4, moments=4, activations=2)
"""DeepSeek-V3's own training, arXiv 2412.19437, section 3.3: FP8 weights, FP32 master weights and gradients, BF16
moments: 13 bytes. Not what this engine does."""


class Kernels(Enum):
    """Whether norms and attention are single kernels, which keep their inputs, or composed of smaller operations."""

    composed = "composed"
    """CPUs: a norm keeps FP32 intermediates; attention keeps half of every head's weights (none of long sequences),
    because PyTorch's fused kernel there refuses keys and values of different widths."""
    fused = "fused"
    """GPUs."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device, of the process that has most."""

    weights: int
    master: int
    gradients: int
    moments: int
    buckets: int
    """Where gradients are collected for reduction."""
    gathered: int
    """Weights of the layers at work, where ZeRO-3 keeps them in parts."""
    activations: int
    """Of one micro-batch, logits apart."""
    logits: int
    """A chunk of logits, and the heads' gradients."""
    update: int
    """Of the largest parameter group the FP32 copy of its gradients and AdamW's intermediates; by then activations are
    gone."""

    @property
    def states(self) -> int:
        """What stays from step to step, and the gradients."""
        return self.weights + self.master + self.gradients + self.moments

    @property
    def peak(self) -> int:
        """The larger of the backward pass and the update. Parts are added up that are largest at somewhat different
        moments, so this is an upper bound."""
        backward = self.buckets + self.gathered + self.activations + self.logits
        return self.states + max(backward, self.update)

    def by_part(self) -> dict[str, int]:
        """Name -> bytes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def training_memory(
    config: ModelConfig,
    layout: Layout,
    policy: Policy,
    sequence_length: int,
    kernels: Kernels = Kernels.fused,
) -> TrainingMemory:
    """All parts; experts are taken to be visited equally, so that each device computes as many rows as it sends."""
    tokens = layout.micro_batch * sequence_length
    states = _states(config, layout, policy)
    local = _local_parameters(config, layout)
    # memory of a host is taken when it is written
    bucket = min(BUCKET, trained_parameters(config) if kernels is Kernels.fused else local)
    return TrainingMemory(
        **states,
        buckets=bucket * policy.gradients if layout.zero_stage else 0,
        gathered=_gathered(config, layout) * policy.weights,
        activations=round(tokens * activation_bytes(config, layout, policy, sequence_length, kernels)),
        logits=head_bytes(config, policy, tokens, kernels),
        update=_update(config, layout, policy) + (bucket * policy.gradients if layout.zero_stage == 3 else 0),
    )


# ------------------------------------------------------------------ states


def expert_parameters(config: ModelConfig) -> int:
    """All routed experts, those of prediction modules included."""
    layers = config.num_moe_layers + config.num_nextn_predict_layers
    return layers * config.n_routed_experts * count(config).expert


def trained_parameters(config: ModelConfig) -> int:
    """Main model and prediction modules, which share embedding and head with it."""
    counts = count(config)
    return counts.total + counts.mtp


def _local_parameters(config: ModelConfig, layout: Layout) -> int:
    """Parameters that one process works with: everything but the experts, and its own experts."""
    experts = expert_parameters(config)
    return trained_parameters(config) - experts + experts // layout.expert_parallel


def _share(config: ModelConfig, layout: Layout) -> int:
    """Parameters of which one process keeps the divided states: experts are divided among the processes that hold the
    same ones, everything else among all."""
    experts = expert_parameters(config)
    rest = trained_parameters(config) - experts
    return -(-rest // layout.world_size) + -(-experts // layout.world_size)


def _states(config: ModelConfig, layout: Layout, policy: Policy) -> dict[str, int]:
    """ZeRO stage 1 divides master weights and moments, 2 gradients too, 3 weights too (arXiv 1910.02054, section 5)."""
    stage, local = layout.zero_stage, _local_parameters(config, layout)
    share = _share(config, layout) if stage else local
    copied = stage > 0 or policy.weights < FLOAT  # without ZeRO, FP32 weights are updated in place
    return {
        "weights": (share if stage == 3 else local) * policy.weights,
        "master": share * policy.master * copied,
        "gradients": (share if stage >= 2 else local) * policy.gradients,
        "moments": share * policy.moments,
    }


def _gathered(config: ModelConfig, layout: Layout) -> int:
    """Elements: under ZeRO-3 the largest layer whole (of its experts those of this process), and embedding and head."""
    if layout.zero_stage < 3:
        return 0
    counts = count(config)
    routed = config.n_routed_experts * counts.expert
    moe = counts.moe_layer - routed + routed // layout.expert_parallel
    return max(counts.dense_layer, moe) + counts.embedding + counts.head


def _update(config: ModelConfig, layout: Layout, policy: Policy) -> int:
    """AdamW works through one flat group after the other: matrices, vectors, experts in groups of `GROUP`. Of each its
    gradients stand once more in FP32; `foreach` on GPUs makes an intermediate of that size, the fused kernel on CPUs
    none, but there 0.8 of a group was measured. Without ZeRO: tensor by tensor, whose norm is taken in FP64, and FP32
    copies of gradients that are not."""
    experts = expert_parameters(config)
    rest = trained_parameters(config) - experts
    if not layout.zero_stage:
        tensor = config.n_routed_experts // layout.expert_parallel * count(config).expert * 2 // 3
        copies = _local_parameters(config, layout) * FLOAT if policy.gradients < FLOAT else 0
        return 16 * max(tensor, count(config).embedding) + copies
    expert_group = min(experts // layout.expert_parallel, GROUP) * layout.expert_parallel
    largest = max(rest, expert_group) // layout.world_size
    return largest * FLOAT * 2


# ------------------------------------------------------------------ activations: bytes for one token


def activation_bytes(
    config: ModelConfig, layout: Layout, policy: Policy, sequence_length: int, kernels: Kernels
) -> float:
    """What is alive of the layers when the backward pass begins, and what recomputation brings back of one layer."""
    layers, whole = (
        _layers(config, of, policy, sequence_length, kernels)
        for of in (layout, layout.model_copy(update={"recompute": "none"}))
    )
    again = 0 if layout.recompute == "none" else max(whole)
    if layout.recompute == "selective":
        again = max(all_of_it - left for all_of_it, left in zip(whole, layers, strict=True))
    return kept_bytes(config, layout, policy, sequence_length, kernels) + again


def kept_bytes(config: ModelConfig, layout: Layout, policy: Policy, sequence_length: int, kernels: Kernels) -> float:
    """What the forward pass keeps for the backward pass, without the loss."""
    width, e, ahead = config.hidden_size, policy.activations, config.num_nextn_predict_layers
    kept = sum(_layers(config, layout, policy, sequence_length, kernels))
    return kept + norm_bytes(width, e, kernels) + ahead * entry_bytes(config, e, kernels) + INDEX


def _layers(config: ModelConfig, layout: Layout, policy: Policy, sequence_length: int, kernels: Kernels) -> list[float]:
    """Each layer, prediction modules' too; of those that are recomputed whole the input."""
    c, rows, some = config, layout.micro_batch * sequence_length, layout.recompute == "selective"
    attention = attention_bytes(c, policy, sequence_length, kernels, some)
    dense = attention + feed_forward_bytes(c, policy, c.intermediate_size, kernels, some)
    moe = attention + moe_bytes(c, policy, rows, layout.expert_parallel, kernels, some)
    if layout.recompute == "full":
        dense = moe = policy.activations * c.hidden_size
    return [dense] * c.first_k_dense_replace + [moe] * (c.num_moe_layers + c.num_nextn_predict_layers)


def operand_bytes(width: int, policy: Policy, products: int = 1) -> float:
    """What `products` matrix products with the same input keep of it: the tensor itself, once; in 8 bits each has its
    own."""
    return products * width * (1 + FLOAT / BLOCK) if policy.eight_bits else policy.activations * width


def discarded_bytes(width: int, policy: Policy, products: int) -> float:
    """`operand_bytes` of an input that selective recomputation takes away: nothing, but for the products' own in 8
    bits."""
    return operand_bytes(width, policy, products) if policy.eight_bits else 0


def norm_bytes(width: int, e: int, kernels: Kernels) -> int:
    """RMSNorm: its input. Composed: the input in FP32, and normalised."""
    return (e if kernels is Kernels.fused else 2 * FLOAT) * width


def normed_bytes(width: int, policy: Policy, products: int, kernels: Kernels, selective: bool = False) -> float:
    """A norm, and the products that read it."""
    if selective:
        return policy.activations * width + discarded_bytes(width, policy, products)
    return norm_bytes(width, policy.activations, kernels) + operand_bytes(width, policy, products)


def attention_bytes(
    config: ModelConfig, policy: Policy, sequence_length: int, kernels: Kernels, selective: bool = False
) -> float:
    """Norm, latents with their norms, queries, keys and values by head, and the output that `o_proj` reads. `selective`
    keeps of all between the latents and the output nothing."""
    c, e, heads = config, policy.activations, config.num_attention_heads
    kept: float = normed_bytes(c.hidden_size, policy, 2, kernels, selective)
    if selective:
        queries = heads * c.qk_head_dim if c.q_lora_rank is None else c.q_lora_rank
        kept += e * (queries + c.kv_lora_rank + c.qk_rope_head_dim)
    else:
        if c.q_lora_rank is not None:
            kept += normed_bytes(c.q_lora_rank, policy, 1, kernels)
        kept += normed_bytes(c.kv_lora_rank, policy, 1, kernels)
        if e == FLOAT:
            kept += e * c.qk_rope_head_dim  # the norm keeps the whole product that the latent is cut from
    by_head = 0.0
    if kernels is Kernels.fused:
        by_head += (
            e * c.v_head_dim + FLOAT
        )  # the output, which the kernel's backward reads, with logarithms of the sums
        if not selective:  # values keep the product that they are cut from
            by_head += e * (2 * c.qk_head_dim + c.qk_nope_head_dim + c.v_head_dim)
        kept += discarded_bytes(heads * c.v_head_dim, policy, 1)
    else:  # `model.attend`, which skips keys that are not seen
        seen = (sequence_length + min(QUERIES, sequence_length)) / 2 if sequence_length <= KEEP else 0
        by_head += 0 if selective else e * (2 * c.qk_head_dim + c.v_head_dim + seen)
        kept += operand_bytes(heads * c.v_head_dim, policy)
    return kept + heads * by_head


def swiglu_bytes(inner: int, policy: Policy, selective: bool = False) -> float:
    """Gate, its activation, up, and the product of the last two; `selective` gate and up."""
    if selective:
        return 2 * policy.activations * inner + discarded_bytes(inner, policy, 1)
    return 3 * policy.activations * inner + operand_bytes(inner, policy)


def feed_forward_bytes(
    config: ModelConfig, policy: Policy, inner: int, kernels: Kernels, selective: bool = False
) -> float:
    """Norm and dense SwiGLU."""
    return normed_bytes(config.hidden_size, policy, 2, kernels, selective) + swiglu_bytes(inner, policy, selective)


def moe_bytes(
    config: ModelConfig, policy: Policy, rows: int, expert_parallel: int, kernels: Kernels, selective: bool = False
) -> float:
    """Norm, router (FP32), rows sorted and padded by expert, their feed-forward, the slots before they are weighted,
    shared experts. `rows`: tokens of the micro-batch. On a CPU with all experts on one process, but not in 8 bits:
    `model.local`, which keeps no rows, only what gate and up give."""
    c, e, k, inner = config, policy.activations, config.num_experts_per_tok, config.moe_intermediate_size
    router: float = FLOAT * c.n_routed_experts
    if not selective and (e < FLOAT or policy.eight_bits):  # else it keeps the same tensor as the shared experts
        router += FLOAT * c.hidden_size
    shared = feed_forward_bytes(c, policy, c.n_shared_experts * inner, kernels, selective)
    if kernels is Kernels.composed and expert_parallel == 1 and not policy.eight_bits:
        return router + k * (5 * INDEX + 2 * FLOAT + 2 * e * inner) + shared
    indices = 4 * INDEX * k + 3 * FLOAT * k  # choices, order, places; weights before and after the norm
    exchanged = 0 if expert_parallel == 1 else 2 * INDEX * k
    padded = k + ALIGN * c.n_routed_experts / expert_parallel / rows
    experts = operand_bytes(c.hidden_size, policy, 2) + swiglu_bytes(inner, policy, selective)
    return router + indices + exchanged + padded * experts + e * k * c.hidden_size + shared


def entry_bytes(config: ModelConfig, e: int, kernels: Kernels) -> int:
    """A prediction module besides its layer: norms of the embedding (which FP32 has kept) and of the hidden state,
    `eh_proj`, the last norm."""
    norms = 3 * norm_bytes(config.hidden_size, e, kernels)
    shared = FLOAT * config.hidden_size if e == FLOAT else 0
    return norms - shared + 2 * e * config.hidden_size


def head_bytes(config: ModelConfig, policy: Policy, tokens: int, kernels: Kernels) -> int:
    """Of all heads: gradients of their hidden states and of the matrix, made in the forward pass; of one the logits of
    a chunk (`model.head`), in FP32 too, and the matrix's gradient before it is rounded."""
    return logits_bytes(
        config.vocab_size, config.hidden_size, 1 + config.num_nextn_predict_layers, policy, tokens, kernels
    )


def logits_bytes(vocabulary: int, width: int, heads: int, policy: Policy, tokens: int, kernels: Kernels) -> int:
    """`head_bytes` by sizes."""
    e, matrix = policy.activations, vocabulary * width
    chunk = CHUNK["cpu" if kernels is Kernels.composed else "cuda"]
    rows = min(tokens, max(MIN_ROWS, chunk // vocabulary))
    copies = FLOAT * (1 + (tokens > rows)) + e if e < FLOAT else 0  # the last chunk's are still there
    work = rows * vocabulary * (e + copies) + matrix * (FLOAT if e < FLOAT else 0)
    return heads * (tokens * e * width + matrix * policy.weights) + work


def policy_of(precision: PrecisionName, on_cpu: bool) -> Policy:
    """What the product's precisions hold."""
    return {"fp32": FP32, "bf16": BF16, "fp8": FP8_ON_CPU if on_cpu else FP8}[precision]
