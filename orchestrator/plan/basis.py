"""What a plan rests on besides the request: prices, devices, efficiencies, failures, power. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.plan.cpu import CpuRates, cpu_rates
from orchestrator.plan.efficiency import Efficiencies, efficiencies, own_rows
from orchestrator.plan.failures import Failures, find_failures
from orchestrator.plan.goodput import Recovery, goodput
from orchestrator.plan.hardware import Accelerator, accelerators
from orchestrator.plan.prices import PriceBook
from orchestrator.settings import Settings

FAILURES = "llama-3"
"""The failure model that is taken unless another is asked for: the largest run with a published table of causes."""
FITTED_GPUS, FITTED_PER_NODE = 2048, 8
"""The run that the packaged efficiencies are fitted to: DeepSeek-V3, arXiv 2412.19437."""


@dataclass(frozen=True)
class Power:
    """Electricity: shares of the printed power of a device, and of what the building adds."""

    share: float = 0.9
    """Olmo 3 measured 624 to 649 W per H100 of 700 W: 0.89 to 0.93."""
    least_share: float = 0.89
    most_share: float = 1.0
    pue: float = 1.2
    """Power usage effectiveness: the building's electricity over the machines'."""
    least_pue: float = 1.1
    most_pue: float = 1.3


@dataclass(frozen=True)
class Basis:
    """Everything that can be replaced by figures of one's own."""

    prices: PriceBook
    devices: Mapping[str, Accelerator]
    efficiencies: Efficiencies
    failures: Failures
    recovery: Recovery = field(default_factory=Recovery)
    power: Power = field(default_factory=Power)
    cpu: CpuRates | None = None
    """Of processor cores; None: nobody has calibrated them."""
    fitted_to_whole_runs: bool = True
    """Whether the efficiencies come from published GPU-hours, which hold whatever that run lost to failures; False:
    from times of steps."""

    @classmethod
    def load(cls, settings: Settings, failures: str = FAILURES) -> Basis:
        """The packaged figures, with the user's own files in front of them."""
        own = settings.efficiencies_file
        return cls(
            prices=PriceBook.load(settings.price_file),
            devices=accelerators(settings.hardware_file),
            efficiencies=efficiencies(own),
            cpu=cpu_rates(own),
            fitted_to_whole_runs=own is None or not _replaces_matrix(own),
            failures=find_failures(failures),
        )

    @property
    def lost_already(self) -> float:
        """The goodput that the efficiencies hold already, by the same failure model; 1: none."""
        if not self.fitted_to_whole_runs:
            return 1.0
        return goodput(FITTED_GPUS, FITTED_PER_NODE, self.failures, self.recovery).fraction


def _replaces_matrix(path: Path) -> bool:
    """Whether the user's own file replaces how fast matrix products are, which ships as fitted to whole runs."""
    return any(row.name.startswith("matrix_") for row in own_rows(path))
