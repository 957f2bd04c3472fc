"""Which layout a run gets, and what would make it fit where none does. Imports no torch.

Called by `orchestrator.plan.estimate` and, for jobs that are to run, by `orchestrator.launch.layout`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from orchestrator.errors import UsageError
from orchestrator.plan import defaults, search
from orchestrator.plan.efficiency import Efficiencies
from orchestrator.plan.footprint import footprint
from orchestrator.plan.hardware import Accelerator
from orchestrator.plan.request import Engine, Request, Wish
from orchestrator.plan.search import Candidate
from orchestrator.plan.step_time import step_time
from orchestrator.plan.workload import RECOMPUTE, Cluster, Parallel, check


def layouts(request: Request, efficiencies: Efficiencies, *, today: bool = False) -> list[Candidate]:
    """All that agree with what the request says of the layout, best first, then those that do not fit; `today`: only
    what the engine runs now. UsageError if no layout can divide this work at all."""
    wish, why = request.wish, why_not_today(request)
    try:
        if why is not None and (today or request.engine == "today"):
            raise ValueError(why)
        if wish.micro_batch is None and wish.recompute is None and wish.zero_stage != 0:
            found = [] if today else search.search(request.workload, request.cluster, efficiencies)
            if why is None:  # a search of all leaves slow ones out, among them those that run today
                found += search.search(request.workload, request.cluster, efficiencies, today=True)
            return _sorted(one for one in found if _agrees(wish, one.parallel))
        return _sorted(_asked(request, efficiencies, today))
    except ValueError as error:
        raise UsageError(f"{request.name} on {request.gpus} {request.accelerator}: {error}") from error


def why_not_today(request: Request) -> str | None:
    """Why the engine of today could not divide this work, however much memory there were; None: it can."""
    try:
        check(request.workload, request.cluster, Parallel(request.gpus, micro_batch=request.wish.micro_batch or 1))
    except ValueError as error:
        return str(error)
    return None


def _agrees(wish: Wish, parallel: Parallel) -> bool:
    return wish.expert in (None, parallel.expert) and wish.zero_stage in (None, parallel.zero_stage)


def _asked(request: Request, efficiencies: Efficiencies, today: bool) -> Iterator[Candidate]:
    """Layouts of which the request fixes what the search would have chosen."""
    wish = request.wish
    sizes = (wish.micro_batch,) if wish.micro_batch is not None else (1, 2, 4, 8)
    bases = list(search.layouts(request.workload, request.cluster, today))
    if wish.zero_stage == 0:
        bases = [replace(base, zero_stage=0) for base in bases if base.zero_stage == 1]
    poor = []
    for base in (base for base in bases if _agrees(wish, base)):
        for parallel in (each for size in sizes for each in _variants(request, replace(base, micro_batch=size))):
            if today and search.needs(request.config, parallel):
                continue
            peak = footprint(request.workload, parallel).peak
            if peak <= usable(request.cluster.accelerator):
                yield _candidate(request, efficiencies, parallel)
            else:
                poor.append((peak, parallel))
    for _, parallel in sorted(poor, key=lambda one: one[0])[: search.NEAR]:
        yield _candidate(request, efficiencies, parallel)


def tried(request: Request, efficiencies: Efficiencies, among: Iterable[Parallel]) -> list[Candidate]:
    """Those of these layouts that fit, with every policy of recomputation, best first: quicker than a search."""
    variants = (each for parallel in among for each in _variants(request, parallel))
    room = usable(request.cluster.accelerator)
    return _sorted(
        _candidate(request, efficiencies, each) for each in variants if footprint(request.workload, each).peak <= room
    )


def _sorted(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Each once; those that fit first, the fastest of them first."""
    once = {one.parallel: one for one in candidates}
    return sorted(once.values(), key=lambda one: (not one.fits, one.step.seconds))


def _variants(request: Request, base: Parallel) -> Iterator[Parallel]:
    """With every policy of recomputation that the request leaves open, if the work can be divided so."""
    wish = request.wish
    for recompute in RECOMPUTE if wish.recompute is None else (wish.recompute,):
        parallel = replace(base, recompute=recompute)
        try:
            check(request.workload, request.cluster, parallel)
        except ValueError:
            continue
        yield parallel


