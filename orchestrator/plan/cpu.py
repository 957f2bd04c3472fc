"""CPU seconds of an optimizer step whose workers have one thread each: six rates, and what a step asks of each.

Called by `fathom calibrate`, which fits the rates to finished runs, and by whoever forecasts a job on CPUs. Imports no
torch. A model, not a measurement: docs/calibration.md holds it against runs that it was not fitted to. It counts what
`model/` does on CPUs in FP32 (`model.attend`, `model.local`, `model.head`) under DeepSpeed; evaluations and checkpoints
are not in it. Invariant: FLOPs are those of `model.flops`, and what is really computed twice on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Protocol

from pydantic import Field

from model.config import Frozen, ModelConfig
from model.recipe import Layout, PrecisionName
from orchestrator.errors import UsageError
from orchestrator.plan.efficiency import CPU, own_rows
from orchestrator.plan.files import read_rows
from orchestrator.plan.memory import (
    CHUNK,
    FLOAT,
    FP32,
    KEEP,
    MIN_ROWS,
    QUERIES,
    Kernels,
    expert_parameters,
    kept_bytes,
    trained_parameters,
)
from orchestrator.plan.work import flops_by_kind, layer_count, moe_layer_count, up_projection_flops

DATA = Path(__file__).parent / "data" / "cpu.yaml"


@dataclass(frozen=True)
class CpuRates:
    """What one thread does in a CPU second."""

    matrix_flops: float
    """FLOP of matrix products, attention's apart."""
    attention_flops: float
    """FLOP of attention's small products, causal."""
    activation_bytes: float
    """Bytes of activations that operations other than products read or write: mostly in the processor's caches."""
    state_bytes: float
    """Bytes of weights, gradients and optimizer states that are read or written: mostly from memory."""
    operations: float
    """Operations of torch, whatever their size: what Python, autograd and DeepSpeed add to each."""
    exchanged_bytes: float
    """Bytes that a worker sends to others, and takes in."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not (math.isfinite(rate := getattr(self, field.name)) and 1 <= rate <= 1e18):
                raise ValueError(f"{field.name} must be from 1 to 1e18 a second, got {rate!r}")


class CpuPrior(Frozen):
    """Where calibration starts with a rate."""

    name: str
    value: float = Field(gt=0)
    width: float = Field(gt=0)
    """Standard deviation of the logarithm."""
    origin: str


def cpu_priors() -> dict[str, CpuPrior]:
    """By name, from the packaged file."""
    return {row.name: row for row in read_rows(DATA, "file of CPU rates", "reinstall Fathom", CpuPrior)}


def cpu_rates(path: Path | None) -> CpuRates | None:
    """Those of the user's own efficiency file; None without one, or if it has none. UsageError if some are missing."""
    rows = [] if path is None else [row for row in own_rows(path) if row.name.startswith(CPU)]
    if not rows:
        return None
    found, known = {row.name.removeprefix(CPU): row.value for row in rows}, [field.name for field in fields(CpuRates)]
    if found.keys() != set(known):
        wrong = sorted(CPU + name for name in found.keys() ^ set(known))
        raise UsageError(
            f"efficiency file {path}: unknown or missing: {', '.join(wrong)}; all {len(known)} belong together: "
            f"{', '.join(CPU + name for name in known)}; `fathom calibrate --write` writes them"
        )
    try:
        return CpuRates(**found)
    except ValueError as error:
        raise UsageError(f"efficiency file {path}: {error}") from error


class CpuRun(Protocol):
    """What a forecast needs to know; a `Recipe` is one."""

    @property
    def model(self) -> ModelConfig: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def precision(self) -> PrecisionName: ...
    @property
    def device(self) -> str: ...


def forecast_cpu(run: CpuRun, rates: CpuRates) -> float:
    """CPU seconds of one optimizer step, of all workers together; ValueError for what the model does not cover."""
    return sum(seconds_by_rate(run, rates).values())


def seconds_by_rate(run: CpuRun, rates: CpuRates) -> dict[str, float]:
    """The same by what the time goes into; names are those of the rates."""
    return {name: amount / getattr(rates, name) for name, amount in asked(run).items()}


def asked(run: CpuRun) -> dict[str, float]:
    """What one step of all workers asks of each rate; ValueError as above."""
    if run.device != "cpu" or run.precision != "fp32":
        raise ValueError(f"CPU seconds are forecast for fp32 on cpu, got {run.precision} on {run.device}")
    return work(run.model, run.layout, run.sequence_length)


@cache
def work(config: ModelConfig, layout: Layout, sequence: int) -> dict[str, float]:
    """What one step of all workers asks of each rate."""
    micro_batches = layout.world_size * layout.accumulation
    tokens = micro_batches * layout.micro_batch * sequence
    matrix, attention = _flops(config, layout, sequence)
    per_token = _activation_bytes(config, layout, sequence)
    return {
        "matrix_flops": tokens * matrix,
        "attention_flops": tokens * attention,
        "activation_bytes": tokens * per_token,
        "state_bytes": _state_bytes(config, layout, micro_batches),
        "operations": _operations(config, layout, sequence, micro_batches),
        "exchanged_bytes": _exchanged_bytes(config, layout, tokens),
    }


def _flops(config: ModelConfig, layout: Layout, sequence: int) -> tuple[float, float]:
    """Per token: matrix products, attention. Attention goes by blocks of queries, each with all keys up to its end."""
    kinds = flops_by_kind(config, sequence)
    matrix = sum(kinds.values()) - kinds["attention"] - kinds["head"]
    repeated = {
        "none": 0.0,
        "selective": up_projection_flops(config),
        "full": _repeated(config, matrix - kinds["prediction"]),
    }[layout.recompute]
    attention = kinds["attention"] * 2 * _mean_keys(sequence) / sequence  # causal FLOPs are of half the sequence
    again = 4 / 3 if layout.recompute == "full" else 1.0
    if _scores_again(layout, sequence):
        again += config.qk_head_dim / (config.qk_head_dim + config.v_head_dim) / 3
    return matrix + repeated + kinds["head"], attention * again


