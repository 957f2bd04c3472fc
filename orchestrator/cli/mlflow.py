"""`fathom mlflow`: the page of all runs, served from the local database. Added to the command line by `cli.main`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def mlflow_command(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A host name that people may type; may be repeated.")
    ] = None,
    basic_auth: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="Ask for passwords; a basic_auth.ini of MLflow.")
    ] = None,
) -> None:
    """Serve MLflow's page of the runs in FATHOM_HOME until Ctrl-C; only to this machine unless told otherwise.

    Example: fathom mlflow --port 5001
    """
    from orchestrator.settings import Settings
    from orchestrator.tracking.hosts import require_free
    from orchestrator.tracking.login import read_login
    from orchestrator.tracking.server import experiments, plan
    from orchestrator.tracking.view import runs_url

    settings = Settings.load()
    login = None if basic_auth is None else read_login(basic_auth, os.environ)
    server = plan(settings, os.environ, host=host, port=port, allowed_hosts=allowed_host or (), login=login)
    require_free(host, port)
    server.database.parent.mkdir(parents=True, exist_ok=True)
    typer.echo(f"MLflow: {server.url} (Ctrl-C ends it)")
    for number, name in experiments(server.database):
        for words, as_charts in (("table", False), ("charts", True)):
            typer.echo(f"  {name}, {words}: {runs_url(server.url, number, as_charts=as_charts)}")
    # The same process goes on as the server: nothing is left behind, and Ctrl-C goes to uvicorn itself.
    os.execve(server.argv[0], list(server.argv), dict(server.env))
