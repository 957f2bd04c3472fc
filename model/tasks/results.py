"""Scores to metrics, as lm-eval counts them, and a table of what was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.tasks.example import Example
from model.tasks.score import Score
from model.tasks.task import Task

RESAMPLES = 1000
CONTEXT_CHARACTERS = 200


def task_metrics(task: Task, scores: Sequence[Sequence[Score]]) -> dict[str, float]:
    """`eval/<task>/<metric>`, its standard error where there are two examples, and the number of examples.

    Accuracy of a multiple choice: the likeliest choice is right; acc_norm: per character of the choice. Of a
    completion: every token is the likeliest. Perplexity is per example: exp(-mean log-probability).
    """
    result: dict[str, float] = {}
    pairs = list(zip(task.examples, scores, strict=True))
    for metric in task.metrics:
        name = f"eval/{task.name}/{metric}"
        if metric == "perplexity":
            logs = np.array([own[0].logprob for _, own in pairs])
            result[name] = _perplexity(logs)
            error = _bootstrap(logs)
        else:
            right = np.array([_right(example, own, metric == "acc_norm") for example, own in pairs], dtype=np.float64)
            result[name] = float(right.mean())
            error = float(right.std(ddof=1)) / math.sqrt(len(right)) if len(right) > 1 else None
        if error is not None:
            result[f"{name}_stderr"] = error
    return result | {f"eval/{task.name}/examples": float(len(pairs))}


def choice_made(example: Example, scores: Sequence[Score], *, normalised: bool) -> int:
    """Number of the likeliest choice, the first of equals."""
    logs = np.array([score.logprob for score in scores])
    return int(np.argmax(logs / np.array([len(choice) for choice in example.choices]) if normalised else logs))


def task_table(task: Task, scores: Sequence[Sequence[Score]]) -> list[dict[str, Any]]:
    """A row per example, for people who want to see where a number comes from. Values are those of JSON."""
    rows: list[dict[str, Any]] = []
    for example, own in zip(task.examples, scores, strict=True):
        logprobs = [score.logprob if math.isfinite(score.logprob) else None for score in own]
        row: dict[str, Any] = {"example": example.where, "logprobs": logprobs}
        if example.gold is None:
            row |= {"target": example.continuations[0], "greedy": own[0].greedy}
        else:
            row |= {
                "choices": list(example.choices),
                "gold": example.gold,
                "chosen": choice_made(example, own, normalised=False),
                "chosen_normalised": choice_made(example, own, normalised=True),
            }
        rows.append(row | {"context": _clipped(example.contexts[0])})
    return rows


def _right(example: Example, scores: Sequence[Score], normalised: bool) -> bool:
    if example.gold is None:
        return scores[0].greedy
    return choice_made(example, scores, normalised=normalised) == example.gold


def _perplexity(logs: NDArray[np.float64]) -> float:
    """Infinity where that is beyond floating point."""
    with np.errstate(over="ignore"):
        return float(np.exp(-logs.mean()))


def _bootstrap(logs: NDArray[np.float64]) -> float | None:
    """Standard error of the perplexity over resampled sets of examples; the same in every call."""
    if len(logs) < 2:
        return None
    random = np.random.default_rng(0)
    drawn = np.array([_perplexity(logs[random.integers(0, len(logs), len(logs))]) for _ in range(RESAMPLES)])
    with np.errstate(all="ignore"):
        return float(drawn.std(ddof=1))


def _clipped(text: str) -> str:
    """The end of it, which matters most for what follows."""
    return text if len(text) <= CONTEXT_CHARACTERS else "..." + text[-CONTEXT_CHARACTERS:]
