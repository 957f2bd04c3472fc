"""Finished runs of this machine as calibration sees them, from their folders."""

from __future__ import annotations

from pathlib import Path

from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.errors import UsageError
from orchestrator.launch.events import Started
from orchestrator.launch.resolve import read_resolved
from orchestrator.plan.observed import Observed, metric_of, step_seconds
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
