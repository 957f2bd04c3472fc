"""How commands that read models talk: results on stdout, all else on stderr, errors of the parts below as their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import typer

from orchestrator.errors import Conflict, NotFound, RunFailed, UsageError


@contextmanager
def talking() -> Iterator[None]:
    """Whatever libraries print is talk."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def explained(failed: str) -> Iterator[None]:
    """Errors of the parts below, as those of the command. `failed`: what an error of the operating system stopped."""
    try:
        yield
    except FileExistsError as error:
        raise Conflict(str(error)) from error
    except FileNotFoundError as error:
        raise NotFound(str(error)) from error
    except ImportError as error:
        raise UsageError(f"the package {error.name} is missing: run `pip install 'fathom-train[train]'`") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise RunFailed(f"{failed}: {error.strerror or error}") from error


def remark(text: str) -> None:
    """A line for people."""
    typer.echo(text, err=True)
