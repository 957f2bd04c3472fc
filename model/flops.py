"""How many parameters, floating-point operations and bytes an architecture has: exact arithmetic, no torch.

Called by the planner, the meter of FLOP/s in the training loop and `fathom model`. Invariant: the sums are
those of the modules in `model.transformer` and of transformers' DeepseekV3, to the last digit.
"Matrix" always means (rows, columns) of a weight as it is stored: (output, input).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from model.config import ModelConfig

Matrix = tuple[int, int]

BLOCK = 128
"""Side of the square that shares one scale in released FP8 weights."""


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters. Without MTP unless the name says so; router biases (buffers) stand apart."""

    total: int
    """All trained parameters of the main model."""
    active: int
    """Parameters that one token uses, with the whole embedding and output head ("37B" for V3)."""
    active_without_embedding: int
    """The same without the embedding, which is a lookup."""
    active_without_embedding_and_head: int
    matmul: int
    """Parameters that one token is multiplied with: active, without embedding and norms."""
    mtp: int
    """What all prediction modules add in memory, where embedding and head are the main model's."""
    mtp_shipped: int
    """The same as released files hold them: every module with its own copy of embedding and head."""
    mtp_matmul: int
    """The same for all prediction modules, each with one more pass through the head."""
    router_bias: int
    """Elements of the routers' selection biases in the main layers; buffers, not parameters."""
    embedding: int
    head: int
    attention: int
    """Matrices of latent attention in all main layers, without norms and indexer."""
    indexer: int
    """The sparse-attention indexers of all main layers (V3.2), with their norms."""
    dense_ffn: int
    routed_experts: int
    """All routed experts of the main layers, whether a token visits them or not."""
    shared_experts: int
    routers: int
    norms: int
    expert: int
    """One routed expert."""
    dense_layer: int
    """One whole dense layer: attention, feed-forward, norms."""
    moe_layer: int
    """One whole mixture-of-experts layer."""


@dataclass(frozen=True)
class Storage:
    """Elements of the released FP8 files by type, MTP modules with their copies included."""

    fp8: int
    bf16: int
    fp32: int
    """Scales of the FP8 blocks and router biases."""

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return self.fp8 + 2 * self.bf16 + 4 * self.fp32


def elements(matrices: Iterable[Matrix]) -> int:
    """Elements of all matrices together."""
    return sum(rows * columns for rows, columns in matrices)


def attention_matrices(config: ModelConfig) -> list[Matrix]:
    """Weights of one layer's latent attention."""
    c, heads = config, config.num_attention_heads
    if c.q_lora_rank is None:
        queries = [(heads * c.qk_head_dim, c.hidden_size)]
    else:
        queries = [(c.q_lora_rank, c.hidden_size), (heads * c.qk_head_dim, c.q_lora_rank)]
    return [
        *queries,
        (c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size),
        (heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank),
        (c.hidden_size, heads * c.v_head_dim),
    ]


def indexer_matrices(config: ModelConfig) -> list[Matrix]:
    """Weights of one layer's sparse-attention indexer (V3.2): queries, one key, head weights."""
    c = config
    if not c.index_n_heads:
        return []
    if c.q_lora_rank is None:
        raise ValueError(
            f"the indexer (index_n_heads={c.index_n_heads}) needs compressed queries, but q_lora_rank is "
            "null; set q_lora_rank or set index_n_heads to 0"
        )
    return [
        (c.index_n_heads * c.index_head_dim, c.q_lora_rank),
        (c.index_head_dim, c.hidden_size),
        (c.index_n_heads, c.hidden_size),
    ]


def indexer_norm(config: ModelConfig) -> int:
    """Weight and bias of the LayerNorm on the indexer's key."""
    return 2 * config.index_head_dim if config.index_n_heads else 0


def swiglu_matrices(config: ModelConfig, inner: int) -> list[Matrix]:
    """Gate, up and down projection of a feed-forward of inner size `inner` (none if 0)."""
    hidden = config.hidden_size
    return [(inner, hidden), (inner, hidden), (hidden, inner)] if inner else []


def dense_matrices(config: ModelConfig) -> list[Matrix]:
    """The feed-forward of a dense layer."""
    return swiglu_matrices(config, config.intermediate_size)


def expert_matrices(config: ModelConfig) -> list[Matrix]:
    """One routed expert."""
    return swiglu_matrices(config, config.moe_intermediate_size)


def shared_matrices(config: ModelConfig) -> list[Matrix]:
    """The shared experts of one layer, which are one feed-forward."""
    return swiglu_matrices(config, config.n_shared_experts * config.moe_intermediate_size)


def router_parameters(config: ModelConfig) -> int:
    """The gating matrix of one layer, without its bias."""
    return config.n_routed_experts * config.hidden_size


def layer_norms(config: ModelConfig) -> int:
    """Norms of one layer: before attention and feed-forward, and on the latents."""
    return 2 * config.hidden_size + (config.q_lora_rank or 0) + config.kv_lora_rank


def mtp_entry(config: ModelConfig) -> Matrix:
    """`eh_proj` of a prediction module: embedding and hidden state, side by side, to one hidden state."""
    return (config.hidden_size, 2 * config.hidden_size)


def _attention_matmul(config: ModelConfig) -> int:
    return elements(attention_matrices(config)) + elements(indexer_matrices(config))


def _moe_matmul(config: ModelConfig) -> int:
    """Parameters of one MoE feed-forward that one token is multiplied with."""
    routed = config.num_experts_per_tok * elements(expert_matrices(config))
    return routed + elements(shared_matrices(config)) + router_parameters(config)


