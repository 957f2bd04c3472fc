"""`fathom sync`: bring MLflow up to date with runs whose launcher could not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import FathomError, UsageError

if TYPE_CHECKING:
    from orchestrator.settings import Settings


def sync_command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of runs, e.g. runs/mini-20260101-120000; all of FATHOM_HOME by default."),
    ] = None,
) -> None:
    """Send to MLflow what it missed of earlier runs; one line for each. Exit code 1 if something is missing still."""
    from importlib.util import find_spec

    if find_spec("mlflow") is None:
        raise UsageError("syncing needs mlflow: install with `pip install 'fathom-train[train]'` (or `make venv`)")
    from orchestrator.launch.base import RECORDS
    from orchestrator.settings import Settings

    settings = Settings.load()
    chosen = runs or sorted(path.parent for path in settings.home.glob(RECORDS))
    if not chosen:
        print(f"no runs in {settings.home}", file=sys.stderr)
    behind = [root for root in chosen if not _sync(root, settings, asked=bool(runs))]
    if behind:
        raise typer.Exit(1)


def _sync(root: Path, settings: Settings, *, asked: bool) -> bool:
    """One run, and its line; whether MLflow has all that there is."""
    from orchestrator.controller.record import Record
    from orchestrator.controller.sync import is_followed, is_settled, sync_run

    try:
        record = Record.open(root)
    except FathomError as error:
        if asked:
            raise
        print(f"{root}: still behind: {error}")
        return False
    if is_followed(record.folder):
        print(f"{root}: is followed by another process, which keeps MLflow up to date")
        return True
    if is_settled(record.folder, settings):
        print(f"{root}: up to date")
        return True
    remarks: list[str] = []
    why = sync_run(record, settings, remarks.append)
    if why is not None:
        print(f"{root}: still behind: {why}")
        return False
    print(f"{root}: caught up")
    for remark in remarks:
        print(f"· {remark}", file=sys.stderr)
    return True
