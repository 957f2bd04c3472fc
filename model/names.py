"""One table of parameter names: in memory, inside DeepSpeed AutoEP, and on disk. No torch.

Called by the checkpoint, the export and the engine. Memory is transformers 5's DeepseekV3, which stacks the
routed experts, plus `model.mtp.K`. AutoEP renames what lies under a MoE block. Disk is the released layout:
one tensor per expert, prediction module K as layer `num_hidden_layers + K` with copies of embedding and head.
Invariant: the disk entries of a memory tensor cover it exactly once, copies apart; only the selection bias of
a router that does not use it (V2) stays off the disk, as in V2's released files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from model.config import ModelConfig
from model.flops import Matrix, attention_matrices, indexer_matrices, swiglu_matrices

Shape = tuple[int, ...]
Part = Literal["gate", "up"]

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
BIAS = "mlp.gate.e_score_correction_bias"
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


@dataclass(frozen=True)
class DiskEntry:
    """One tensor of the released layout and where it lies in memory."""

    name: str
    memory_name: str
    shape: Shape
    expert: int | None = None
    """The expert, where the memory tensor is a stack of them."""
    part: Part | None = None
    """Which half of a stacked gate_up_proj."""
    stack: Shape = ()
    """Shape of that stack."""
    copy: bool = False
    """Repeats embedding or head in a prediction module: written; on reading only compared or ignored."""

    @property
    def index(self) -> tuple[int | slice, ...]:
        """`memory[index]` is this tensor, a view; works for torch and numpy."""
        if self.expert is None:
            return ()
        if self.part is None:
            return (self.expert,)
        inner = self.shape[0]
        return (self.expert, slice(0, inner) if self.part == "gate" else slice(inner, 2 * inner))


def _attention_shapes(config: ModelConfig) -> dict[str, Shape]:
    c = config
    names = ["q_proj"] if c.q_lora_rank is None else ["q_a_proj", "q_b_proj"]
    names += ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
    shapes: dict[str, Shape] = _named(names, attention_matrices(c))
    shapes["kv_a_layernorm.weight"] = (c.kv_lora_rank,)
    if c.q_lora_rank is not None:
        shapes["q_a_layernorm.weight"] = (c.q_lora_rank,)
    if c.index_n_heads:
        shapes |= _named(["indexer.wq_b", "indexer.wk", "indexer.weights_proj"], indexer_matrices(c))
        shapes |= {"indexer.k_norm.weight": (c.index_head_dim,), "indexer.k_norm.bias": (c.index_head_dim,)}
    return shapes


def _named(names: list[str], matrices: list[Matrix]) -> dict[str, Shape]:
    return {f"{name}.weight": matrix for name, matrix in zip(names, matrices, strict=True)}


def _swiglu_shapes(config: ModelConfig, inner: int) -> dict[str, Shape]:
    return _named(["gate_proj", "up_proj", "down_proj"], swiglu_matrices(config, inner))


def _block_shapes(config: ModelConfig, *, moe: bool) -> dict[str, Shape]:
    """Names below a layer."""
    c, hidden = config, config.hidden_size
    shapes: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    shapes |= {f"self_attn.{name}": shape for name, shape in _attention_shapes(c).items()}
    if not moe:
        return shapes | {f"mlp.{n}": s for n, s in _swiglu_shapes(c, c.intermediate_size).items()}
    shapes |= {"mlp.gate.weight": (c.n_routed_experts, hidden), BIAS: (c.n_routed_experts,)}
    shapes[GATE_UP] = (c.n_routed_experts, 2 * c.moe_intermediate_size, hidden)
    shapes[DOWN] = (c.n_routed_experts, hidden, c.moe_intermediate_size)
    shared = c.n_shared_experts * c.moe_intermediate_size
    if shared:
        shapes |= {f"mlp.shared_experts.{n}": s for n, s in _swiglu_shapes(c, shared).items()}
    return shapes


def _module_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Names below a prediction module."""
    hidden = config.hidden_size
    shapes: dict[str, Shape] = {f"{name}.weight": (hidden,) for name in ("enorm", "hnorm", "norm")}
    shapes["eh_proj.weight"] = (hidden, 2 * hidden)
    return shapes | {f"block.{n}": s for n, s in _block_shapes(config, moe=True).items()}


def memory_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every parameter and router bias of the model in memory, with its shape."""
    c = config
    table: dict[str, Shape] = {EMBEDDING: (c.vocab_size, c.hidden_size)}
    for i in range(c.num_hidden_layers):
        block = _block_shapes(c, moe=i >= c.first_k_dense_replace)
        table |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    table[NORM] = (c.hidden_size,)
    for k in range(c.num_nextn_predict_layers):
        table |= {f"model.mtp.{k}.{name}": shape for name, shape in _module_shapes(c).items()}
    table[HEAD] = (c.vocab_size, c.hidden_size)
    return table


def is_buffer(name: str) -> bool:
    """Whether a memory name is a router's selection bias, which no gradient trains."""
    return name.endswith(".e_score_correction_bias")


