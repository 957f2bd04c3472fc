"""The planner's few constants: which share of a printed figure real programs reach, each with its origin. No torch.

Called by `orchestrator.plan.step_time`. Invariant: a share lies in (0, 1]; there is none for single runs, models or
devices. `matrix_fp8`, `matrix_bf16` and `attention` are FITTED (`orchestrator.plan.fit`), a test holds them to the fit;
the others are taken from the literature.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import Field

from model.config import Frozen
from model.recipe import PrecisionName
from orchestrator.errors import UsageError
from orchestrator.plan.files import read_rows
from orchestrator.plan.hardware import Accelerator

DATA = Path(__file__).parent / "data" / "efficiencies.yaml"
CPU = "cpu_"
"""How the rates of `orchestrator.plan.cpu` begin in the user's own file, which holds both."""
_FP32_OF_BF16 = 1 / 16
"""Peak of FP32 products without TF32, which PyTorch leaves off: 19.5 of 312 TFLOP/s (A100), 67 of 989 (H100)."""


@dataclass(frozen=True)
class Efficiencies:
    """Shares of peaks unless it says otherwise."""

    matrix_bf16: float
    """Of the dense BF16 peak, by matrix products in BF16."""
    matrix_fp8: float
    """Of the dense FP8 peak, by matrix products in FP8, quantisation included."""
    attention: float
    """Of the dense BF16 peak, by causal attention, counted as in `model.flops` (half of the scores, backward twice the
    forward pass)."""
    memory: float
    """Of the bandwidth of a device's memory."""
    nvlink: float
    """Of what is usable of NVLink."""
    network: float
    """Of the network cards' printed bandwidth."""
    nvlink_hop_seconds: float
    """Of one step of a ring within a node, whatever is sent."""
    network_hop_seconds: float
    """Of one step of a ring between nodes."""
    communication_cores: float
    """Share of a device's multiprocessors that serve an exchange of experts while it is hidden behind computation."""
    activation_passes: float
    """How often each byte that is kept for the backward pass is read or written by operations that are no products."""
    overhead_seconds: float
    """Of each step, whatever it does."""

    def __post_init__(self) -> None:
        for name in ("matrix_bf16", "matrix_fp8", "attention", "memory", "nvlink", "network"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)!r}")
        if not 0 <= self.communication_cores < 1:
            raise ValueError(f"communication_cores must be from 0 to below 1, got {self.communication_cores!r}")
        for name in ("nvlink_hop_seconds", "network_hop_seconds", "activation_passes", "overhead_seconds"):
            if not 0 <= getattr(self, name) < 1e6:
                raise ValueError(f"{name} must be from 0 to 1000000, got {getattr(self, name)!r}")

    def matrix_rate(self, accelerator: Accelerator, precision: PrecisionName) -> float:
        """FLOP/s of matrix products; ValueError if the device has no such arithmetic."""
        if precision == "fp8":
            if accelerator.fp8_flops is None:
                raise ValueError(f"{accelerator.name} has no 8-bit floating point: use bf16, or H100 and newer")
            return self.matrix_fp8 * accelerator.fp8_flops
        share = _FP32_OF_BF16 if precision == "fp32" else 1.0
        return self.matrix_bf16 * accelerator.bf16_flops * share

    def attention_rate(self, accelerator: Accelerator, precision: PrecisionName) -> float:
        """FLOP/s of attention, which stays in 16 bits under FP8."""
        return self.attention * accelerator.bf16_flops * (_FP32_OF_BF16 if precision == "fp32" else 1.0)


class Row(Frozen):
    """One row of the data file, or of the user's own."""

    name: str = Field(min_length=1, max_length=40)
    value: float
    origin: str = Field(min_length=1)


def efficiencies(path: Path | None = None) -> Efficiencies:
    """The packaged constants; rows of the file `path` (written by calibration) replace those of the same name."""
    values = {row.name: row.value for row in _packaged()}
    own = [] if path is None else [row for row in own_rows(path) if not row.name.startswith(CPU)]
    unknown = [row.name for row in own if row.name not in values]
    if unknown:
        raise UsageError(f"efficiency file {path}: unknown {', '.join(unknown)}; known: {', '.join(values)}")
    try:
        return Efficiencies(**(values | {row.name: row.value for row in own}))
    except ValueError as error:
        raise UsageError(f"efficiency file {path}: {error}") from error


def origins(path: Path | None = None) -> dict[str, str]:
    """Where each constant comes from."""
    rows = [*_packaged(), *(own_rows(path) if path else ())]
    return {row.name: row.origin for row in rows}


@cache
def _packaged() -> tuple[Row, ...]:
    return tuple(own_rows(DATA))


def own_rows(path: Path) -> list[Row]:
    """All rows of a file; UsageError if a name stands there twice."""
    rows = read_rows(path, "efficiency file", "check FATHOM_EFFICIENCIES", Row)
    values: dict[str, float] = {}
    for row in rows:
        if row.name in values:
            raise UsageError(f"efficiency file {path}: {row.name} twice: {values[row.name]} and {row.value}; keep one")
        values[row.name] = row.value
    return rows
