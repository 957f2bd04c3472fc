"""`fathom apply`: plan, price, confirm, submit; or change the job that is there already."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import Output, OutputOption, coloured, dump, talk
from orchestrator.cli.served import confirmed, connect

if TYPE_CHECKING:
    from orchestrator.client import Client, Job, PlannedJob
    from orchestrator.client.differences import Preview
    from orchestrator.spec import TrainingJob


@dataclass(frozen=True)
class _Work:
    """What is to be done, in the order of the files."""

    previews: Sequence[Preview]
    offers: dict[str, PlannedJob] = field(default_factory=dict)
    """Of the jobs that are new, by team/name."""

    @property
    def changes(self) -> list[Preview]:
        """Jobs that are there, and differ."""
        return [one for one in self.previews if one.live is not None and one.changes]

    @property
    def nothing(self) -> bool:
        return not self.offers and not self.changes


def apply_command(
    files: Annotated[
        list[Path], typer.Argument(metavar="JOB.yaml...", help="TrainingJobs: files of one or more documents each.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be made or changed, and what it would cost.")
    ] = False,
    max_cost: Annotated[
        str | None,
        typer.Option(help="Refuse what may cost more: by the high end of the forecast.", metavar="AMOUNT"),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a field, e.g. training.tokens=2M; repeatable.", metavar="FIELD=VALUE"),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show progress until the end; exits 1 if the job failed, 5 over budget.")
    ] = False,
    output: OutputOption = Output.table,
) -> None:
    """Submit jobs to the service, or change those that are there: shows the price first, and asks.

    Examples: fathom apply job.yaml  |  fathom apply job.yaml -y --max-cost 20 --follow
    |  fathom apply a.yaml b.yaml --dry-run
    """
    from orchestrator.cli.offers import parse_amount, require_within
    from orchestrator.errors import UsageError

    maximum = None if max_cost is None else parse_amount(max_cost)
    jobs = _loaded(files, assignments or [])
    if follow and (len(jobs) != 1 or dry_run):
        raise UsageError(f"--follow is for one job that is submitted: {len(jobs)} are given")
    with connect() as client:
        work = _work(client, jobs)
        _say(work)
        if maximum is not None:
            require_within(maximum, list(work.offers.values()), work.changes)
        if dry_run:
            _print(_dry(client, work), work, output, tense="would be ")
            return
        if not work.nothing:
            confirmed(_question(work), yes, "this would submit or change jobs")
        done = _done(client, work)
        _print(done, work, output)
        if follow:
            from orchestrator.cli.following import follow_job

            follow_job(client, done[0])
        elif work.offers:
            key = next(iter(work.offers))
            talk(f"follow it with `fathom logs {key} -f`, see all with `fathom list`")


def _loaded(files: Sequence[Path], assignments: Sequence[str]) -> list[TrainingJob]:
    """All jobs of all files; what is wrong with any of them is said before anything is sent."""
    from orchestrator.errors import InvalidJob, Problem
    from orchestrator.jobfile import load_jobs

    jobs: list[TrainingJob] = []
    problems: list[Problem] = []
    for path in files:
        try:
            jobs += load_jobs(path, assignments)
        except InvalidJob as error:
            where = f"{path}: " if len(files) > 1 else ""
            problems += [
                Problem(one.path if one.path.startswith(str(path)) else f"{where}{one.path}", one.message)
                for one in error.problems
            ]
    if problems:
        raise InvalidJob(problems)
    return jobs


def _work(client: Client, jobs: Sequence[TrainingJob]) -> _Work:
    from orchestrator.errors import UsageError

    previews = [client.preview(job) for job in jobs]
    keys = [_key(one) for one in previews]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UsageError(f"{twice} is given twice: give each job a name of its own in metadata.name")
    return _Work(previews, {_key(one): client.plan(one.wanted) for one in previews if one.live is None})


def _say(work: _Work) -> None:
    """To the person, before anything happens."""
    from orchestrator.cli.offers import price_table

    if work.offers:
        print(price_table(list(work.offers.values()), colour=coloured(sys.stderr)), end="", file=sys.stderr)
    for one in work.changes:
        talk(f"{_key(one)} ({_phase(one)}) changes:")
        for change in one.changes:
            talk(f"  {change}")


def _question(work: _Work) -> str:
    parts = []
    if work.offers:
        parts.append(f"submit {', '.join(work.offers)}")
    if work.changes:
        parts.append(f"change {', '.join(_key(one) for one in work.changes)}")
    return " and ".join(parts) + "?"


def _dry(client: Client, work: _Work) -> list[Job]:
    """What the service says it would make; jobs that are there as they are."""
    return [client.apply(work.offers.get(_key(one), one.wanted), dry_run=True) for one in work.previews]


def _done(client: Client, work: _Work) -> list[Job]:
    done: list[Job] = []
    for one in work.previews:
        try:
            done.append(client.apply(work.offers.get(_key(one), one.wanted)))
        except Exception:
            if done:
                talk(f"done before this: {', '.join(job.key for job in done)}")
            raise
    return done


def _print(jobs: Sequence[Job], work: _Work, output: Output, *, tense: str = "") -> None:
    if output in (Output.json, Output.yaml):
        documents = [job.document() for job in jobs]
        dump(documents[0] if len(documents) == 1 else documents, output)
        return
    for job, seen in zip(jobs, work.previews, strict=True):
        if output is Output.name:
            print(job.key)
        elif seen.live is None:
            print(f"{job.key}  {tense}submitted")
        elif seen.changes:
            print(f"{job.key}  {tense}changed: {', '.join(str(change) for change in seen.changes)}")
        else:
            print(f"{job.key}  unchanged, {job.phase}{_what_now(job)}")


def _what_now(job: Job) -> str:
    """What the user may have wanted instead."""
    again = {"Failed": "resume", "Suspended": "resume", "Succeeded": "delete", "Cancelled": "delete"}
    verb = again.get(job.phase.value)
    words = {"resume": "to go on", "delete": "to run it anew, first"}
    return f"; {words[verb]}: fathom {verb} {job.key}" if verb else ""


def _key(preview: Preview) -> str:
    return f"{preview.wanted.metadata.namespace}/{preview.wanted.metadata.name}"


def _phase(preview: Preview) -> str:
    return preview.live.phase.value if preview.live else "new"
