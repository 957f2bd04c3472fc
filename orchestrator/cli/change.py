"""`fathom cancel`, `suspend`, `resume` and `delete`: what is wished of jobs that are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import Output, OutputOption, talk
from orchestrator.cli.served import JobsArgument, confirmed, connect, detachable

if TYPE_CHECKING:
    from orchestrator.client import Job

WaitOption = Annotated[bool, typer.Option("--wait", help="Return when it is done, not when it is ordered.")]
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="At once, without a last checkpoint: what came after the one before is lost."),
]
_DONE = {"cancel": "Cancelled", "suspend": "Suspended"}
"""The phase that is waited for."""
_REST = {
    "cancel": "writes a last checkpoint and ends for good",
    "suspend": "writes a checkpoint and lets go of its machines; go on with `fathom resume {key}`",
    "resume": "goes on from its last checkpoint; follow it with `fathom logs {key} -f`",
}


def cancel_command(
    jobs: JobsArgument, wait: WaitOption = False, force: ForceOption = False, output: OutputOption = Output.name
) -> None:
    """End jobs for good, each with a last checkpoint.

    Examples: fathom cancel mini  |  fathom cancel mini --force
    """
    _act("cancel", jobs, output, wait=wait, force=force)


def suspend_command(jobs: JobsArgument, wait: WaitOption = False, output: OutputOption = Output.name) -> None:
    """Let jobs write a checkpoint and give their machines back, until they are resumed.

    Example: fathom suspend mini
    """
    _act("suspend", jobs, output, wait=wait)


def resume_command(jobs: JobsArgument, output: OutputOption = Output.name) -> None:
    """Let suspended or failed jobs go on from their last checkpoint, with all their attempts anew.

    Example: fathom resume mini
    """
    _act("resume", jobs, output)


def delete_command(
    jobs: JobsArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    keep_files: Annotated[bool, typer.Option("--keep-files", help="Leave the run's folder as it is.")] = False,
    force: ForceOption = False,
) -> None:
    """Stop jobs and forget them, with their checkpoints, logs and weights.

    Examples: fathom delete mini  |  fathom delete mini -y --keep-files
    """
    files = "; their files stay" if keep_files else ", WITH their checkpoints, logs and weights"
    with connect() as client:
        found = [client.get(job) for job in jobs]  # a wrong name is said before anything is lost
        named = ", ".join(f"{job.key} ({job.phase})" for job in found)
        confirmed(f"forget {named}{files}?", yes, f"this would forget {named}{files}")
        for job in found:
            client.delete(job, keep_files=keep_files, force=force)
            print(job.key)
            running = "" if job.phase.terminal else " once it has stopped"
            talk(f"{job.key}: forgotten{running}")


def _act(verb: str, jobs: list[str], output: Output, *, wait: bool = False, force: bool = False) -> None:
    """All are ordered before any is waited for; `force`: of cancel."""
    from orchestrator.cli.jobs import print_job

    with connect() as client, detachable("what was ordered happens all the same"):
        ordered: list[Job] = []
        for name in jobs:
            job: Job = client.cancel(name, force=True) if force else getattr(client, verb)(name)
            rest = "ends at once and for good, without a last checkpoint" if force else _REST[verb]
            ended = verb == "cancel" and job.phase.terminal
            talk(f"{job.key}: {f'has ended already ({job.phase})' if ended else rest.format(key=job.key)}")
            ordered.append(job)
        for job in ordered:
            print_job(client.wait(job, [_DONE[verb]]) if wait else job, output)