def count(config: ModelConfig) -> Counts:
    """All counts of an architecture."""
    c, moe, depth = config, config.num_moe_layers, config.num_nextn_predict_layers
    embedding = c.vocab_size * c.hidden_size
    attention = elements(attention_matrices(c))
    indexer = elements(indexer_matrices(c)) + indexer_norm(c)
    expert, shared = elements(expert_matrices(c)), elements(shared_matrices(c))
    dense, router, norms = elements(dense_matrices(c)), router_parameters(c), layer_norms(c)

    dense_layer = attention + indexer + dense + norms
    moe_layer = attention + indexer + c.n_routed_experts * expert + shared + router + norms
    total = 2 * embedding + c.first_k_dense_replace * dense_layer + moe * moe_layer + c.hidden_size
    active = total - moe * (c.n_routed_experts - c.num_experts_per_tok) * expert
    all_norms = c.num_hidden_layers * norms + c.hidden_size
    module = moe_layer + elements([mtp_entry(c)]) + 3 * c.hidden_size
    module_matmul = _attention_matmul(c) + _moe_matmul(c) + elements([mtp_entry(c)]) + embedding
    return Counts(
        total=total,
        active=active,
        active_without_embedding=active - embedding,
        active_without_embedding_and_head=active - 2 * embedding,
        matmul=active - embedding - all_norms - c.num_hidden_layers * indexer_norm(c),
        mtp=depth * module,
        mtp_shipped=depth * (module + 2 * embedding),
        mtp_matmul=depth * module_matmul,
        router_bias=moe * c.n_routed_experts,
        embedding=embedding,
        head=embedding,
        attention=c.num_hidden_layers * attention,
        indexer=c.num_hidden_layers * indexer,
        dense_ffn=c.first_k_dense_replace * dense,
        routed_experts=moe * c.n_routed_experts * expert,
        shared_experts=moe * shared,
        routers=moe * router,
        norms=all_norms,
        expert=expert,
        dense_layer=dense_layer,
        moe_layer=moe_layer,
    )


def mean_keys(config: ModelConfig, sequence_length: int, causal: bool = True) -> float:
    """Keys that a query attends to, averaged over the positions of a sequence.

    S/2 causal and S otherwise; with an indexer no query takes more than `index_topk` = k, which for S > k
    gives k - k*k/(2*S) causal (the mean of min(t, k)) and k otherwise.
    """
    length, limit = sequence_length, config.index_topk if config.index_n_heads else 0
    if not limit or length <= limit:
        return length / 2 if causal else float(length)
    return limit - limit * limit / (2 * length) if causal else float(limit)


def attention_flops(config: ModelConfig, sequence_length: int, causal: bool = True) -> float:
    """Training FLOPs per token and layer of attention itself: queries with keys, weights with values.

    An indexer adds its own scores, which look at every key, counted as trained like the rest.
    """
    c = config
    core = c.num_attention_heads * (c.qk_head_dim + c.v_head_dim) * mean_keys(c, sequence_length, causal)
    scored = sequence_length / 2 if causal else float(sequence_length)
    return 6 * (core + c.index_n_heads * c.index_head_dim * scored)


def flops_per_token(config: ModelConfig, sequence_length: int, causal: bool = True, mtp: bool = False) -> float:
    """Training FLOPs per token, forward and backward: 6 * matmul parameters + attention over the sequence.

    `causal` counts only the half of the scores that a causal mask leaves (the convention of most published
    utilisation figures); `mtp` adds the prediction modules. Recomputation is never counted.
    """
    if sequence_length < 1:
        raise ValueError(f"sequence_length must be at least 1, got {sequence_length}")
    counts = count(config)
    parameters = counts.matmul + (counts.mtp_matmul if mtp else 0)
    layers = config.num_hidden_layers + (config.num_nextn_predict_layers if mtp else 0)
    return 6 * parameters + layers * attention_flops(config, sequence_length, causal)


def cache_bytes_per_token(config: ModelConfig, element_bytes: int = 2, modules: int = 0) -> int:
    """What generation keeps per token, BF16 by default: latent and rotary key of every main layer, and the
    indexer's key where there is one. `modules`: prediction modules that are used too, each with a layer of its own."""
    index = config.index_head_dim if config.index_n_heads else 0
    layers = config.num_hidden_layers + modules
    return layers * (config.kv_lora_rank + config.qk_rope_head_dim + index) * element_bytes


def plain_cache_bytes_per_token(config: ModelConfig, element_bytes: int = 2) -> int:
    """What plain multi-head attention with the same heads would keep: every head's key and value."""
    per_head = config.qk_head_dim + config.v_head_dim
    return config.num_hidden_layers * config.num_attention_heads * per_head * element_bytes


def released_storage(config: ModelConfig) -> Storage:
    """The released FP8 layout: matrices of attention and feed-forwards in FP8 with one FP32 scale per 128x128
    block; embedding, head, routers, norms, `eh_proj` (and indexers) in BF16; router biases in FP32."""
    c, depth = config, config.num_nextn_predict_layers
    counts, moe = count(c), c.num_moe_layers + depth
    groups = [
        (c.num_hidden_layers + depth, attention_matrices(c)),
        (c.first_k_dense_replace, dense_matrices(c)),
        (moe, shared_matrices(c)),
        (moe * c.n_routed_experts, expert_matrices(c)),
    ]
    fp8 = sum(times * elements(matrices) for times, matrices in groups)
    scales = sum(times * _scales(matrices) for times, matrices in groups)
    biases = moe * c.n_routed_experts if c.topk_method == "noaux_tc" else 0
    return Storage(fp8=fp8, bf16=counts.total + counts.mtp_shipped - fp8, fp32=scales + biases)


def _scales(matrices: Iterable[Matrix]) -> int:
    return sum(-(-rows // BLOCK) * -(-columns // BLOCK) for rows, columns in matrices)
