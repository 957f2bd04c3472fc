"""A job until it is at rest: one live line on a terminal, a `key=value` line now and then elsewhere. On stderr."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

from orchestrator.cli.output import coloured, talk
from orchestrator.cli.served import detachable

if TYPE_CHECKING:
    from orchestrator.client import Client, Job

_POLL_SECONDS, _LINE_SECONDS = 1.0, 10.0


def follow_job(client: Client, job: Job) -> None:
    """Show where it stands until nothing more happens; raises what it failed with."""
    from orchestrator.client.outcome import at_rest, failure

    live, said, said_at = coloured(sys.stderr), "", 0.0
    with detachable(f"the job goes on; come back with `fathom logs {job.key} -f` or `fathom top {job.key}`"):
        while True:
            job = client.get(job)
            line, rests = progress_line(job), at_rest(job)
            if live:
                print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)
            elif line != said and (rests or _phase(line) != _phase(said) or time.monotonic() - said_at > _LINE_SECONDS):
                talk(line)
                said, said_at = line, time.monotonic()
            if rests:
                break
            time.sleep(_POLL_SECONDS)
    if live:
        talk("")
    if (error := failure(job)) is not None:
        raise error


def progress_line(job: Job) -> str:
    """`default/mini phase=Running step=10/100 loss=3.21 ...`, one line."""
    from orchestrator.cli.job_rows import moving

    values: dict[str, object] = {"phase": job.phase.value}
    status = job.status
    if (seen := status.progress) is not None:
        values |= {"step": f"{seen.step}/{seen.steps}", "tokens": seen.tokens}
        if seen.loss:
            values["loss"] = seen.loss
        if moving(job) and seen.tokens_per_second:
            values["tokens_per_second"] = f"{float(seen.tokens_per_second):.0f}"
        if moving(job) and seen.eta_seconds is not None:
            values["seconds_left"] = seen.eta_seconds
    if (cost := status.cost) is not None:
        values[f"cost_{cost.currency.lower()}"] = cost.spent
    return " ".join([job.key, *(f"{name}={value}" for name, value in values.items())])


def _phase(line: str) -> str:
    return " ".join(line.split()[:2])
