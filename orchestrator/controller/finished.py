"""Finished runs of this machine as calibration sees them, from their folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.errors import FathomError, UsageError
from orchestrator.launch.events import Started
from orchestrator.launch.resolve import read_resolved
from orchestrator.plan.calibrate import forecast_of
from orchestrator.plan.cpu import cpu_rates
from orchestrator.plan.efficiency import efficiencies
from orchestrator.plan.hardware import accelerators
from orchestrator.plan.observed import Observed, metric_of, step_seconds
from orchestrator.settings import Settings
from orchestrator.tracking.table import surviving


def observed(root: Path) -> Observed:
    """The newest attempt of a run, whose layout may differ from those before; UsageError or NotFound for what cannot be
    read or was too short."""
    record = Record.open(root)
    attempt = record.folder.last_attempt()
    if not attempt:
        raise UsageError(f"{root} was never started: there is nothing to calibrate from")
    recipe = read_resolved(record.folder.resolved(attempt)).recipe
    try:
        events = [event for event in History(record).events if event.attempt == attempt]
    except OSError as error:
        raise UsageError(f"{record.folder.events} cannot be read: {error.strerror}") from None
    compute, batches = record.job.spec.compute, recipe.batches
    metric = metric_of(compute.accelerator)
    steps = {
        one.step: one.metrics[metric]
        for one in surviving(events)
        if metric in one.metrics and batches.at(one.step - 1) == recipe.batch_sequences
    }
    starts = [event.step for event in events if isinstance(event, Started)]
    return Observed(
        name=record.folder.root.name,
        device=compute.accelerator,
        model=recipe.model,
        sequence_length=recipe.sequence_length,
        precision=recipe.precision,
        layout=recipe.layout,
        gpus_per_node=compute.gpus_per_node or 8,
        seconds=step_seconds(str(root), metric, steps, starts),
    )


@dataclass(frozen=True)
class Compared:
    """Forecast and actual of a run, in tokens per second of the clock; on CPUs per CPU second."""

    forecast: float
    actual: float
    per: str


def compared(root: Path, settings: Settings) -> Compared | None:
    """None where the run was too short, or where nothing is known of its device; never an error, since it stands at the
    end of a run that has gone well."""
    try:
        seen, own = observed(root), settings.efficiencies_file
        forecast = forecast_of(seen, efficiencies(own), accelerators(settings.hardware_file), cpu_rates(own))
    except FathomError:
        return None
    if forecast is None:
        return None
    per = "CPU second" if seen.device == "cpu" else "second"
    return Compared(seen.batch_tokens / forecast, seen.batch_tokens / seen.measured, per)
