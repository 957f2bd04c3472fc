"""Runs to compare: facts made up for what is pure, and a run's folder as the launcher leaves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrator.compare.facts import Point, RunFacts
from orchestrator.controller.record import Record
from orchestrator.cost.ledger import Held, build_ledger
from orchestrator.launch.events import Event, EventLog
from orchestrator.status import Phase
from support.runs import RATE, event, resolved, tiny_job

BITS = "eval/bits_per_byte"
T = 1.79e9


def point(step: int, *, dollars: float | None = None, **metrics: float) -> Point:
    """100 tokens, 1 TFLOP, half an hour and a dollar a step; `bits` and `loss` are short for metrics."""
    names = {"bits": BITS, "loss": "train/loss"}
    found = {names.get(name, name): value for name, value in metrics.items()}
    return Point(step, 100 * step, 1e12 * step, step / 2, float(step) if dollars is None else dollars, found)


def facts(name: str, bits: Mapping[int, float], **changes: Any) -> RunFacts:  # noqa: ANN401 - fields of RunFacts
    """A run that has ended, with these bits per byte by step."""
    points = tuple(point(step, bits=value) for step, value in bits.items())
    last = max(bits, default=0)
    story = [event("started", 0, step=0, tokens=0, world_size=2)]
    story += [event("progress", n, step=n, tokens=100 * n) for n in range(1, last + 1)]
    ledger = build_ledger(story, [Held(1, 0, max(last, 1))], RATE, flops_per_token=1e10)
    values: dict[str, Any] = {
        "name": name,
        "team": "default",
        "uid": f"{name}-uid",
        "phase": Phase.SUCCEEDED,
        "configuration": {"model.layers": "4"},
        "points": points,
        "totals": ledger.totals,
        "unit": "cpu-hour",
        "limit": Decimal(100),
    }
    return RunFacts(**values | changes)


def folder(home: Path, name: str, losses: Sequence[float], *, slower: float = 1.0, **recipe: Any) -> Path:  # noqa: ANN401
    """A finished run of one attempt: a dollar a second, a step in `slower` seconds, every second step evaluated."""
    record = Record.create(home, tiny_job(name=name))
    first = resolved()
    changes = {"recipe": first.recipe.model_copy(update=recipe)}
    job = first.job.model_copy(update={"name": name, "uid": record.uid})
    record.folder.resolved(1).write_text(resolved(job=job, **changes).model_dump_json())
    end = T + 2 + slower * len(losses)
    record.save_held([Held(1, T, end + 1)])
    story: list[Event] = [event("started", T + 2, step=0, tokens=0, world_size=2, arithmetic="fp32")]
    for step, loss in enumerate(losses, start=1):
        metrics = {"train/loss": loss, "train/tokens_per_second": 100 / slower}
        metrics |= {BITS: loss / 2} if step % 2 == 0 else {}
        story.append(event("progress", T + 2 + slower * step, step=step, tokens=100 * step, metrics=metrics))
    story.append(event("ended", end, outcome="succeeded", seq=10**6))
    write(record, *story)
    return record.folder.root


def write(record: Record, *events: Event) -> None:
    """As its driver would."""
    log = EventLog(record.folder.events)
    for one in events:
        log.append(**one.model_dump(exclude={"seq", "version"}))
