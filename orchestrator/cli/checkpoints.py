"""`fathom checkpoints ...`: list, verify and remove a run's checkpoints. Added to the command line by `cli.main`.

Results go to stdout, remarks to stderr. Nothing here claims the storage: a run that is going on is not disturbed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import Output, OutputOption, for_programs
from orchestrator.cli.talking import remark
from orchestrator.errors import Conflict, FathomError, Interrupted, NotFound, RunFailed, UsageError

if TYPE_CHECKING:
    from model.checkpoint import Manifest, Store
    from orchestrator.controller.record import Record
    from orchestrator.launch.resolve import Resolved

checkpoints_app = typer.Typer(help="List, verify and remove a run's checkpoints.", no_args_is_help=True)

RunArgument = Annotated[Path, typer.Argument(help="A run's folder, e.g. runs/mini-20260101-120000.")]


class State(StrEnum):
    """What a look at a checkpoint tells."""

    ok = "ok"
    unusable = "unusable"
    unfinished = "unfinished"


@dataclass(frozen=True)
class Row:
    """One checkpoint."""

    step: int
    state: State
    problem: str = ""
    manifest: Manifest | None = None
    """Where it can be used."""


@checkpoints_app.callback()
def _group() -> None:
    """List, verify and remove a run's checkpoints."""


@checkpoints_app.command("list")
def list_command(
    run: RunArgument,
    output: OutputOption = Output.table,
) -> None:
    """Show what there is: signatures, names and sizes are looked at, contents are not.

    Example: fathom checkpoints list runs/mini-20260101-120000
    """
    _, store = open_run(run)
    with _reaching(store):
        rows = [row for step in store.steps() if (row := look(store, step, contents=False))]
    if not for_programs([_as_json(row) for row in rows], output, [f"step-{row.step}" for row in rows]) and rows:
        _print_table(rows)
        remark("verify checks contents: `fathom checkpoints verify RUN`")
    if not rows:
        remark(_none(store))


@checkpoints_app.command("verify")
def verify_command(
    run: RunArgument,
    step: Annotated[int | None, typer.Argument(help="The step; left out: all.")] = None,
) -> None:
    """Read all files and compare their digests; exit code 1 if anything is damaged.

    Example: fathom checkpoints verify runs/mini-20260101-120000
    """
    _, store = open_run(run)
    with _reaching(store):
        steps = store.steps() if step is None else _known(store, [step])
        if not steps:
            raise NotFound(_none(store))
        rows = []
        for number in reversed(steps):
            if row := look(store, number, contents=True):
                typer.echo(f"step-{number}: {row.problem or 'ok'}")
                rows.append(row)
        # unfinished ones are usual while a run goes on; who asks for one wants to use it
        bad = [row for row in rows if row.state is State.unusable or (step is not None and row.state is not State.ok)]
        usable = _newest(store, rows, complete=step is None) if bad or step is None else None
    resume = "" if step is not None and not bad else _resume(usable)
    if bad:
        listed = ", ".join(f"step {row.step}" for row in bad)
        raise RunFailed(f"{len(bad)} of {len(rows)} checked cannot be used ({listed}); {resume}")
    if resume:
        remark(resume)


