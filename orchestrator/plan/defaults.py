"""What is taken where a job says nothing: the rules that the planner and the launcher share. Pure; imports no torch."""

from __future__ import annotations

from model.recipe import PrecisionName

MAX_SEQUENCE = 4096
GPUS_PER_NODE = 8
PUBLISHED_BATCHES = {"v3-671b": 15_360 * 4096, "v2-lite-16b": 4608 * 4096}
"""Tokens of an optimizer step as published: arXiv 2412.19437, section 4.2; arXiv 2405.04434, appendix B."""

_MAX_BATCH_TOKENS = 1 << 20
_MAX_MICRO_BATCH_TOKENS = 8192
_STEPS_AIM = 2000


def precision_on(accelerator: str) -> tuple[PrecisionName, str]:
    """The usual arithmetic."""
    return ("fp32" if accelerator == "cpu" else "bf16"), f"the usual on {accelerator}"


def sequence_length(longest: int) -> tuple[int, str]:
    """Tokens of a training sequence, of a model for `longest`."""
    return min(MAX_SEQUENCE, longest), f"the longest, at most {MAX_SEQUENCE}"


def gpus_per_node(gpus: int) -> tuple[int, str]:
    """GPUs of one machine."""
    return min(GPUS_PER_NODE, gpus), f"{GPUS_PER_NODE}, or all where there are fewer"


def fill_nodes(gpus: int, per_node: int) -> str | None:
    """What is wrong where machines are not filled, with the nearest numbers that fill them."""
    if gpus <= per_node or gpus % per_node == 0:
        return None
    below = gpus // per_node * per_node
    return f"{gpus} do not fill machines of {per_node}: use {below} or {below + per_node}"


def batch_tokens(preset: str | None, tokens: int, unit: int) -> tuple[int, str]:
    """Tokens of an optimizer step: the published number where there is one and the run is long enough, else a power of
    two times `unit` (one micro-batch on every worker) that gives about 2,000 to 4,000 steps."""
    published = PUBLISHED_BATCHES.get(preset or "")
    if published is not None and tokens >= _STEPS_AIM * published:
        return -(-published // unit) * unit, f"{published} of {preset} as published, in multiples of {unit}"
    wanted = min(tokens // _STEPS_AIM, _MAX_BATCH_TOKENS) // unit
    if wanted < 2:
        return unit, "the least: one micro-batch on every worker"
    batch = unit << (wanted.bit_length() - 1)
    return batch, f"{tokens} tokens in {_STEPS_AIM} steps or more, at most {_MAX_BATCH_TOKENS} tokens a step"


def experts_on_cpus(world: int, experts: int) -> tuple[int, str]:
    """Workers that share one set of experts, all on one machine."""
    size = 1
    while 2 * size <= world and world % (2 * size) == 0 and experts % (2 * size) == 0:
        size *= 2
    return size, f"largest power of two that divides {world} workers and {experts} experts"


def micro_batch_on_cpus(sequences: int, length: int) -> tuple[int, str]:
    """The largest divisor of a worker's sequences that keeps a forward pass small."""
    bound = max(1, _MAX_MICRO_BATCH_TOKENS // length)
    size = next(size for size in range(min(bound, sequences), 0, -1) if sequences % size == 0)
    return size, f"divides {sequences} sequences per worker, at most {_MAX_MICRO_BATCH_TOKENS} tokens a pass"
