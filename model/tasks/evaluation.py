"""Tasks on an engine: what the training loop calls at its evaluations and `fathom evaluate` once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.tasks.requests import Request, task_requests
from model.tasks.results import task_metrics, task_table
from model.tasks.score import Score, Scorer, score
from model.tasks.task import Task
from model.tokenizer import Tokenizer


@dataclass(frozen=True)
class PreparedTask:
    """A task in tokens; does not change from one evaluation to the next."""

    task: Task
    requests: list[list[Request]]
    """By example."""


def prepare_tasks(tasks: Sequence[Task], tokenizer: Tokenizer, sequence_length: int) -> list[PreparedTask]:
    """Once, before training: ValueError for what does not fit."""
    return [PreparedTask(task, task_requests(task, tokenizer, sequence_length)) for task in tasks]


def score_tasks(
    engine: Scorer, prepared: Sequence[PreparedTask], sequence_length: int, batch: int, pad: int
) -> list[list[list[Score]]]:
    """By task and example. Collective; all tasks share their passes."""
    flat = [request for one in prepared for requests in one.requests for request in requests]
    scores = iter(score(engine, flat, sequence_length, batch, pad))
    return [[[next(scores) for _ in requests] for requests in one.requests] for one in prepared]


def evaluate_prepared(
    engine: Scorer, prepared: Sequence[PreparedTask], sequence_length: int, batch: int, pad: int
) -> dict[str, float]:
    """All metrics by their names, on every rank. Collective."""
    metrics: dict[str, float] = {}
    for one, scores in zip(prepared, score_tasks(engine, prepared, sequence_length, batch, pad), strict=True):
        metrics |= task_metrics(one.task, scores)
    return metrics


def evaluate_tasks(
    engine: Scorer, tasks: Sequence[Task], tokenizer: Tokenizer, sequence_length: int, batch: int
) -> dict[str, float]:
    """As `prepare_tasks` and `evaluate_prepared`. Collective."""
    prepared = prepare_tasks(tasks, tokenizer, sequence_length)
    return evaluate_prepared(engine, prepared, sequence_length, batch, tokenizer.end_of_text)


def tables(prepared: Sequence[PreparedTask], scores: Sequence[list[list[Score]]]) -> dict[str, list[dict[str, Any]]]:
    """By task, a row per example; see `results.task_table`."""
    return {one.task.name: task_table(one.task, own) for one, own in zip(prepared, scores, strict=True)}
