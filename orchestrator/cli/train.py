"""`fathom train`: run a job on this machine and follow it."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import (
    Conflict,
    FathomError,
    Interrupted,
    InvalidJob,
    OverBudget,
    Problem,
    RunFailed,
    UsageError,
)
from orchestrator.status import Phase, Reason

if TYPE_CHECKING:
    from orchestrator.controller.follower import Follower
    from orchestrator.controller.record import Record
    from orchestrator.controller.result import Result
    from orchestrator.plan.forecast import Plan
    from orchestrator.settings import Settings
    from orchestrator.store.base import StoredJob
    from orchestrator.store.sqlite import SqliteStore


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
        str | None,
        typer.Option(help="Go on with an earlier run: its folder, e.g. runs/mini-20260101-120000, or its job's name."),
    ] = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print the result.")] = Format.table,
) -> None:
    """Train a model on this machine; Ctrl-C writes a checkpoint and stops.

    Examples: fathom train job.yaml --set training.tokens=2M
    |  fathom train --resume runs/mini-20260101-120000 --set budget.limit=2.00
    """
    if (job is None) == (resume is None):
        raise UsageError("give either a job file or --resume RUN_FOLDER")
    from orchestrator.controller.result import result_of
    from orchestrator.controller.submitting import serves
    from orchestrator.settings import Settings
    from orchestrator.store.database import NAME
    from orchestrator.store.sqlite import SqliteStore

    settings = Settings.load()
    if serves(settings.home):
        raise Conflict(_instead(settings.home, job, assignments or [], resume))
    store = SqliteStore(settings.home / NAME)
    if resume is not None:
        stored = _resumed(store, resume, assignments or [], settings)
    else:
        assert job is not None
        stored = _submitted(store, job, assignments or [], settings)
    follower = _follow(store, stored, settings)
    result = result_of(follower)
    if result is None:
        raise _refused(follower)
    _print(follower.record, result, output)
    _exit(follower, result)


def _submitted(store: SqliteStore, job: Path, assignments: list[str], settings: Settings) -> StoredJob:
    """A new job; everything that can be wrong with it is found here, in seconds."""
    from orchestrator.cli.live import say
    from orchestrator.controller.admission import check
    from orchestrator.controller.submitting import submit
    from orchestrator.jobfile import load_job

    loaded = load_job(job, assignments)
    if loaded.spec.suspend:
        raise InvalidJob([Problem("spec.suspend", "is true, so the job must wait: run it with --set suspend=false")])
    check(loaded, settings)
    _require_training_packages()
    return submit(store, loaded, say)


def _resumed(store: SqliteStore, run: str, assignments: list[str], settings: Settings) -> StoredJob:
    """An earlier job, with what shall change."""
    from orchestrator.cli.live import say
    from orchestrator.controller.submitting import find, take_up

    record = find(store, settings, run)
    _require_training_packages()
    from orchestrator.controller.change import change
    from orchestrator.launch.local import hold_lock

    with hold_lock(record.folder.launcher_lock):  # Conflict, before anything is changed
        pass
    if assignments:
        record = change(record, assignments, settings)
    status = record.status()
    if status is not None and status.phase is Phase.SUCCEEDED:
        say("the run has succeeded already; its record is brought up to date")
    return take_up(store, record, settings, say)


def _follow(store: SqliteStore, stored: StoredJob, settings: Settings) -> Follower:
    """Until it rests."""
    from orchestrator.cli.live import Display, say
    from orchestrator.controller.record import Record
    from orchestrator.controller.service import POLL_SECONDS, Controller
    from orchestrator.launch.local import LocalLauncher

    controller = Controller(store, LocalLauncher(settings, say=say), settings, say, only=stored.uid)
    record = Record.take(settings.home / stored.folder, stored.uid, stored.wish.job)
    forecast, follower = False, None
    try:
        with _Signals() as signals, Display(record) as display:
            while True:
                controller.turn()
                follower = controller.followed(stored.uid)
                if follower is None:  # what is wrong was told; it is tried again
                    time.sleep(POLL_SECONDS)
                    continue
                if follower.resolved is not None and not forecast:
                    forecast = True
                    say(_before(follower.plan))
                if (snapshot := follower.snapshot()) is not None:
                    display.show(snapshot)
                if _rests(follower):
                    break
                _stop_if_wished(signals, store, stored, follower)
                time.sleep(POLL_SECONDS)
            controller.finish(stored.uid, say, lambda: signals.count > 1)
    except BaseException:
        if follower is not None:
            say(f"follow the run again with `fathom train --resume {record.folder.root}`")
        raise
    finally:
        controller.close()
    return follower


def _rests(follower: Follower) -> bool:
    from orchestrator.controller.standing import RESTS

    return not follower.alive and follower.standing.phase in RESTS


def _stop_if_wished(signals: _Signals, store: SqliteStore, stored: StoredJob, follower: Follower) -> None:
    """By a person; or because nobody would go on with it later, where there is no service."""
    from orchestrator.controller.submitting import suspend

    follower.hurry = follower.hurry or signals.count > 1
    if signals.count and not signals.told:
        signals.told = True
        suspend(store, stored)
    elif follower.standing.phase is Phase.QUEUED and follower.standing.reason is Reason.WAITING_FOR_TEAM_BUDGET:
        suspend(store, stored)
        raise OverBudget(follower.standing.message)


def _instead(home: Path, job: Path | None, assignments: list[str], resume: str | None) -> str:
    sets = "".join(f" --set {shlex.quote(one)}" for one in assignments)
    if job is not None:
        return f"a service looks after {home}: submit the job there, `fathom apply {shlex.quote(str(job))}{sets}`"
    return f"a service looks after {home}: go on there: `fathom resume NAME` (`fathom list` shows names)"


def _refused(follower: Follower) -> FathomError:
    """Why a job rests that was never started."""
    standing, again = follower.standing, f"`fathom train --resume {follower.folder.root}`"
    if standing.reason is Reason.LIMIT_REACHED:
        return OverBudget(standing.message)
    if standing.phase is Phase.FAILED:
        return RunFailed(standing.message)
    return Interrupted(f"stopped before the first attempt; go on with {again}")


def _require_training_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "deepspeed", "ray", "mlflow", "tokenizers") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"training needs {', '.join(missing)}: install with `pip install 'fathom-train[train]'` (or `make venv`)"
        )


class _Signals:
    """While training: the first Ctrl-C or TERM asks for a checkpoint and the end, the second ends at once."""

    def __init__(self) -> None:
        self.count = 0
        self.told = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._heard)
        return self

    def _heard(self, *_: object) -> None:
        self.count += 1

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


def _exit(follower: Follower, result: Result) -> None:
    """Raise what a run that did not succeed ends the command with."""
    record = follower.record
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
    if follower.standing.reason is Reason.LIMIT_REACHED and budget is not None:
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
