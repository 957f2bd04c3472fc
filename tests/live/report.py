"""What was seen, as a page, and what of it is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from live.cases import Outcome
from live.pods import held_seconds

TOLERANCE_SECONDS = 3.0
"""Kubernetes gives times in whole seconds, and the end of a pod is seen when its deletion arrives."""


def faults(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Of all trainings; nothing if all is as it must be."""
    calm = next(one for one in outcomes if one.name == "calm")
    for one in outcomes:
        if one.phase != "Succeeded":
            yield f"{one.name}: {one.phase}"
        elif one is not calm and one.starts < 2:
            yield f"{one.name}: the workers began {one.starts} time: nothing was disturbed"
        elif one.losses != calm.losses:
            different = [step for step in calm.losses if one.losses.get(step) != calm.losses[step]]
            yield f"{one.name}: {len(different)} of {len(calm.losses)} losses differ, first at step {different[:1]}"
        for number, ours, seen in _held(one):
            if abs(ours - seen) > TOLERANCE_SECONDS:
                yield f"{one.name}: attempt {number} is paid for {ours:.0f} s, its workers held nodes for {seen:.0f} s"


def page(outcomes: Sequence[Outcome], about: str) -> str:
    """In Markdown."""
    lines = ["# Trainings on a live cluster, disturbed", "", about, ""]
    lines += [
        "| case | ends | final loss | attempts | starts | paid s | workers held s | spent | wasted | takes |",
        "|" + "---|" * 10,
    ]
    for one in outcomes:
        last = one.losses[max(one.losses)] if one.losses else float("nan")
        held, cost = list(_held(one)), one.status.get("cost", {})
        cells = (
            one.what,
            one.phase,
            f"{last!r}",
            str(one.status.get("attemptCount", 0)),
            str(one.starts),
            " + ".join(f"{ours:.0f}" for _, ours, _ in held),
            " + ".join(f"{seen:.0f}" for _, _, seen in held),
            f"{cost.get('spent')} {cost.get('currency', '')}",
            str(cost.get("wasted")),
            f"{one.seconds:.0f} s",
        )
        lines.append("| " + " | ".join(cells) + " |")
    for one in outcomes:
        lines += ["", f"## {one.what}", ""]
        lines += [f"- {text}" for text in one.touched]
        lines += ["", "| pod | uid | attempt | kind | on a node | gone |", "|" + "---|" * 6]
        for pod in one.pods:
            times = (_clock(pod.scheduled), _clock(pod.gone))
            lines.append(f"| {pod.name} | {pod.uid} | {pod.attempt} | {pod.kind} | {times[0]} | {times[1]} |")
    return "\n".join(lines) + "\n"


def _held(one: Outcome) -> Iterator[tuple[int, float, float]]:
    """-> attempt, seconds by the ledger, seconds by its pods."""
    for attempt in one.status.get("attempts", []):
        start, end = (datetime.fromisoformat(attempt[key]) for key in ("startedAt", "endedAt"))
        yield attempt["number"], (end - start).total_seconds(), held_seconds(one.pods, attempt["number"])


def _clock(moment: float | None) -> str:
    return "" if moment is None else datetime.fromtimestamp(moment).strftime("%H:%M:%S")
