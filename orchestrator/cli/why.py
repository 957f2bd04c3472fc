"""`fathom why NAME`: why a job is where it is, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.completing import job_names
from orchestrator.cli.output import Output, OutputOption, dump

if TYPE_CHECKING:
    from orchestrator.why import Why


def why_command(
    job: Annotated[
        str,
        typer.Argument(help="NAME or TEAM/NAME of a job, or the folder of a run.", autocompletion=job_names),
    ],
    output: OutputOption = Output.table,
) -> None:
    """Say why a job waits, runs slowly, has stopped or has failed, in one sentence, and what to do.

    Examples: fathom why v3-mini  |  fathom why runs/v3-mini-20260101-120000 -o json
    """
    found = _explained(job)
    if output in (Output.json, Output.yaml):
        dump(asdict(found) | {"details": list(found.details)}, output)
        return
    if output is Output.name:
        print(job)
        return
    print(found.sentence)
    print(f"what to do: {found.advice}")
    for line in found.details:
        print(f"  {line}")


def _explained(given: str) -> Why:
    """By the service; where none runs here, by what it has left; else by what lies in the run's folder."""
    import os
    from pathlib import Path

    from orchestrator.errors import NotFound, Unavailable

    if Path(given).is_dir():
        return _of_run(given)
    try:
        return _of_job(given)
    except Unavailable:
        if os.environ.get("FATHOM_URL"):
            raise  # what lies here is of another service
        return _of_store(given) or _of_run(given)
    except NotFound as unknown:
        try:
            return _of_run(given)
        except NotFound:
            raise unknown from None


def _of_store(given: str) -> Why | None:
    """As the service knew it when it ended; None where there was none, or it did not know the job."""
    from dataclasses import replace
    from datetime import UTC, datetime

    from orchestrator.errors import NotFound
    from orchestrator.reasons import Ways
    from orchestrator.settings import Settings
    from orchestrator.store.database import NAME
    from orchestrator.store.sqlite import SqliteStore
    from orchestrator.why import why

    home = Settings.load().home
    if not (home / NAME).exists():
        return None
    team, _, name = given.rpartition("/")
    store = SqliteStore(home / NAME)
    try:
        found = store.get(team or "default", name)
    except NotFound:
        return None
    finally:
        store.database.close()
    said = why(found.wish.job, found.status, datetime.now(UTC), ways=Ways.by_name(given))
    if found.status.phase.terminal:
        return said
    gone = f"no service runs in {home}, so nothing becomes of it: start `fathom serve`"
    return replace(said, details=(gone, *said.details))


def _of_job(given: str) -> Why:
    from datetime import UTC, datetime

    from orchestrator.client import Client
    from orchestrator.reasons import Ways
    from orchestrator.why import why

    with Client() as client:
        found = client.get(given)
    return why(found.wish(), found.status, datetime.now(UTC), ways=Ways.by_name(given))


def _of_run(given: str) -> Why:
    """Of a run on this machine."""
    from datetime import UTC, datetime

    from orchestrator.cli.runs import find_run
    from orchestrator.reasons import Ways
    from orchestrator.settings import Settings
    from orchestrator.status import JobStatus
    from orchestrator.why import why

    record = find_run(given, Settings.load().home)
    folder = record.folder
    ways = Ways.by_folder(record.job.metadata.name, str(folder.root), max(1, folder.last_attempt()))
    return why(record.job, record.status() or JobStatus(), datetime.now(UTC), ways=ways)
