"""The best layouts of a workload on a cluster: all sensible ones, tried in about a second. No torch.

Called by the forecast and the resolver. Invariant: what the engine runs today has no `needs`; layouts that fit come
first, the fastest first; then those that do not, the one that lacks least first.

What is left out, and why: stages with ZeRO-2 or 3 (gradients and weights would travel for each micro-batch); with
ZeRO-1, more recomputation than memory asks for (only slower); smaller micro-batches than fit (no faster here), and
those beyond `_MOST_TOKENS`, where memory was never measured; sequences that are short and many enough divided all the
same (up to 9 % faster in 9 cases that were tried in full, for several times the search); DualPipe without exchange of
experts (it hides nothing); more than `_MOST_STAGES` stages or `_MOST_CHUNKS` pieces of each; tensors divided across
nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from orchestrator.plan.dense import DenseModel
from orchestrator.plan.efficiency import Efficiencies
from orchestrator.plan.footprint import Footprint, footprint
from orchestrator.plan.step_time import StepTime, step_time
from orchestrator.plan.work import Architecture, layer_count
from orchestrator.plan.workload import RECOMPUTE, Cluster, Parallel, Workload, check

_MOST_STAGES = 64
_MOST_CHUNKS = 8
"""Pieces of the model in each stage."""
_MOST_TOKENS, _MOST_TOKENS_GATHERED = 8192, 32_768
"""Of a micro-batch of several sequences on one GPU; more under ZeRO-2 and 3, whose traffic each micro-batch repeats."""
_LONG = 8192
"""Tokens of one sequence on one GPU from which it may be divided further (context parallelism)."""
NEAR = 40
"""Layouts that do not fit, of which step times are computed."""
_MOST_GPUS = 1 << 17


@dataclass(frozen=True)
class Candidate:
    """One layout."""

    parallel: Parallel
    memory: Footprint
    step: StepTime
    fits: bool
    needs: tuple[str, ...]
    """What the engine lacks for it; empty if it runs today."""


@dataclass(frozen=True)
class Nearest:
    """What would make a workload fit where nothing does."""

    lacking_bytes: int
    """Per GPU, of the layout that lacks least among those that run today."""
    closest: Candidate
    gpus_today: int | None
    """Fewest GPUs (by doubling) on which the engine can run it today; None if there is no such number."""
    gpus: int | None
    """The same with everything that is planned."""


def search(workload: Workload, cluster: Cluster, efficiencies: Efficiencies, today: bool = False) -> list[Candidate]:
    """Best first; `today`: only what the engine runs now. ValueError if no layout can divide this work at all."""
    efficiencies.matrix_rate(cluster.accelerator, workload.precision)  # refuses arithmetic that the device lacks
    capacity = cluster.accelerator.memory_bytes
    good: list[Candidate] = []
    poor: list[tuple[int, Parallel, Footprint]] = []
    found_any = False
    for layout in layouts(workload, cluster, today):
        found_any = True
        for parallel, memory in _variants(workload, layout, capacity):
            if memory.peak > capacity:
                poor.append((memory.peak, parallel, memory))
            else:
                good.append(_candidate(workload, cluster, efficiencies, parallel, memory))
    if not found_any:
        _explain(workload, cluster)
    poor.sort(key=lambda item: item[0])
    good.sort(key=_rank)
    return good + [_candidate(workload, cluster, efficiencies, p, memory) for _, p, memory in poor[:NEAR]]


def nearest(workload: Workload, cluster: Cluster, efficiencies: Efficiencies) -> Nearest | None:
    """None if something fits that runs today."""
    found = search(workload, cluster, efficiencies, today=True)
    if found[0].fits:
        return None
    lacking = found[0].memory.peak - cluster.accelerator.memory_bytes
    return Nearest(lacking, found[0], fewest(workload, cluster, today=True), fewest(workload, cluster, today=False))


def _sparing(layout: Parallel) -> Parallel:
    return replace(layout, recompute="full")


def fewest(
    workload: Workload, cluster: Cluster, today: bool, asked: Callable[[Parallel], Parallel | None] = _sparing
) -> int | None:
    """Fewest GPUs (parts of a node, then nodes, by doubling) into which it fits; None if no such number divides it.

    `asked`: of a layout without recomputation and of micro-batches of one sequence, the one to be tried, or None.
    """
    capacity = cluster.accelerator.memory_bytes
    for gpus in _sizes(cluster.gpus_per_node):
        grown = replace(cluster, gpus=gpus)
        for layout in layouts(workload, grown, today):
            wanted = asked(layout)
            if wanted and _possible(workload, grown, wanted) and footprint(workload, wanted).peak <= capacity:
                return gpus
    return None


def needs(config: Architecture, parallel: Parallel) -> tuple[str, ...]:
    """What the engine lacks."""
    p = parallel
    lacks = {
        "dense grouped-query models": isinstance(config, DenseModel),
        "training with the sparse-attention indexer": not isinstance(config, DenseModel) and config.index_n_heads > 0,
        "pipeline parallelism": p.pipeline > 1,
        "interleaved stages": p.chunks > 1,
        "DualPipe": p.schedule == "dualpipe",
        "tensor parallelism": p.tensor > 1,
        "context parallelism": p.context > 1,
        "dispatch once per node": p.expert > 1 and p.dispatch == "node",
    }
    return tuple(name for name, applies in lacks.items() if applies)


def layouts(workload: Workload, cluster: Cluster, today: bool = False) -> Iterator[Parallel]:
    """All that pass `check`, without recomputation and with micro-batches of one sequence."""
    for pipeline in _divisors(cluster.gpus, 1 if today else _MOST_STAGES):
        for tensor in _divisors(cluster.gpus // pipeline, 1 if today else cluster.local):
            data = cluster.gpus // (pipeline * tensor)
            for context in _contexts(workload, data, tensor, today):
                for expert in _experts(workload.config, data * tensor):
                    for layout in _schedules(
                        workload, Parallel(data, tensor, pipeline, expert, context=context), today
                    ):
                        if _possible(workload, cluster, layout):
                            yield layout


def _schedules(workload: Workload, base: Parallel, today: bool) -> Iterator[Parallel]:
    if base.pipeline == 1:
        for stage in (1, 2, 3) if base.data > 1 else (1,):
            yield replace(base, zero_stage=stage)
            if base.expert > 1 and not today:
                yield replace(base, zero_stage=stage, dispatch="node")
        return
    base = replace(base, dispatch="node" if base.expert > 1 else "expert")
    config = workload.config
    most = min(_MOST_CHUNKS, (config.num_hidden_layers + 2) // base.pipeline)
    for chunks in _chunks(layer_count(config), base.pipeline, most):
        yield replace(base, chunks=chunks)
    if base.pipeline % 2 == 0 and base.expert > 1:
        yield replace(base, schedule="dualpipe")


def _variants(workload: Workload, layout: Parallel, capacity: int) -> Iterator[tuple[Parallel, Footprint]]:
    """Recomputation as far as it is needed, each with the largest micro-batch that fits, or with one sequence."""
    for recompute in RECOMPUTE:
        parallel, memory = _widest(workload, replace(layout, recompute=recompute), capacity)
        fits = memory.peak <= capacity
        if fits or recompute == "full":
            yield parallel, memory
        if fits and layout.zero_stage < 2:
            return


def _widest(workload: Workload, layout: Parallel, capacity: int) -> tuple[Parallel, Footprint]:
    best, memory = layout, footprint(workload, layout)
    each = workload.sequences // layout.replicas
    most = _MOST_TOKENS if layout.zero_stage < 2 else _MOST_TOKENS_GATHERED
    size = 2
    while (
        memory.peak <= capacity
        and layout.pipeline == 1
        and each % size == 0
        and size * workload.sequence_length // (layout.context * layout.tensor) <= most
    ):
        wider = replace(layout, micro_batch=size)
        more = footprint(workload, wider)
        if more.peak > capacity:
            break
        best, memory, size = wider, more, size * 2
    return best, memory


def _candidate(
    workload: Workload, cluster: Cluster, efficiencies: Efficiencies, parallel: Parallel, memory: Footprint
) -> Candidate:
    step = step_time(workload, cluster, parallel, efficiencies)
    fits = memory.peak <= cluster.accelerator.memory_bytes
    return Candidate(parallel, memory, step, fits, needs(workload.config, parallel))


def _rank(candidate: Candidate) -> tuple[float, int, int, int]:
    """Fastest first (to four digits), then what asks least of the engine, the larger micro-batch, the smaller group."""
    speed = float(f"{candidate.step.tokens_per_second_per_gpu:.4g}")
    return (-speed, len(candidate.needs), -candidate.parallel.micro_batch, candidate.parallel.expert)


# ------------------------------------------------------------------ sizes


def _divisors(number: int, most: int) -> list[int]:
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return [size for size in sorted({*small, *(number // size for size in small)}) if size <= most]


def _experts(config: Architecture, gpus: int) -> list[int]:
    if isinstance(config, DenseModel):
        return [1]
    return [size for size in _divisors(config.n_routed_experts, gpus) if gpus % size == 0]


@cache
def _chunks(layers: int, pipeline: int, most: int) -> tuple[int, ...]:
    """Pieces for each stage: 1, and of the others up to `most` those of which no larger number divides the layers as
    evenly, since more pieces leave a smaller bubble and keep less."""
    fullest = {chunks: Parallel(1, 1, pipeline, chunks=chunks).fullest(layers) for chunks in range(2, most + 1)}
    worth = [
        chunks for chunks, held in fullest.items() if all(held < fullest[more] for more in fullest if more > chunks)
    ]
    return (1, *worth)


def _contexts(workload: Workload, data: int, tensor: int, today: bool) -> list[int]:
    """1 if there are sequences for all; powers of two where sequences are long or few."""
    most = 1 if today or workload.sequence_length // tensor <= _LONG else workload.sequence_length // tensor // 4096
    few = not today and workload.sequences < data
    sizes, size = [1], 2
    widest = min(data, max(most, data if few else 1))
    while size <= widest and data % size == 0 and workload.sequence_length // (size * tensor) >= 1024:
        sizes.append(size)
        size *= 2
    return sizes


def _possible(workload: Workload, cluster: Cluster, parallel: Parallel) -> bool:
    try:
        check(workload, cluster, parallel)
    except ValueError:
        return False
    return True


def _explain(workload: Workload, cluster: Cluster) -> None:
    """The reason why the plainest layout cannot be, with its numbers."""
    check(workload, cluster, Parallel(data=cluster.gpus))
    raise ValueError(f"no layout divides {workload.sequences} sequences among {cluster.gpus} GPUs")


def _sizes(gpus_per_node: int) -> Iterator[int]:
    """Parts of a node, then nodes, by doubling."""
    gpus = 1
    while gpus <= _MOST_GPUS:
        yield gpus
        gpus = gpus_per_node if gpus < gpus_per_node < 2 * gpus else 2 * gpus
