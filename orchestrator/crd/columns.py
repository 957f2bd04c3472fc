"""What `kubectl get trainingjobs` shows, and what more with `-o wide`."""

from __future__ import annotations

from typing import Any

# What is left of a run is an integer of seconds in the status, and kubectl shows integers as they are.
_COLUMNS = (
    ("Phase", "string", ".status.phase", "Where the job stands, in one word.", 0),
    ("Step", "integer", ".status.progress.step", "Optimizer steps that are done.", 0),
    ("Loss", "string", ".status.progress.loss", "Training loss of the last step, in nats per token.", 0),
    ("Spent", "string", ".status.cost.spent", "Paid so far, all attempts together.", 0),
    ("Limit", "string", ".spec.budget.limit", "Amount at which the job stops.", 0),
    ("ETA(s)", "integer", ".status.progress.etaSeconds", "Seconds to the end at this pace.", 0),
    ("Age", "date", ".metadata.creationTimestamp", "Since when the job is there.", 0),
    ("Device", "string", ".spec.compute.accelerator", "Kind of device.", 1),
    ("GPUs", "integer", ".spec.compute.gpus", "GPUs of the whole job.", 1),
    ("Steps", "integer", ".status.progress.steps", "Optimizer steps of the whole run.", 1),
    ("Attempts", "integer", ".status.attemptCount", "All attempts ever made.", 1),
    ("Accepted", "string", '.status.conditions[?(@.type=="Accepted")].reason', "Whether the job can run.", 1),
    ("Admitted", "string", '.status.conditions[?(@.type=="Admitted")].reason', "What the queue says.", 1),
    ("Running", "string", '.status.conditions[?(@.type=="Running")].reason', "What the run is doing.", 1),
    ("MLflow", "string", ".status.mlflow.runId", "Run in MLflow.", 1),
)


def printer_columns() -> list[dict[str, Any]]:
    """additionalPrinterColumns; priority 1 is `-o wide`. The team is the namespace, which kubectl shows itself."""
    return [
        {"name": name, "type": kind, "jsonPath": path, "description": text, **({"priority": wide} if wide else {})}
        for name, kind, path, text, wide in _COLUMNS
    ]