def _scores_again(layout: Layout, sequence: int) -> bool:
    """Whether the backward pass computes the scores of attention again by itself: `model.attend` keeps those of short
    sequences."""
    return sequence > KEEP or layout.recompute == "selective"


def _repeated(config: ModelConfig, layers: float) -> float:
    """Of all layers' matrix products what the backward pass computes again: a forward pass, which torch ends with the
    last tensor that is needed, so without the last product (of the dense feed-forward, or of the shared experts)."""
    c, dense = config, config.first_k_dense_replace
    last = dense * c.intermediate_size + moe_layer_count(c) * c.n_shared_experts * c.moe_intermediate_size
    return layers / 3 - 2 * last * c.hidden_size


def _mean_keys(sequence: int) -> float:
    """Keys that a query meets in `model.attend`: those up to the end of its block, the last block being what is left
    over."""
    blocks, rest = divmod(sequence, QUERIES)
    return (QUERIES * QUERIES * blocks * (blocks + 1) / 2 + rest * sequence) / sequence


_PASSES = 4
"""Of a byte that is kept for the backward pass: written, read; read there, and its gradient written."""
_SCORE_PASSES, _SCORE_PASSES_AGAIN = 15, 6
"""Of attention's scores in both passes (`model.attend`: product, scale, mask, softmax, product; backward: product,
gradients of softmax and scale, products), and where they are computed again."""
_ROW_PASSES = 10
"""Of a row that goes to an expert: gathered, summed up; gathered twice and summed up in the backward pass."""
_LOGIT_PASSES = 11
"""`model.head`: product, maximum, difference, power, sum, quotient, two products."""


def _activation_bytes(config: ModelConfig, layout: Layout, sequence: int) -> float:
    """Per token."""
    c = config
    long = _scores_again(layout, sequence)
    plain = layout.model_copy(update={"recompute": "none"})
    kept, left = (kept_bytes(c, of, FP32, KEEP + 1 if long else sequence, Kernels.composed) for of in (plain, layout))
    keys = _mean_keys(sequence)
    scores = _SCORE_PASSES + _SCORE_PASSES_AGAIN if long else _SCORE_PASSES - _PASSES
    floats = layer_count(c) * c.num_attention_heads * keys * scores
    floats += moe_layer_count(c) * c.num_experts_per_tok * c.hidden_size * _ROW_PASSES
    moved = kept * _PASSES + floats * FLOAT
    if layout.recompute == "full":
        moved *= 1.5
    if layout.recompute == "selective":
        moved += (kept - left) * _PASSES / 2
    heads = 1 + c.num_nextn_predict_layers
    return moved + heads * c.vocab_size * _LOGIT_PASSES * FLOAT


_PASSES_EACH, _PASSES_ONCE = 6, 18
"""Of an FP32 number of the weights with each micro-batch (weights read twice, gradient written, then added to those
before), and in the update (gradients collected and their norm taken, AdamW, weights written back)."""


def _state_bytes(config: ModelConfig, layout: Layout, micro_batches: int) -> float:
    """Of all workers. Without ZeRO each of them updates everything that it holds."""
    experts = expert_parameters(config)
    rest = trained_parameters(config) - experts
    held = rest + experts / layout.expert_parallel
    updated = rest + experts if layout.zero_stage else held * layout.world_size
    return FLOAT * (micro_batches * held * _PASSES_EACH + updated * _PASSES_ONCE)


def _operations(config: ModelConfig, layout: Layout, sequence: int, micro_batches: int) -> float:
    """Operations of torch as its dispatcher counts them, forward and backward: of a micro-batch 140, of a layer 460 and
    32 for each block of queries, of a MoE layer 180 more and 52 for each expert, of a chunk of logits 30, of a
    prediction module 160; of the update 130, 108 for a layer and 36 more for one of MoE."""
    c, layers, moe = config, layer_count(config), moe_layer_count(config)
    blocks = math.ceil(sequence / QUERIES) * (43 if _scores_again(layout, sequence) else 32)
    rows = layout.micro_batch * sequence
    chunks = math.ceil(rows / max(MIN_ROWS, CHUNK["cpu"] // c.vocab_size))
    inside = layers * (460 + blocks) + moe * (180 + 52 * c.n_routed_experts / layout.expert_parallel)
    ahead = c.num_nextn_predict_layers
    again = {"none": 1.0, "selective": 1.15, "full": 4 / 3}[layout.recompute]
    each = 140 + inside * again + (1 + ahead) * chunks * 30 + ahead * 160
    return micro_batches * each + layout.world_size * (130 + layers * 108 + moe * 36)


def _exchanged_bytes(config: ModelConfig, layout: Layout, tokens: int) -> float:
    """Sent by all workers in rings: sums of gradients, weights gathered where ZeRO divides them, tokens on their way to
    experts and back in both passes (and once more where the forward pass is repeated)."""
    world, expert = layout.world_size, layout.expert_parallel
    experts = expert_parameters(config)
    rest = trained_parameters(config) - experts
    rings = (world - 1) * rest + (world / expert - 1) * experts
    passes = 3 if layout.recompute == "full" else 2
    away = config.num_experts_per_tok * (1 - 1 / expert) * config.hidden_size
    routed = tokens * moe_layer_count(config) * away * 2 * passes
    return FLOAT * (rings * 2 + routed)
