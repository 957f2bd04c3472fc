"""`fathom evaluate`: held-out text and tasks, on a run's final weights or on one of its checkpoints."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.evaluated import newest_attempt
from orchestrator.cli.output import Output, OutputOption, for_programs
from orchestrator.cli.talking import explained, remark, stoppable, talking
from orchestrator.errors import RunFailed

if TYPE_CHECKING:
    from orchestrator.controller.record import Record
    from orchestrator.launch.resolve import Resolved


@dataclass(frozen=True)
class Evaluation:
    """What was found."""

    source: str
    """The weights that were evaluated."""
    step: int
    tokens: int
    metrics: dict[str, float]
    examples: dict[str, list[dict[str, Any]]]
    """By task: what was chosen, and how likely it was."""

    def content(self) -> dict[str, Any]:
        """For JSON, which has no infinities: null stands for what is not a finite number."""
        finite = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        return asdict(self) | {"metrics": finite}


def evaluate_command(
    run: Annotated[Path, typer.Argument(help="A run's folder, e.g. runs/mini-20260101-120000.")],
    step: Annotated[int | None, typer.Option(min=0, help="Take this checkpoint, not the final weights.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A .jsonl or an lm-eval .yaml; repeatable. Left out: the run's own tasks.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, max=65536, help="Sequences at a time. Left out: as in training.")
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """Measure a trained model: bits per byte on held-out text, and accuracy on tasks.

    Takes the final weights, or without them the newest checkpoint that verifies. The result becomes part of the run.

    Example: fathom evaluate runs/mini-20260101-120000 --task arc_easy.jsonl
    """
    from orchestrator.controller.record import Record

    record = Record.open(run)
    resolved = newest_attempt(record)
    with stoppable("stopped, nothing was evaluated"), talking(), explained("cannot read what is to be evaluated"):
        found = _evaluate(record, resolved, step, task, batch)
    path = _keep(record, resolved, found)
    _tell_mlflow(record)
    content = {name: value for name, value in found.content().items() if name != "examples"}
    if not for_programs(content | {"artifact": str(path)}, output, [record.folder.root.name]):
        _print_table(found)
    remark(f"{found.source}; what was chosen for each example: {path}")


def _evaluate(
    record: Record, resolved: Resolved, step: int | None, tasks: Sequence[str] | None, batch: int | None
) -> Evaluation:
    from model.tasks.evaluation import prepare_tasks, score_tasks, tables
    from model.tasks.results import task_metrics
    from model.tasks.task import load_tasks
    from orchestrator.cli.evaluated import opened

    recipe = resolved.recipe
    uris = list(tasks) if tasks else list(recipe.eval_tasks)
    loaded = load_tasks(uris)  # first: mistakes in them should not cost the loading of a model
    rows = batch or recipe.layout.micro_batch
    with opened(record, resolved, step, remark) as model:
        prepared = prepare_tasks(loaded, model.tokenizer, recipe.sequence_length)
        metrics = model.heldout(rows)
        scores = score_tasks(model.engine, prepared, recipe.sequence_length, rows, model.tokenizer.end_of_text)
    for one, own in zip(prepared, scores, strict=True):
        metrics |= task_metrics(one.task, own)
    return Evaluation(model.source, model.step, model.tokens, metrics, tables(prepared, scores))


def _keep(record: Record, resolved: Resolved, found: Evaluation) -> Path:
    """Into the run's folder: the table of examples, then the event by which everybody else knows."""
    from orchestrator.launch.events import shared_log
    from orchestrator.launch.files import replace_file

    path = record.folder.artifacts / f"evaluation-step-{found.step}.json"
    try:
        replace_file(path, json.dumps(found.content(), indent=1, allow_nan=False))
        shared_log(record.folder.events).append(
            "evaluated",
            job=record.uid,
            attempt=resolved.attempt,
            incarnation=resolved.incarnation,
            step=found.step,
            tokens=found.tokens,
            metrics=found.metrics,
        )
    except OSError as error:
        raise RunFailed(f"the result cannot be written to {record.folder.root}: {error.strerror or error}") from error
    return path


def _tell_mlflow(record: Record) -> None:
    """Unless another process follows the run: it will."""
    from importlib.util import find_spec

    if find_spec("mlflow") is None:
        return
    from orchestrator.controller.sync import is_followed, sync_run
    from orchestrator.settings import Settings

    if is_followed(record.folder):
        return
    with talking():
        why = sync_run(record, Settings.load(), remark)
    if why is not None:
        remark(f"MLflow is behind ({why}): `fathom sync {record.folder.root}` sends what is missing")


def _print_table(found: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("METRIC", "VALUE", "STDERR"):
        table.add_column(heading, justify="left" if heading == "METRIC" else "right", no_wrap=True)
    for name, value in found.metrics.items():
        if not name.endswith("_stderr"):
            error = found.metrics.get(f"{name}_stderr")
            table.add_row(name.removeprefix("eval/"), f"{value:.6g}", "" if error is None else f"{error:.3g}")
    Console(file=sys.stdout).print(table)
