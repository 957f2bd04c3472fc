"""How commands that read models talk: results on stdout, all else on stderr, errors of the parts below as their own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import typer

from orchestrator.errors import Conflict, Interrupted, NotFound, RunFailed, UsageError


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
        where = f" ({error.filename})" if error.filename else ""
        raise RunFailed(f"{failed}: {error.strerror or error}{where}") from error


@contextmanager
def stoppable(stopped: str) -> Iterator[None]:
    """TERM and HUP end what is done here as Ctrl-C does, so that it can put away what is half done; further ones are
    ignored meanwhile. Then Interrupted with the text `stopped`."""
    numbers = (signal.SIGTERM, signal.SIGHUP)

    def stop(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(stopped) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def remark(text: str) -> None:
    """A line for people."""
    typer.echo(text, err=True)
