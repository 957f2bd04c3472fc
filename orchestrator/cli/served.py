"""What the commands of the service share: the client, names of jobs, and how to leave a stream."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.completing import job_names
from orchestrator.cli.output import talk
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.client import Client

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="NAME or TEAM/NAME.", autocompletion=job_names)]
JobsArgument = Annotated[
    list[str], typer.Argument(metavar="JOB...", help="NAME or TEAM/NAME.", autocompletion=job_names)
]


def connect() -> Client:
    """The service that the environment names, else that of this machine. Imported when it is needed."""
    from orchestrator.client import Client

    return Client()


@contextmanager
def detachable(words: str) -> Iterator[None]:
    """Ctrl-C leaves what goes on by itself; `words` say how to come back."""
    try:
        yield
    except KeyboardInterrupt:
        talk(f"\ndetached: {words}")
        raise typer.Exit(130) from None


def confirmed(question: str, yes: bool, instead: str) -> None:
    """Ask on stderr, unless the answer was given; without a terminal it must be. Exit 130 for anything but yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{instead}: there is no terminal to ask at, so give -y to do it")
    print(f"{question} [y/N]: ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if answer.strip().lower() not in ("y", "yes"):
        talk("nothing was done" if answer else "\nnothing was done")
        raise typer.Exit(130)
