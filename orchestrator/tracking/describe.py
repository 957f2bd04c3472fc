"""The tags of a run and the words at the top of its page. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from orchestrator.cost.meter import money
from orchestrator.launch.events import Started
from orchestrator.tracking import names
from orchestrator.tracking.desired import Attempt, Desired

Best = tuple[float, int] | None
_SIZES = {
    "model.parameters_total": "parameters",
    "model.parameters_active": "parameters active for a token",
}


def run_tags(wanted: Desired, attempt: Attempt | None, newest: Mapping[str, float], best: Best) -> dict[str, str]:
    """All tags of the parent (attempt None) or of a child, but those by which it is found."""
    of = attempt or wanted.attempts[-1]
    outcome = wanted.outcome if attempt is None else attempt.outcome
    found = {
        **names.user_tags(wanted.tags),
        names.TAG_JOB: f"{wanted.namespace}/{wanted.name}",
        names.TAG_CONFIG: _config(of.params),
        "mlflow.source.name": "fathom train",
        "mlflow.source.type": "JOB",
        "mlflow.note.content": _note(wanted, newest, best) if attempt is None else _attempt_note(wanted, attempt),
    }
    # empty rather than absent: what is said while a job goes on must take back what was said before
    found[names.TAG_OUTCOME] = outcome or "running"
    found[names.TAG_FAILURE] = (of.failure or "") if outcome == "failed" else ""
    if attempt is None:
        found[names.TAG_ATTEMPTS] = str(len(wanted.attempts))
        found[names.TAG_BUDGET] = wanted.budget
    found[names.TAG_ARITHMETIC] = _arithmetic(wanted, attempt)
    found[names.TAG_RESUMED] = str(_resumed(wanted, attempt)).lower()
    return {key: names.clipped(value, names.MAX_TAG_VALUE) for key, value in found.items()}


def _resumed(wanted: Desired, attempt: Attempt | None) -> bool:
    """Whether it went on from a checkpoint."""
    starts = (event for event in wanted.events if isinstance(event, Started) and event.resumed_from)
    return any(attempt is None or event.attempt == attempt.number for event in starts)


def _arithmetic(wanted: Desired, attempt: Attempt | None) -> str:
    """What the newest workers multiply with; empty before there are any."""
    starts = [event for event in wanted.events if isinstance(event, Started)]
    said = [event.arithmetic for event in starts if attempt is None or event.attempt == attempt.number]
    return said[-1] if said else ""


def _config(params: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(params.items())).encode()).hexdigest()[:12]


def _attempt_note(wanted: Desired, attempt: Attempt) -> str:
    lines = [f"attempt {attempt.number} of **{wanted.name}** in namespace `{wanted.namespace}`"]
    if attempt.failure:
        lines += ["", attempt.failure]
    return "\n".join(lines)


def _note(wanted: Desired, newest: Mapping[str, float], best: Best) -> str:
    """Markdown; the numbers come when the job is over."""
    lines = [f"**{wanted.name}** in namespace `{wanted.namespace}`, uid `{wanted.uid}`", ""]
    lines += [f"- {data.context} data: `{data.name}` from `{data.source}`" for data in wanted.datasets]
    params = wanted.attempts[-1].params
    lines += [f"- {int(params[name]):,} {what}" for name, what in _SIZES.items() if params.get(name, "").isdecimal()]
    if wanted.ledger is not None:
        lines += _results(newest, best) + _costs(wanted)
    return "\n".join(lines)


def _results(newest: Mapping[str, float], best: Best) -> list[str]:
    lines = []
    if (loss := newest.get("train/loss")) is not None:
        lines.append(f"- loss {loss:.4f} nats per token at the last step")
    if (bits := newest.get("eval/bits_per_byte")) is not None:
        lines.append(f"- {bits:.4f} bits per byte on held-out text")
    if best is not None:
        lines.append(f"- best: {best[0]:.4f} bits per byte, at step {best[1]}")
    return lines


def _costs(wanted: Desired) -> list[str]:
    assert wanted.ledger is not None
    rate, totals = wanted.ledger.rate, wanted.ledger.totals
    lines = [
        f"- {totals.tokens:,} tokens",
        f"- spent: {money(totals.cost, rate.currency)} for {totals.hours:.3f} {rate.unit}s",
        f"- of that wasted: {money(totals.wasted, rate.currency)}",
    ]
    if totals.cost_per_billion_tokens is not None:
        lines.append(f"- per billion tokens: {money(totals.cost_per_billion_tokens, rate.currency)}")
    return [*lines, f"- price: {rate.per_hour} {rate.currency} per hour; {rate.source} ({rate.date})"]
