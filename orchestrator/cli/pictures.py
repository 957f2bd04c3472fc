"""`--plot FILE`: pictures as one HTML page or as PNG, by the name's end. Used by `plan`, `goodput` and `cost`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import typer

from orchestrator.cli.files import require_free, write_file
from orchestrator.errors import UsageError

Form = Literal["html", "png"]


def require_picture(path: Path, *, force: bool) -> Form:
    """What the name asks for; UsageError or Conflict if that is no picture, or nothing may be written there.

    To be asked before anything is computed.
    """
    end = path.suffix.lower()
    if end not in (".html", ".png"):
        raise UsageError(f"--plot must end in .html or .png, got {path}")
    require_free(path, force=force)
    return "html" if end == ".html" else "png"


def write_picture(path: Path, make: Callable[[], bytes]) -> None:
    """Draws and writes; UsageError where matplotlib is missing, which the base install does not have."""
    try:
        content = make()
    except ImportError as error:
        raise UsageError(f"a picture needs {error.name or error}: run `pip install matplotlib`") from error
    write_file(path, content)
    typer.echo(f"{path}: written", err=True)