def is_quantised(entry: DiskEntry) -> bool:
    """Whether the released FP8 layout keeps this tensor in FP8: the matrices of attention and feed-forwards."""
    name = entry.name
    if len(entry.shape) != 2 or ".indexer." in name or name.endswith(".mlp.gate.weight"):
        return False
    return ".self_attn." in name or ".mlp." in name


def parameter_count(config: ModelConfig) -> int:
    """Elements of all parameters in memory, prediction modules included, buffers not."""
    return sum(math.prod(shape) for name, shape in memory_shapes(config).items() if not is_buffer(name))


_MODULE = re.compile(r"model\.mtp\.(\d+)\.(?:(block)\.)?(.+)")


def _disk_name(config: ModelConfig, name: str) -> str:
    """The disk name of a memory tensor; for stacked experts the name that the per-expert names grow from."""
    match = _MODULE.fullmatch(name)
    if match is None:
        return name
    rest = match[3] if match[2] or match[3] != "norm.weight" else "shared_head.norm.weight"
    return f"model.layers.{config.num_hidden_layers + int(match[1])}.{rest}"


def _expert_entries(name: str, memory_name: str, shape: Shape) -> Iterator[DiskEntry]:
    """The per-expert tensors of one stack; `name` ends in gate_up_proj or down_proj."""
    stem, projection = name.rsplit(".", 1)
    experts, rows, columns = shape
    for e in range(experts):
        if projection == "down_proj":
            yield DiskEntry(f"{stem}.{e}.down_proj.weight", memory_name, (rows, columns), e, stack=shape)
            continue
        half = (rows // 2, columns)
        yield DiskEntry(f"{stem}.{e}.gate_proj.weight", memory_name, half, e, "gate", shape)
        yield DiskEntry(f"{stem}.{e}.up_proj.weight", memory_name, half, e, "up", shape)


def stacked_name(config: ModelConfig, entry: DiskEntry) -> str:
    """What the stack of an expert's entry is called where a file holds it whole."""
    return _disk_name(config, entry.memory_name)


def disk_entries(config: ModelConfig) -> list[DiskEntry]:
    """All tensors of the released layout, the copies of embedding and head last."""
    entries: list[DiskEntry] = []
    shapes = memory_shapes(config)
    for memory_name, shape in shapes.items():
        if is_buffer(memory_name) and config.topk_method != "noaux_tc":
            continue
        name = _disk_name(config, memory_name)
        if memory_name.endswith((GATE_UP, DOWN)):
            entries += _expert_entries(name, memory_name, shape)
        else:
            entries.append(DiskEntry(name, memory_name, shape))
    for k in range(config.num_nextn_predict_layers):
        layer = f"model.layers.{config.num_hidden_layers + k}"
        for name, memory_name in (("embed_tokens.weight", EMBEDDING), ("shared_head.head.weight", HEAD)):
            entries.append(DiskEntry(f"{layer}.{name}", memory_name, shapes[memory_name], copy=True))
    return entries


_TO_AUTOEP = {
    "mlp.gate.weight": ("mlp.router.gate.weight",),
    BIAS: ("mlp.router.e_score_correction_bias",),
    GATE_UP: ("mlp.experts.w1", "mlp.experts.w3"),
    DOWN: ("mlp.experts.w2",),
}
_FROM_AUTOEP: dict[str, tuple[str, Part | None]] = {
    "mlp.router.gate.weight": ("mlp.gate.weight", None),
    "mlp.router.e_score_correction_bias": (BIAS, None),
    "mlp.experts.w1": (GATE_UP, "gate"),
    "mlp.experts.w3": (GATE_UP, "up"),
    "mlp.experts.w2": (DOWN, None),
}
_BLOCK = re.compile(r"(model\.(?:layers\.\d+|mtp\.\d+\.block)\.)(mlp\..+)")


def memory_to_autoep(name: str) -> tuple[str, ...]:
    """What a memory tensor is called after AutoEP's replacement; gate_up_proj becomes two tensors.

    AutoEP holds a process's own experts only: the first dimension is E / expert-parallel size. Names without
    a counterpart (attention, norms, shared experts, dense layers) stay as they are.
    """
    match = _BLOCK.fullmatch(name)
    if match is None:
        return (name,)
    return tuple(match[1] + new for new in _TO_AUTOEP.get(match[2], (match[2],)))


def autoep_to_memory(name: str) -> str:
    """The inverse: the memory tensor that an AutoEP tensor belongs to (w1 and w3: to the same, see
    `autoep_part`)."""
    match = _BLOCK.fullmatch(name)
    if match is None or match[2] not in _FROM_AUTOEP:
        return name
    return match[1] + _FROM_AUTOEP[match[2]][0]


def autoep_part(name: str) -> Part | None:
    """Which half of gate_up_proj an AutoEP tensor is; None for a whole tensor."""
    match = _BLOCK.fullmatch(name)
    return _FROM_AUTOEP.get(match[2], (name, None))[1] if match else None