def _candidate(request: Request, efficiencies: Efficiencies, parallel: Parallel) -> Candidate:
    workload, cluster = request.workload, request.cluster
    memory = footprint(workload, parallel)
    return Candidate(
        parallel,
        memory,
        step_time(workload, cluster, parallel, efficiencies),
        memory.peak <= usable(cluster.accelerator),
        search.needs(workload.config, parallel),
    )


def usable(device: Accelerator) -> int:
    """Bytes of a device that a layout may take; what the allocator wastes is a part of the layout's own."""
    return device.memory_bytes


def runs_today(candidate: Candidate) -> bool:
    """Whether the engine can run it as it is."""
    return not candidate.needs


def chosen(candidates: Sequence[Candidate], engine: Engine) -> Candidate | None:
    """The fastest that fits; with `today` of those that run today, if any of them fits."""
    fitting = [one for one in candidates if one.fits]
    today = next(filter(runs_today, fitting), None) if engine == "today" else None
    return today or next(iter(fitting), None)


def smallest(candidates: Iterable[Candidate]) -> Candidate | None:
    """The one that takes the least memory, whether it fits or not."""
    return min(candidates, key=lambda one: one.memory.peak, default=None)


def does_not_fit(
    request: Request,
    candidates: Sequence[Candidate],
    efficiencies: Efficiencies,
    devices: Mapping[str, Accelerator],
    *,
    today: bool = False,
) -> str:
    """Why nothing can run, with both numbers and the nearest that can."""
    near = _nearest(request, efficiencies, devices, today=today)
    nothing = "use a smaller model: no number of GPUs that its batch allows would do"
    if request.wish != Wish():
        nothing = "leave spec.parallelism out, or use a smaller model: no number of GPUs would do with these sizes"
    instead = f"use {' or '.join(near)}" if near else nothing
    least, what = smallest(candidates), f"{request.name} on {request.gpus} {request.accelerator}"
    if least is None:
        return f"{what}: no layout has all the sizes that were asked for together: {instead}"
    needed, there = least.memory.peak / 1e9, usable(request.cluster.accelerator) / 1e9
    return f"{what}: the layout that takes least needs {needed:.1f} GB per GPU, there are {there:.1f} GB: {instead}"


def _as_wished(wish: Wish, layout: Parallel) -> Parallel | None:
    """The layout with what the request says of it, and else with the least memory; None if they contradict."""
    if wish.expert not in (None, layout.expert) or (wish.zero_stage or layout.zero_stage) != layout.zero_stage:
        return None
    if wish.zero_stage == 0:
        if layout.zero_stage != 1:
            return None
        layout = replace(layout, zero_stage=0)
    return replace(layout, micro_batch=wish.micro_batch or 1, recompute=wish.recompute or "full")


def _batch_of(request: Request, gpus: int) -> int:
    """Tokens of a step on so many GPUs: as asked for, or the fewest that would be assumed."""
    if not any(one.field == "training.globalBatchTokens" for one in request.assumed):
        return request.batch_tokens
    return gpus * request.sequence_length * (request.wish.micro_batch or 1)


def _growing(request: Request) -> Cluster:
    """The cluster as it would be with more GPUs: where nobody said how many a machine has, in the usual machines."""
    usual = any(one.field == "compute.gpusPerNode" for one in request.assumed)
    return replace(request.cluster, gpus_per_node=defaults.GPUS_PER_NODE) if usual else request.cluster


def _nearest(
    request: Request, efficiencies: Efficiencies, devices: Mapping[str, Accelerator], *, today: bool = False
) -> list[str]:
    """What to ask for instead, as phrases: more GPUs of the kind, or the same number of another kind."""
    found: list[str] = []
    today = today or request.engine == "today"
    gpus = search.fewest(request.workload, _growing(request), today, partial(_as_wished, request.wish))
    if gpus is not None and _batch_of(request, gpus) > request.tokens:
        gpus = None
    if gpus is not None and gpus > request.gpus:
        found.append(f"{gpus} {request.accelerator}")
    for name, device in devices.items():
        larger = device.memory_bytes > request.cluster.accelerator.memory_bytes
        possible = request.precision != "fp8" or device.fp8_flops is not None
        if larger and possible and chosen(layouts(replace(request, device=device), efficiencies, today=today), "any"):
            found.append(f"{request.gpus} {name}")
            break
    if request.wish != Wish() and chosen(layouts(replace(request, wish=Wish()), efficiencies, today=today), "any"):
        found.append("another layout: leave spec.parallelism out")
    return found
