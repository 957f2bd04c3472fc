"""What the commands of the service share: the client, names of jobs, and how to leave a stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.completing import job_names
from orchestrator.cli.output import talk

if TYPE_CHECKING:
    from orchestrator.client import Client

JobArgument = Annotated[
    str,
    typer.Argument(metavar="JOB", help="NAME or TEAM/NAME.", show_default=False, autocompletion=job_names),
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
    """Ask, unless the answer was given; without a terminal it must be. Abort for no."""
    import sys

    from orchestrator.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{instead}: there is no terminal to ask at, so give -y to do it")
    if not typer.confirm(question, err=True):
        raise typer.Exit(130)
