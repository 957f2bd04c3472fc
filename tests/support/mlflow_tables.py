"""MLflow's tables, made once for a whole test run: to make them takes MLflow two seconds of a core each time."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from orchestrator.tracking.client import connect
from support.mirrored import close_databases


def made(folder: Path) -> Path:
    """A database of a real MLflow that holds nothing yet, in `folder`, which processes of one test run share."""
    path = folder / "mlflow-tables" / "mlflow.db"
    with (folder / "mlflow-tables.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            part = path.with_name(f"{os.getpid()}.db")
            connect(f"sqlite:///{part}")
            close_databases()  # all of it is in the file then
            part.rename(path)
    return path


def copied(tables: Path, path: Path) -> Path:
    """-> `path`, which is such a database now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tables, path)
    return path
