"""Peaks and memory of the accelerators we know, each with source and date. Imports no torch.

Called by the resolver (peak for MFU, memory for layouts) and by the planner. Invariant: every peak is DENSE;
a row that carries the sparse figure, about twice as much, is refused when the file is read.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from model.config import Frozen
from orchestrator.errors import UsageError

DATA = Path(__file__).parent / "data" / "hardware.yaml"

_DENSE_BF16 = {"A100": 312e12, "H100": 989.4e12, "H800": 989.4e12, "H200": 989.4e12, "B200": 2250e12}
"""What the vendors print as dense; only there to recognise a sparse figure in the data file."""


@dataclass(frozen=True)
class Accelerator:
    """One kind of device. FLOP/s are dense peaks; `memory_bytes` is the size as sold (decimal GB)."""

    name: str
    bf16_flops: float
    fp8_flops: float | None
    memory_bytes: int
    source: str
    date: datetime.date


class _Row(Frozen, alias_generator=to_camel):
    """One row of the data file."""

    name: str = Field(min_length=1, max_length=40)
    bf16_teraflops: float = Field(gt=0, le=1e6)
    fp8_teraflops: float | None = Field(None, gt=0, le=1e6)
    memory_gigabytes: int = Field(ge=1, le=100_000)
    source: str = Field(min_length=1)
    date: datetime.date


def accelerator(name: str) -> Accelerator:
    """The device of that name; UsageError names the known ones."""
    known = _packaged()
    if name not in known:
        raise UsageError(f"unknown accelerator {name!r}; known: {', '.join(known)}")
    return known[name]


def read_accelerators(path: Path) -> dict[str, Accelerator]:
    """All rows of a data file by name; ValueError names file and row."""
    try:
        rows = TypeAdapter(list[_Row]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    found = {row.name: _accelerator(path, row) for row in rows}
    if len(found) != len(rows):
        raise ValueError(f"{path}: {len(rows)} rows, but only {len(found)} different names; remove the repeated one")
    return found


@cache
def _packaged() -> dict[str, Accelerator]:
    return read_accelerators(DATA)


def _accelerator(path: Path, row: _Row) -> Accelerator:
    bf16 = row.bf16_teraflops * 1e12
    dense = _DENSE_BF16.get(row.name)
    if dense is not None and bf16 > 1.5 * dense:
        raise ValueError(
            f"{path}: {row.name}: bf16Teraflops {row.bf16_teraflops:g} is {bf16 / dense:.1f} times the dense "
            f"peak {dense / 1e12:g}; that looks like the sparse figure, write the dense one"
        )
    if row.fp8_teraflops is not None and row.fp8_teraflops > 3 * row.bf16_teraflops:
        raise ValueError(
            f"{path}: {row.name}: fp8Teraflops {row.fp8_teraflops:g} is more than three times bf16Teraflops "
            f"{row.bf16_teraflops:g}; that looks like the sparse figure, write the dense one"
        )
    return Accelerator(
        name=row.name,
        bf16_flops=bf16,
        fp8_flops=None if row.fp8_teraflops is None else row.fp8_teraflops * 1e12,
        memory_bytes=row.memory_gigabytes * 10**9,
        source=row.source,
        date=row.date,
    )
