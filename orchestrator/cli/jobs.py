"""`fathom list` and `fathom get`: jobs as the service has them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import Output, OutputOption, coloured, dump, facts, show, table, talk
from orchestrator.cli.served import JobArgument, connect, detachable

if TYPE_CHECKING:
    from datetime import datetime

    from orchestrator.client import Client, Job

_WATCH_SECONDS = 2.0


def list_command(
    phase: Annotated[
        list[str] | None, typer.Option(help="Only jobs in this phase, e.g. Running; repeatable.", metavar="PHASE")
    ] = None,
    team: Annotated[str | None, typer.Option(help="Only jobs of this team.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs with this in their name.", metavar="PART")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many, newest first.", metavar="NUMBER")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing them, until Ctrl-C.")] = False,
    output: OutputOption = Output.table,
) -> None:
    """List jobs, newest first.

    Examples: fathom list --phase Running  |  fathom list -o wide  |  fathom list -w
    """
    from orchestrator.errors import UsageError

    phases = phases_of(phase or [])
    if watch and (output not in (Output.table, Output.wide) or not sys.stdout.isatty()):
        raise UsageError("-w shows a table on a terminal: leave it out, or ask again as often as you like")

    def found(client: Client) -> list[Job]:
        return list(client.list(team=team, phases=phases, name=name, limit=limit))

    with connect() as client:
        if watch:
            limit = limit or max(1, shutil.get_terminal_size().lines - 2)  # what is below would not be seen
            _watch(client, found, output)
            return
        jobs = found(client)
    if not jobs and output in (Output.table, Output.wide):
        asked = phase or team or name
        talk("no such jobs" if asked else "no jobs yet: submit one with `fathom apply JOB.yaml`")
        return
    if output in (Output.name, Output.json, Output.yaml):
        from orchestrator.cli.job_rows import key_of

        documents = [job.document() for job in jobs]
        show(documents, output, columns=(), row=lambda _: {}, name=key_of)
        return
    print(jobs_table(jobs, output, colour=coloured(sys.stdout)), end="")


def get_command(job: JobArgument, output: OutputOption = Output.table) -> None:
    """Show one job: where it stands and why, its money, its attempts.

    Examples: fathom get mini  |  fathom get vision/mini -o yaml
    """
    with connect() as client:
        print_job(client.get(job), output)


def print_job(job: Job, output: Output) -> None:
    """One job on stdout."""
    from orchestrator.cli.job_rows import facts_of

    if output is Output.name:
        print(job.key)
    elif output in (Output.json, Output.yaml):
        dump(job.document(), output)
    elif output is Output.wide:
        print(jobs_table([job], output, colour=coloured(sys.stdout)), end="")
    else:
        print(facts(facts_of(job, _now())), end="")


def jobs_table(jobs: Sequence[Job], output: Output, *, colour: bool) -> str:
    """A line for each; where they are of several teams, names say of which."""
    from orchestrator.cli.job_rows import COLUMNS, row

    wide = output is Output.wide
    several = len({job.team for job in jobs}) > 1 and not wide
    shown = [column for column in COLUMNS if wide or not column.wide]
    return table(shown, [row(job, _now(), with_team=several) for job in jobs], colour=colour)


def phases_of(names: Sequence[str]) -> list[str]:
    """Phases as they are written, whatever the case; UsageError names them all."""
    from orchestrator.errors import UsageError
    from orchestrator.status import Phase

    known = {phase.value.lower(): phase.value for phase in Phase}
    for name in names:
        if name.lower() not in known:
            raise UsageError(f"there is no phase {name!r}: one of {', '.join(known.values())}")
    return [known[name.lower()] for name in names]


def _watch(client: Client, found: Callable[[Client], list[Job]], output: Output) -> None:
    import time

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with detachable("the jobs go on"), Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            shown = jobs_table(found(client), output, colour=coloured(sys.stdout))
            live.update(Text.from_ansi(shown, no_wrap=True), refresh=True)
            time.sleep(_WATCH_SECONDS)


def _now() -> datetime:
    from datetime import UTC, datetime

    return datetime.now(UTC)
