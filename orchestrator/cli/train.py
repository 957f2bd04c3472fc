"""`fathom train`: run a job on this machine and follow it."""

from __future__ import annotations

import json
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import Interrupted, InvalidJob, OverBudget, Problem, RunFailed, UsageError

if TYPE_CHECKING:
    from orchestrator.controller.record import Record
    from orchestrator.controller.run import LocalRun, Result
    from orchestrator.plan.forecast import Plan


class Format(StrEnum):
    """How the result is printed."""

    table = "table"
    json = "json"


def train_command(
    job: Annotated[Path | None, typer.Argument(help="A TrainingJob as YAML or JSON.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a field, e.g. training.tokens=2M; repeatable. With --resume: only what may change then.",
            metavar="FIELD=VALUE",
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with an earlier run: its folder, e.g. runs/mini-20260101-120000.")
    ] = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print the result.")] = Format.table,
) -> None:
    """Train a model on this machine; Ctrl-C writes a checkpoint and stops.

    Examples: fathom train job.yaml --set training.tokens=2M
    |  fathom train --resume runs/mini-20260101-120000 --set budget.limit=2.00
    """
    if (job is None) == (resume is None):
        raise UsageError("give either a job file or --resume RUN_FOLDER")
    record = _record(job, assignments or [], resume)
    _require_training_packages()
    from orchestrator.cli.live import Display, say
    from orchestrator.controller.run import LocalRun
    from orchestrator.settings import Settings

    run = LocalRun(record, Settings.load(), say)
    say(_before(run.plan))
    with _stop_on_signals(run), Display(record) as display:
        result = run.run(display.show)
    _print(run.record, result, output)
    _exit(run.record, result)


def _record(job: Path | None, assignments: list[str], resume: Path | None) -> Record:
    """The job as a run of its own; everything that can be wrong with it is found here, in seconds."""
    from orchestrator.controller.admission import check
    from orchestrator.controller.record import Record
    from orchestrator.jobfile import load_job
    from orchestrator.settings import Settings

    if resume is not None:
        record = Record.open(resume)
        return _changed(record, assignments) if assignments else record
    assert job is not None
    loaded, settings = load_job(job, assignments), Settings.load()
    if loaded.spec.suspend:
        raise InvalidJob([Problem("spec.suspend", "is true, so the job must wait: run it with --set suspend=false")])
    check(loaded, settings)
    return Record.create(settings.home, loaded)


def _changed(record: Record, assignments: list[str]) -> Record:
    _require_training_packages()
    from orchestrator.controller.change import change
    from orchestrator.settings import Settings

    return change(record, assignments, Settings.load())


def _require_training_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "deepspeed", "ray", "mlflow", "tokenizers") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"training needs {', '.join(missing)}: install with `pip install 'fathom-train[train]'` (or `make venv`)"
        )


class _stop_on_signals:
    """While training: the first Ctrl-C or TERM orders a checkpoint and the end, the second ends at once."""

    def __init__(self, run: LocalRun) -> None:
        self._run = run
        self._before: dict[int, object] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, lambda *_: self._run.order_stop("interrupted"))

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _before(plan: Plan | None) -> str:
    """What to expect, in one line."""
    from orchestrator.cli.planned import big_money, time

    if plan is None or plan.cost is None or plan.hours is None:
        return "no forecast for this machine yet: `fathom calibrate` makes one from finished runs"
    cost, hours = plan.cost, plan.hours
    money = (big_money(amount, cost.currency) for amount in (cost.expected, cost.low, cost.high))
    times = (time(value) for value in (hours.expected, hours.low, hours.high))
    steps_only = "" if plan.goodput is not None else "; steps only, without start, evaluations and checkpoints"
    return "forecast {} ({} to {}), {} ({} to {}){}".format(*money, *times, steps_only)


def _print(record: Record, result: Result, output: Format) -> None:
    from orchestrator.cli.summary import summary, summary_table

    content = summary(record, result)
    if output is Format.json:
        print(json.dumps(content, indent=1))
        return
    from rich.console import Console

    Console(file=sys.stdout).print(summary_table(content))


def _exit(record: Record, result: Result) -> None:
    """Raise what a run that did not succeed ends the command with."""
    if result.decision == "succeed":
        return
    again = f"go on with `fathom train --resume {record.folder.root}`"
    if result.decision == "fail":
        attempt = result.ended.attempt
        raise RunFailed(
            f"attempt {attempt} failed ({result.ended.failure_class}): {result.ended.message}\n"
            f"log: {record.folder.log(attempt)}; {again}"
        )
    budget = record.job.spec.budget
    if result.ended.failure_class == "over-budget" and budget is not None:
        raise OverBudget(
            f"stopped at {_progress(result)}: the budget of {budget.limit} {budget.currency} does not allow more; "
            f"to train on: `fathom train --resume {record.folder.root} --set budget.limit=AMOUNT`"
        )
    raise Interrupted(f"stopped at {_progress(result)}; {again}")


def _progress(result: Result) -> str:
    done, saved = result.observation.step, result.observation.checkpoint_step
    if done > saved:
        return f"step {done}, of which {saved} are saved"
    return f"step {saved}, all saved"