@checkpoints_app.command("rm")
def remove_command(
    run: RunArgument,
    steps: Annotated[list[int], typer.Argument(help="Which to remove.", metavar="STEP...")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even the last one that verifies.")] = False,
) -> None:
    """Remove checkpoints for ever; not while the run goes on, and not the last one that verifies.

    Example: fathom checkpoints rm runs/mini-20260101-120000 200 400
    """
    record, store = open_run(run)
    with _nobody_else(record), _reaching(store):
        doomed = _known(store, sorted(set(steps)))
        if not yes and not sys.stdin.isatty():
            raise UsageError("removing asks first, but there is no terminal to ask on: give --yes")
        if not force:
            _require_one_left(store, doomed)
        words = ", ".join(f"step {step}" for step in doomed)
        if not yes and not typer.confirm(f"remove {words} from {store.uri} for ever?", err=True):
            raise Interrupted("nothing was removed")
        for step in doomed:
            store.remove(step)
            typer.echo(f"removed step-{step}")


# Finding the storage


def open_run(run: Path) -> tuple[Record, Store]:
    """A run and its checkpoints; nothing is read from the storage yet."""
    from model.checkpoint import Identity, Store
    from orchestrator.controller.record import Record

    record = Record.open(run)
    resolved, key = _resolved(record), _signing_key()
    identity = Identity(job=resolved.job.uid, attempt=resolved.attempt, incarnation=resolved.incarnation)
    try:
        return record, Store(resolved.storage_uri, identity, key)
    except ImportError as error:
        extra = " (`pip install 'fathom-train[s3]'`)" if resolved.storage_uri.startswith("s3") else ""
        raise UsageError(f"a package is missing to open {resolved.storage_uri}: {error}{extra}") from error
    except ValueError as error:
        raise UsageError(f"cannot open {resolved.storage_uri}: {error}") from error


def _resolved(record: Record) -> Resolved:
    """The newest attempt, which knows where the storage is."""
    from pydantic import ValidationError

    from orchestrator.launch.resolve import Resolved

    attempt = record.folder.last_attempt()
    if not attempt:
        raise NotFound(f"{record.folder.root} has no checkpoints: none of its attempts was ever started")
    path = record.folder.resolved(attempt)
    try:
        return Resolved.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise UsageError(f"{path} is not of this version of Fathom, or damaged: {problem['msg']}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _signing_key() -> bytes:
    """The key that checkpoints are signed with; none is made here."""
    from orchestrator.settings import Settings

    settings = Settings.load()
    file = settings.signing_key_file
    if not file.exists():
        raise UsageError(
            f"the signing key {file} is missing, so that no checkpoint can be checked: "
            "set FATHOM_HOME or FATHOM_SIGNING_KEY_FILE to what they were when the run was started"
        )
    try:
        return settings.signing_key()
    except OSError as error:
        raise UsageError(f"the signing key {file} cannot be read: {error.strerror}") from None


# Looking


def look(store: Store, step: int, *, contents: bool) -> Row | None:
    """What a checkpoint is like; None if it has just been removed."""
    from model.checkpoint import CheckpointError, Unfinished

    try:
        manifest = store.verify(step) if contents else store.inspect(step)
    except FileNotFoundError:
        return None
    except Unfinished as error:
        return Row(step, State.unfinished, str(error))
    except CheckpointError as error:
        return Row(step, State.unusable, str(error))
    return Row(step, State.ok, manifest=manifest)


def _known(store: Store, wanted: Sequence[int]) -> list[int]:
    """NotFound if one of them does not exist."""
    there = store.steps()
    unknown = [step for step in wanted if step not in there]
    if unknown:
        have = f"there are {', '.join(map(str, there))}" if there else _none(store)
        raise NotFound(f"there is no checkpoint of step {', '.join(map(str, unknown))}: {have}")
    return list(wanted)


def _newest(store: Store, rows: Sequence[Row], *, complete: bool) -> int | None:
    """The step that a resume would take; `rows` are newest first."""
    if complete:
        return next((row.step for row in rows if row.state is State.ok), None)
    found, _ = store.newest()
    return found.manifest.step if found else None


def _resume(step: int | None) -> str:
    return "a resume would begin anew" if step is None else f"a resume would take step {step}"


def _none(store: Store) -> str:
    return f"no checkpoints in {store.uri}"


def _require_one_left(store: Store, doomed: Sequence[int]) -> None:
    """Conflict if what verifies would all be gone."""

    def verifies(step: int) -> bool:
        row = look(store, step, contents=True)
        return row is not None and row.state is State.ok

    left = [step for step in store.steps() if step not in doomed]
    if any(verifies(step) for step in reversed(left)):
        return
    if last := [step for step in doomed if verifies(step)]:
        raise Conflict(
            f"step {', '.join(map(str, last))} is the last that verifies: without it a resume begins anew; "
            "give --force to remove it all the same"
        )


@contextmanager
def _nobody_else(record: Record) -> Iterator[None]:
    """Conflict while the run goes on; it cannot be resumed meanwhile."""
    try:
        from orchestrator.launch.local import hold_lock, running
    except ImportError as error:
        raise UsageError(
            f"seeing whether the run goes on needs the package {error.name}: run `pip install 'fathom-train[train]'`"
        ) from error
    with hold_lock(record.folder.launcher_lock):
        if (driver := running(record.folder)) is not None:
            raise Conflict(
                f"{record.folder.root} is being trained by process {driver.process.pid}: wait until it ends, or stop it"
            )
        yield


@contextmanager
def _reaching(store: Store) -> Iterator[None]:
    """What the storage refuses, as a message."""
    try:
        yield
    except FathomError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunFailed(f"{store.uri} cannot be used: {reason}; try again when it can be reached") from error


# Printing


def _as_json(row: Row) -> dict[str, Any]:
    content: dict[str, Any] = {"step": row.step, "state": row.state.value, "problem": row.problem or None}
    if (manifest := row.manifest) is None:
        return content
    return content | {
        "tokens": manifest.tokens,
        "bytes": manifest.size,
        "files": len(manifest.files),
        "created": datetime.fromtimestamp(manifest.created, UTC).isoformat(),
        "attempt": manifest.identity.attempt,
        "incarnation": manifest.identity.incarnation,
        "epoch": manifest.epoch,
        "topology": {
            "worldSize": manifest.topology.world_size,
            "expertParallel": manifest.topology.expert_parallel,
            "zeroStage": manifest.topology.zero_stage,
            "precision": manifest.topology.precision,
        },
        "skipped": list(manifest.skipped),
    }


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    from orchestrator.cli.model import short

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("STEP", "TOKENS", "SIZE", "CREATED (UTC)", "TOPOLOGY", "BY", "STATE"):
        right = heading in ("STEP", "TOKENS", "SIZE")
        table.add_column(heading, justify="right" if right else "left", no_wrap=right)
    for row in rows:
        cells = ["-"] * 5
        if (manifest := row.manifest) is not None:
            cells = [
                short(manifest.tokens),
                short(manifest.size, "B"),
                f"{datetime.fromtimestamp(manifest.created, UTC):%Y-%m-%d %H:%M}",
                str(manifest.topology),
                f"{manifest.identity.attempt}/{manifest.identity.incarnation}/{manifest.epoch}",
            ]
        table.add_row(str(row.step), *cells, row.state.value)
    Console(file=sys.stdout).print(table)
    for row in rows:
        if row.problem:
            typer.echo(f"step-{row.step}: {row.problem}")
