"""Names of the metrics and tags that we write to MLflow, and the checks that MLflow's own limits ask for.

Used by `tracking.mlflow` and by whoever compares runs. Imports no mlflow. Invariant: the names of the
training metrics come from the events (`model.metrics`); here are only those that the orchestrator adds.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

from orchestrator.cost.ledger import Ledger
from orchestrator.cost.meter import Spent

PROGRESS_TOKENS = "progress/tokens"
PROGRESS_HOURS = "progress/hours"
"""Hours in which the job held its devices, whatever their number."""
COST_HOURS = "cost/hours"
"""GPU-hours (or CPU-hours): what is paid for."""
CHECKPOINT_SECONDS = "checkpoint/seconds"
CHECKPOINT_BYTES = "checkpoint/size_bytes"

BY = {"train/loss": "loss_by", "eval/bits_per_byte": "bits_per_byte_by"}
"""Metrics that are also shown against what they cost, with that as MLflow's step: `loss_by/tokens`."""
SYSTEM = "system/"
"""MLflow shows what begins so on a page of its own."""
BEST_BITS = "best/bits_per_byte"
BEST_STEP = "best/step"

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's pages those of model training rather than of language-model applications."""

ACCELERATOR = "compute.accelerator"
"""Parameter of an attempt: as in the job, whose layout and device alone do not say which GPU it was."""

TAG_JOB = "fathom.job"
TAG_UID = "fathom.uid"
TAG_ROLE = "fathom.role"
"""`job` on the parent run, `attempt` on its children."""
TAG_ATTEMPT = "fathom.attempt"
TAG_OUTCOME = "fathom.outcome"
TAG_FAILURE = "fathom.failure"
TAG_ATTEMPTS = "fathom.attempts"
TAG_RESUMED = "fathom.resumed"
TAG_ARITHMETIC = "fathom.arithmetic"
TAG_BUDGET = "fathom.budget"
"""Limit in force, with its currency; empty where there is none."""
TAG_CONFIG = "fathom.config"
"""Digest of the parameters: runs that share it differ in nothing but their fate."""
RESERVED = ("mlflow.", "fathom.")
"""Users' tags may not begin with these."""

MAX_METRICS = 1000
MAX_PARAMS = 100
MAX_KEY = 250
MAX_PARAM_VALUE = 6000
MAX_TAG_VALUE = 8000
MAX_DIGEST = 36
MAX_BODY = 900_000
"""Bytes of a request; MLflow refuses a batch of more than a million."""

_ALLOWED = re.compile(r"[\w.\- :/]+")


def cost_name(currency: str) -> str:
    """Money spent so far, e.g. `cost/usd`."""
    return f"cost/{currency.lower()}"


def cost_metrics(tokens: int, spent: Spent) -> dict[str, float]:
    """What every step carries besides its training metrics; floats, because MLflow knows nothing else."""
    name = cost_name(spent.currency)
    found = {
        name: float(spent.amount),
        COST_HOURS: float(spent.unit_hours),
        PROGRESS_HOURS: float(spent.seconds / 3600),
    }
    if tokens > 0:
        found[f"{name}_per_billion_tokens"] = float(spent.amount * 10**9 / tokens)
    return found


def axes(tokens: int, spent: Spent, flops_per_token: float | None) -> dict[str, int]:
    """What was used up so far, in whole numbers, because MLflow's steps are."""
    found = {"tokens": tokens, f"micro_{spent.currency.lower()}": int(spent.amount * 1_000_000)}
    if flops_per_token is not None:
        found["gflop"] = int(tokens * flops_per_token / 1e9)
    return found


def ledger_metrics(ledger: Ledger) -> dict[str, float]:
    """Totals of the whole job, by class of time."""
    currency, totals = ledger.rate.currency.lower(), ledger.totals
    found = {
        f"ledger/{currency}": float(totals.cost),
        f"ledger/{currency}_wasted": float(totals.wasted),
        "ledger/hours": float(totals.hours),
    }
    for name, seconds in totals.seconds_by_class.items():
        found[f"ledger/seconds_{name}"] = float(seconds)
    return found


def is_metric_name(name: str) -> bool:
    """Whether MLflow takes it; a single bad name makes it refuse the whole batch."""
    plain = posixpath.normpath(name) == name and not name.startswith(("/", ".."))
    return plain and name != "." and len(name) <= MAX_KEY and _ALLOWED.fullmatch(name) is not None


def clipped(value: str, limit: int) -> str:
    """The value, cut to what MLflow takes, with a mark where it was cut."""
    return value if len(value) <= limit else value[: limit - 1] + "…"


def user_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The user's tags without those that would pretend to be ours or MLflow's."""
    return {key: value for key, value in tags.items() if not key.startswith(RESERVED) and is_metric_name(key)}
