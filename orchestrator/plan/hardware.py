"""What the accelerators we know can do, each with source and date. Imports no torch.

Called by the resolver (peak for MFU, memory for layouts) and by the planner. Invariant: every peak is DENSE;
a row that carries the sparse figure, twice as much, is refused when the file is read.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import Field
from pydantic.alias_generators import to_camel

from model.config import Frozen
from orchestrator.errors import UsageError
from orchestrator.plan.files import read_rows

DATA = Path(__file__).parent / "data" / "hardware.yaml"

_DENSE_BF16 = {
    "A100": 312e12, "H100": 989.4e12, "H800": 989.4e12, "H200": 989.4e12, "B200": 2250e12, "GB200": 2500e12,
}  # fmt: skip
"""What the vendors print as dense; only there to recognise a sparse figure under a name that we know."""
_MOST_FP8 = 2.2
"""FP8 over BF16: 2 wherever both figures are dense; 4 where only the FP8 figure is sparse."""
_MOST_INTENSITY = 600.0
"""BF16 FLOP per byte of memory bandwidth: 156 (A100) to 312 (GB200) here, 560 for the highest dense figure found
(TPU v6e: 918 TFLOP/s, 1.64 TB/s). A sparse figure of an H100 PCIe has 756."""


@dataclass(frozen=True)
class Accelerator:
    """One kind of device. FLOP/s are dense peaks; `memory_bytes` is the size as sold (decimal GB)."""

    name: str
    bf16_flops: float
    fp8_flops: float | None
    memory_bytes: int
    memory_bytes_per_second: float
    """Peak bandwidth of its own memory."""
    nvlink_bytes_per_second: float
    """To other devices of its node, one direction, what is usable of it."""
    network_bytes_per_second: float
    """To other nodes, one direction: this device's share of the node's network cards, as printed on them."""
    tdp_watts: float
    source: str
    date: datetime.date


class HardwareRow(Frozen, alias_generator=to_camel):
    """One row of the data file."""

    name: str = Field(min_length=1, max_length=40)
    bf16_teraflops: float = Field(gt=0, le=1e6)
    fp8_teraflops: float | None = Field(None, gt=0, le=1e6)
    memory_gigabytes: int = Field(ge=1, le=100_000)
    memory_terabytes_per_second: float = Field(gt=0, le=1000)
    nvlink_gigabytes_per_second: float = Field(gt=0, le=100_000)
    network_gigabytes_per_second: float = Field(gt=0, le=100_000)
    tdp_watts: float = Field(gt=0, le=100_000)
    source: str = Field(min_length=1)
    date: datetime.date

    def accelerator(self) -> Accelerator:
        """In units without prefixes."""
        return Accelerator(
            name=self.name,
            bf16_flops=self.bf16_teraflops * 1e12,
            fp8_flops=None if self.fp8_teraflops is None else self.fp8_teraflops * 1e12,
            memory_bytes=self.memory_gigabytes * 10**9,
            memory_bytes_per_second=self.memory_terabytes_per_second * 1e12,
            nvlink_bytes_per_second=self.nvlink_gigabytes_per_second * 1e9,
            network_bytes_per_second=self.network_gigabytes_per_second * 1e9,
            tdp_watts=self.tdp_watts,
            source=self.source,
            date=self.date,
        )


def accelerators(path: Path | None = None) -> dict[str, Accelerator]:
    """By name; rows of the user's own file `path` (FATHOM_HARDWARE) replace the packaged ones of the same name."""
    return _packaged() if path is None else _packaged() | read_accelerators(path)


def accelerator(name: str, path: Path | None = None) -> Accelerator:
    """The device of that name; UsageError names the known ones."""
    known = accelerators(path)
    if name not in known:
        raise UsageError(
            f"unknown accelerator {name!r}; known: {', '.join(known)}; add a row to the file that FATHOM_HARDWARE names"
        )
    return known[name]


def read_accelerators(path: Path) -> dict[str, Accelerator]:
    """All rows of a data file by name; UsageError names file and row."""
    found: dict[str, Accelerator] = {}
    for number, row in enumerate(read_rows(path, "hardware file", "check FATHOM_HARDWARE", HardwareRow), start=1):
        where = f"hardware file {path}: row {number}: {row.name}"
        if row.name in found:
            raise UsageError(f"{where}: a second row of this name; keep one")
        packaged = {} if path == DATA else _packaged()
        if wrong := _misnamed(row.name, packaged):
            raise UsageError(f"{where}: {wrong}")
        complaint = _sparse(row.accelerator(), packaged)
        if complaint:
            raise UsageError(f"{where}: {complaint}; that looks like the sparse figure, write the dense one")
        found[row.name] = row.accelerator()
    return found


def _misnamed(name: str, packaged: Mapping[str, Accelerator]) -> str | None:
    """What is wrong with a name under which the row would never be found."""
    if name.strip().lower() == "cpu":
        return "is none of the accelerators; `fathom calibrate` measures processor cores, for FATHOM_EFFICIENCIES"
    same = next((known for known in packaged if known.lower() == name.strip().lower() and known != name), None)
    return f"would not replace {same}: write {same}, or choose a name that differs from it in more" if same else None


@cache
def _packaged() -> dict[str, Accelerator]:
    return read_accelerators(DATA)


def _sparse(device: Accelerator, known: Mapping[str, Accelerator]) -> str | None:
    """Why a peak must be the sparse one, if it must. Names that we do not know are held against the devices that have
    the same memory (size and bandwidth), and against what no dense figure reaches."""
    bf16, fp8 = device.bf16_flops, device.fp8_flops
    dense = _DENSE_BF16.get(device.name)
    if dense is not None and bf16 > 1.5 * dense:
        return f"bf16Teraflops {bf16 / 1e12:g} is {bf16 / dense:.1f} times the dense peak {dense / 1e12:g}"
    if fp8 is not None and fp8 > _MOST_FP8 * bf16:
        return f"fp8Teraflops {fp8 / 1e12:g} is {fp8 / bf16:.1f} times bf16Teraflops {bf16 / 1e12:g} (dense: 2 times)"
    for twin in known.values():
        if _same_memory(device, twin) and 1.8 < bf16 / twin.bf16_flops < 2.2:
            return (
                f"bf16Teraflops {bf16 / 1e12:g} is {bf16 / twin.bf16_flops:.1f} times the dense peak "
                f"{twin.bf16_flops / 1e12:g} of {twin.name}, which has the same memory"
            )
    intensity = bf16 / device.memory_bytes_per_second
    if intensity > _MOST_INTENSITY:
        return (
            f"bf16Teraflops {bf16 / 1e12:g} at {device.memory_bytes_per_second / 1e12:g} TB/s is {intensity:.0f} "
            f"FLOP per byte, more than any dense figure known to us ({_MOST_INTENSITY:g} at most)"
        )
    return None


def _same_memory(one: Accelerator, other: Accelerator) -> bool:
    close = abs(one.memory_bytes_per_second / other.memory_bytes_per_second - 1) < 0.05
    return close and abs(one.memory_bytes / other.memory_bytes - 1) < 0.05
