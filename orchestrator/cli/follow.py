"""`fathom logs`, `fathom events` and `fathom wait`: what a job says, as it says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from orchestrator.cli.output import Column, Output, OutputOption, dump, show, talk
from orchestrator.cli.served import JobArgument, connect, detachable

_KEYS = ("kind", "job", "attempt", "incarnation", "seq", "time", "version")
_EVENT_COLUMNS = (
    Column("TIME"),
    Column("ATTEMPT", right=True),
    Column("KIND"),
    Column("SEQ", wide=True),
    Column("WHAT"),
)


def logs_command(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt only.", metavar="NUMBER")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="The last so many lines only.", metavar="LINES")] = None,
) -> None:
    """Print what the workers of a job print, also after its end; Ctrl-C leaves the job alone.

    Examples: fathom logs mini -f  |  fathom logs mini --attempt 2 --tail 50
    """
    with connect() as client, detachable(f"the job goes on; come back with `fathom logs {job} -f`"):
        line = None
        for line in client.logs(job, follow=follow, attempt=attempt, tail=tail):
            print(line, flush=follow)
        if line is None and tail != 0:
            talk("nothing was printed")


def events_command(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    output: OutputOption = Output.table,
) -> None:
    """List what a job has reported: starts, checkpoints, lost workers, anomalies, evaluations, its end. Steps are many:
    they are in `fathom top`, and here with -o wide or json.

    Examples: fathom events mini  |  fathom events mini -f -o json
    """
    with connect() as client, detachable(f"the job goes on; come back with `fathom events {job} -f`"):
        events = client.events(job, follow=follow)
        if follow:
            for event in events:
                _print_line(event, output)
            return
        found = [event for event in events if _shown(event, output)]
    if not found and output in (Output.table, Output.wide):
        talk("nothing was reported yet")
        return
    show(found, output, columns=_EVENT_COLUMNS, row=event_row, name=lambda event: str(event.get("kind", "")))


def wait_command(
    job: JobArgument,
    until: Annotated[
        list[str] | None,
        typer.Option("--until", help="A phase to wait for; repeatable. Left out: the end, or a halt.", metavar="PHASE"),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Give up after so many seconds.", metavar="SECONDS")
    ] = None,
    output: OutputOption = Output.name,
) -> None:
    """Wait until a job has ended, or is in a phase; exits 1 if it failed, 5 if it stopped over budget.

    Examples: fathom wait mini  |  fathom wait mini --until Running --timeout 300
    """
    from orchestrator.cli.jobs import phases_of, print_job
    from orchestrator.client.outcome import failure
    from orchestrator.errors import RunFailed

    phases = phases_of(until or [])
    with connect() as client, detachable("the job goes on"):
        try:
            found = client.wait(job, phases, timeout=timeout)
        except TimeoutError as error:
            raise RunFailed(str(error)) from None
    print_job(found, output)
    if not phases and (ended := failure(found)) is not None:
        raise ended


def event_row(event: Mapping[str, Any]) -> dict[str, str]:
    """Cells by their headings."""
    return {
        "TIME": _time(event.get("time")),
        "ATTEMPT": str(event.get("attempt", "")),
        "KIND": str(event.get("kind", "")),
        "SEQ": str(event.get("seq", "")),
        "WHAT": what(event),
    }


def what(event: Mapping[str, Any]) -> str:
    """What is special about it, in one line."""
    rest = {key: value for key, value in event.items() if key not in _KEYS and value not in (None, "", [], {})}
    metrics = rest.pop("metrics", {})
    if isinstance(metrics, dict):
        rest |= {name: metrics[name] for name in ("train/loss", "eval/loss", "eval/bits_per_byte") if name in metrics}
    return " ".join(f"{name}={_brief(value)}" for name, value in rest.items())


def _shown(event: Mapping[str, Any], output: Output) -> bool:
    return output is not Output.table or event.get("kind") not in ("progress", "machine-load", "log-piece")


def _print_line(event: Mapping[str, Any], output: Output) -> None:
    """One event, a line of its own: JSON lines for programs."""
    import json

    if output is Output.json:
        print(json.dumps(event, ensure_ascii=False), flush=True)
    elif output is Output.yaml:
        print("---", flush=True)
        dump(dict(event), output)
    elif output is Output.name:
        print(event.get("kind", ""), flush=True)
    elif _shown(event, output):
        cells = event_row(event)
        print(f"{cells['TIME']}  {cells['ATTEMPT']:>3}  {cells['KIND']:<20}  {cells['WHAT']}".rstrip(), flush=True)


def _time(moment: object) -> str:
    """2026-06-01T12:00:00.000000Z as people write it; whatever else it is as it is."""
    return str(moment or "").partition(".")[0].replace("T", " ").removesuffix("Z")


def _brief(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return f'"{text}"' if " " in text else text
