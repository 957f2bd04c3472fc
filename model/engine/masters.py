"""The FP32 weights in a DeepSpeed checkpoint of any topology, read by one process, tensor by tensor.

`torch.load` onto the meta device gives the structure of a file and where in it each tensor's bytes lie, without reading
them; every tensor is then put together from the pieces that the processes kept. Needs no process group, and no more
memory than the largest tensor. Read with DeepSpeed 0.19.8: stage 0 keeps whole tensors and a file per expert; stages 1
and 2 keep flat FP32 groups with the place of each parameter's fragment; stage 3 divides each parameter evenly.
The processes of an expert group follow each other, so process `r` is member `r % expert_parallel` of its group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import Topology
from model.config import ModelConfig
from model.names import DiskEntry, is_buffer, memory_shapes, memory_to_autoep

_EXPERTS = ".mlp.experts."


@dataclass(frozen=True)
class Run:
    """Neighbouring elements of one type in a file."""

    file: Path
    dtype: torch.dtype
    start: int
    """Byte in the file."""
    count: int

    def part(self, first: int, count: int) -> Run:
        """Some of its elements."""
        return Run(self.file, self.dtype, self.start + first * self.dtype.itemsize, count)


class Masters:
    """One checkpoint. Its files must have been verified: their structure is unpickled."""

    def __init__(self, folder: Path, saved: Topology, config: ModelConfig) -> None:
        """ValueError if what is there is not what `saved` and `config` say."""
        self._runs: Mapping[str, list[Run]] = _collect(folder, saved)
        missing = [name for name, numel in _expected(config).items() if _total(self._runs.get(name, [])) != numel]
        if missing:
            found = _total(self._runs.get(missing[0], []))
            raise ValueError(
                f"the checkpoint in {folder} lacks {len(missing)} tensors of the run's model, or holds them in other "
                f"sizes, e.g. {missing[0]}: {found} of {_expected(config)[missing[0]]} elements"
            )

    def read(self, entry: DiskEntry) -> Tensor:
        """The tensor of an entry of the released layout."""
        names = memory_to_autoep(entry.memory_name)
        name = names[-1] if entry.part == "up" else names[0]
        count = math.prod(entry.shape)
        first = 0 if entry.expert is None else entry.expert * count
        pieces = [_read(run) for run in _cut(self._runs[name], first, count)]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).view(entry.shape)


def _expected(config: ModelConfig) -> dict[str, int]:
    """Elements of every tensor, under AutoEP's names."""
    sizes: dict[str, int] = {}
    for name, shape in memory_shapes(config).items():
        names = memory_to_autoep(name)
        sizes |= dict.fromkeys(names, math.prod(shape) // len(names))
    return sizes


def _total(runs: list[Run]) -> int:
    return sum(run.count for run in runs)


def _cut(runs: list[Run], first: int, count: int) -> Iterator[Run]:
    """The runs of elements [first, first + count)."""
    for run in runs:
        if first < run.count and count:
            taken = min(count, run.count - first)
            yield run.part(first, taken)
            count -= taken
            first = 0
        else:
            first -= run.count


def _read(run: Run) -> Tensor:
    raw = bytearray(run.count * run.dtype.itemsize)
    with run.file.open("rb", buffering=0) as file:
        file.seek(run.start)
        view, filled = memoryview(raw), 0
        while filled < len(raw):
            got = file.readinto(view[filled:])
            if not got:
                raise ValueError(f"{run.file} ends before byte {run.start + len(raw)}")
            filled += got
    return torch.frombuffer(raw, dtype=run.dtype) if raw else torch.empty(0, dtype=run.dtype)


# Where everything lies


def _collect(folder: Path, saved: Topology) -> dict[str, list[Run]]:
    """By AutoEP's name, the runs that make up the whole tensor, experts in their order."""
    if saved.zero_stage == 0:
        return _whole(folder) | _single_experts(folder)
    order = _order(saved)
    runs = {name: value for name, value in _whole(folder).items() if is_buffer(name)}
    ranks = [_fragments(folder, rank, saved) for rank in range(saved.world_size)]
    for name in dict.fromkeys(name for rank in ranks for name in rank):
        runs[name] = [ranks[r][name] for r in order[_EXPERTS in name] if name in ranks[r]]
    return runs


def _order(saved: Topology) -> dict[bool, list[int]]:
    """The processes in the order of what they keep of a parameter; of experts (True) first by member of the group."""
    world, size = range(saved.world_size), saved.expert_parallel
    return {False: list(world), True: sorted(world, key=lambda rank: (rank % size, rank // size))}


def _fragments(folder: Path, rank: int, saved: Topology) -> dict[str, Run]:
    """What one process keeps of each parameter in FP32."""
    file = _one(folder, f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    state = _structure(file)["optimizer_state_dict"]
    return _evenly(folder, file, state, rank, saved) if saved.zero_stage == 3 else _flat(file, state)


def _flat(file: Path, state: Mapping[str, Any]) -> dict[str, Run]:
    """Stages 1 and 2."""
    runs: dict[str, Run] = {}
    for flat, places in zip(state["single_partition_of_fp32_groups"], state["param_slice_mappings"], strict=True):
        group = _run(file, flat)
        runs |= {name: group.part(place.start, place.numel) for name, place in places.items()}
    return runs


def _evenly(folder: Path, file: Path, state: Mapping[str, Any], rank: int, saved: Topology) -> dict[str, Run]:
    """Stage 3: of each parameter the same share, filled up at the end of the last process."""
    shapes = _structure(_one(folder, f"*zero_pp_rank_{rank}_mp_rank_00_model_states.pt"))["param_shapes"]
    flats = iter([_run(file, flat) for flat in state["fp32_flat_groups"]])
    runs: dict[str, Run] = {}
    flat: Run | None = None
    left = 0  # of the group; large ones come in several parts, each of whole parameters
    for name, shape in (item for group in shapes for item in group.items()):
        sharers, place = saved.world_size, rank
        if _EXPERTS in name:
            sharers, place = sharers // saved.expert_parallel, rank // saved.expert_parallel
        numel = math.prod(shape)
        share = -(-numel // sharers)
        if not left and (flat := next(flats, None)) is not None:
            left = flat.count
        if share > left or flat is None:
            raise ValueError(
                f"{file}: {share} elements of {name} do not fit into the {left} that are left of its group"
            )
        runs[name] = flat.part(flat.count - left, max(0, min(share, numel - place * share)))
        left -= share
    return runs


def _whole(folder: Path) -> dict[str, list[Run]]:
    """Tensors that the first process keeps whole: all but experts in stage 0, buffers always."""
    try:
        file = _one(folder, "mp_rank_00_model_states.pt")
    except ValueError:
        file = _one(folder, "*zero_pp_rank_0_mp_rank_00_model_states.pt")
    module = _structure(file)["module"]
    return {name: [_run(file, tensor)] for name, tensor in module.items() if isinstance(tensor, Tensor)}


def _single_experts(folder: Path) -> dict[str, list[Run]]:
    """Stage 0: a file for every expert, whose number stands behind the names."""
    found: dict[str, dict[int, Run]] = {}
    for file in folder.glob("layer_*_expert_*_mp_rank_00_model_states.pt"):
        for full, tensor in _structure(file).items():
            name, expert = full.rsplit(".", 1)
            found.setdefault(name, {})[int(expert)] = _run(file, tensor)
    return {name: [runs[expert] for expert in sorted(runs)] for name, runs in found.items()}


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(f"{folder} has {len(found)} files {pattern}, one is needed")
    return found[0]


def _structure(file: Path) -> Mapping[str, Any]:
    """What is in a file, its tensors without data."""
    content = torch.load(file, map_location="meta", weights_only=False)
    assert isinstance(content, Mapping), file
    return content


def _run(file: Path, tensor: Tensor) -> Run:
    """Where a tensor of `_structure` lies: torch notes the place of each storage."""
    if not tensor.is_contiguous():
        raise ValueError(f"{file} holds a tensor that is not contiguous")
    offset = int(getattr(tensor.untyped_storage(), "_checkpoint_offset"))  # noqa: B009 - not among torch's types
    return Run(file, tensor.dtype, offset + int(tensor.storage_offset()) * tensor.dtype.itemsize, tensor.numel())
