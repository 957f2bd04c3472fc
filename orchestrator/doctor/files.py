"""Whether the home works and the files of the settings are right."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from orchestrator.controller.hooks import read_hooks
from orchestrator.cost.teams import read_teams
from orchestrator.doctor.ask import ask
from orchestrator.doctor.findings import Finding, Place, State
from orchestrator.errors import UsageError
from orchestrator.plan.prices import PriceBook
from orchestrator.spec import Compute
from orchestrator.tracking.reached import without_credentials

_GIB = 2**30
_LITTLE, _TOO_LITTLE = 10 * _GIB, _GIB
_OLD_DAYS = 180
_SKEW_SECONDS = 2.0
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""No right clock is before this."""
_KEY_BYTES = 32
_TRY = "import fcntl,sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
"""Fails where another process holds the lock."""


def home(place: Place) -> Iterator[Finding]:
    """Whether runs can be written there; nothing is made that was not there."""
    folder = place.settings.home
    if folder.exists() and not folder.is_dir():
        yield Finding("home", State.FAIL, f"{folder} is no folder", "set FATHOM_HOME to one")
        return
    try:
        with tempfile.NamedTemporaryFile(dir=_there(folder), prefix=".fathom-doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        says = f"{folder} cannot be written: {error.strerror}"
        yield Finding("home", State.FAIL, says, "set FATHOM_HOME to a folder that is yours")
        return
    yield Finding("home", State.OK, f"{folder}" + ("" if folder.exists() else ", which is made by the first run"))


def disk(place: Place) -> Iterator[Finding]:
    """Free space and files of the home."""
    folder = _there(place.settings.home)
    free, files = shutil.disk_usage(folder).free, os.statvfs(folder)
    says = f"{free / _GIB:.1f} GiB free"
    if files.f_files and files.f_favail < 10_000:
        yield Finding("disk", State.WARN, f"only {files.f_favail} more files fit", "remove old runs or checkpoints")
    if free < _TOO_LITTLE:
        yield Finding("disk", State.FAIL, says, "make room: a checkpoint that does not fit ends the run")
    elif free < _LITTLE:
        yield Finding("disk", State.WARN, says, "checkpoints take 12 to 16 bytes per parameter each, and 3 are kept")
    else:
        yield Finding("disk", State.OK, says)


def locks(place: Place) -> Iterator[Finding]:
    """Whether a lock keeps another process out, and only as long as it is held; all that is said of who runs what
    depends on it."""
    with tempfile.NamedTemporaryFile(dir=_there(place.settings.home), prefix=".fathom-doctor-") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        while_held = _can_lock(file.name)
        fcntl.flock(file, fcntl.LOCK_UN)
        afterwards = _can_lock(file.name)
    if while_held or not afterwards:
        wrong = "two processes get the same lock" if while_held else "a lock that was given back is not free"
        yield Finding(
            "locks",
            State.FAIL,
            f"{wrong} on the file system of {place.settings.home}",
            "set FATHOM_HOME to a local disk, or mount it with locks (NFS: without nolock)",
        )
    else:
        yield Finding("locks", State.OK, "locks keep other processes out")


def _can_lock(name: str) -> bool:
    done = subprocess.run([sys.executable, "-S", "-c", _TRY, name], capture_output=True, timeout=60, check=False)
    return done.returncode == 0


def clock(place: Place) -> Iterator[Finding]:
    """Money is counted by it."""
    now = time.time()
    if now < _EPOCH.timestamp():
        says = f"it is {datetime.now(UTC):%Y-%m-%d}, which is before this version of Fathom"
        yield Finding("clock", State.FAIL, says, "set the clock: money is counted by it")
        return
    with tempfile.NamedTemporaryFile(dir=_there(place.settings.home), prefix=".fathom-doctor-") as file:
        before, written, after = time.time(), os.stat(file.name).st_mtime, time.time()
    skew = written - after if written > after else written - before
    if abs(skew) > _SKEW_SECONDS:
        says = f"the file system of {place.settings.home} is {skew:+.0f} s from this machine's clock"
        yield Finding("clock", State.WARN, says, "let both follow the same time server")
    else:
        yield Finding("clock", State.OK, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")


def signing_key(place: Place) -> Iterator[Finding]:
    """Whoever reads it can make checkpoints that we would load."""
    file = place.settings.signing_key_file
    if not file.exists():
        yield Finding("signing key", State.OK, f"{file} is made by the first run")
        return
    try:
        size = file.stat().st_size
        file.open("rb").close()
    except OSError as error:
        yield Finding("signing key", State.FAIL, f"{file} cannot be read: {error.strerror}", "give it to your user")
        return
    if size < _KEY_BYTES:
        says = f"{file} holds {size} bytes, a key needs at least {_KEY_BYTES}"
        yield Finding("signing key", State.FAIL, says, "put the right key there; checkpoints of another are refused")
    elif (finding := open_to_others("signing key", file, State.FAIL)) is not None:
        yield finding
    else:
        yield Finding("signing key", State.OK, f"{file}, for you only")


def prices(place: Place) -> Iterator[Finding]:
    """Valid, and how old."""
    try:
        book = PriceBook.load(place.settings.price_file)
    except UsageError as error:
        yield Finding("prices", State.FAIL, str(error), "correct the file that FATHOM_PRICES names")
        return
    names = get_args(Compute.model_fields["accelerator"].annotation)
    dated = [(book.price(name, kind).date, name, kind) for name in names for kind in book.classes(name)]
    oldest, name, kind = min(dated)
    days = (datetime.now(UTC).date() - oldest).days
    source = "those that come with Fathom" if place.settings.price_file is None else str(place.settings.price_file)
    says = f"{source}, {len(dated)} prices, the oldest of {oldest} ({name} {kind})"
    if days > _OLD_DAYS:
        yield Finding("prices", State.WARN, f"{says}: {days} days old", "put today's into a file of FATHOM_PRICES")
    else:
        yield Finding("prices", State.OK, says)


def budgets(place: Place) -> Iterator[Finding]:
    """What teams may spend."""
    file = place.settings.budgets_file
    if file is None:
        yield Finding("budgets", State.OK, "no FATHOM_BUDGETS: teams have no limit")
        return
    try:
        yield Finding("budgets", State.OK, f"{file}: {len(read_teams(file))} teams")
    except UsageError as error:
        yield Finding("budgets", State.FAIL, str(error), "correct the file that FATHOM_BUDGETS names")


def webhooks(place: Place) -> Iterator[Finding]:
    """Of teams."""
    file = place.settings.webhooks_file
    if file is None:
        return
    try:
        found = len(read_hooks(file))
    except UsageError as error:
        yield Finding("webhooks", State.FAIL, str(error), "correct the file that FATHOM_WEBHOOKS names")
        return
    yield open_to_others("webhooks", file, State.WARN) or Finding("webhooks", State.OK, f"{file}: {found} teams")


def mlflow(place: Place) -> Iterator[Finding]:
    """Whether it can be reached; without importing it."""
    uri, shown = place.settings.tracking_uri, without_credentials(place.settings.tracking_uri)
    scheme = urlsplit(uri).scheme
    if scheme == "sqlite":
        yield _database(Path(uri.removeprefix("sqlite:///")))
    elif scheme in ("http", "https"):
        try:
            status = ask(uri, "/health", timeout=5.0).status
        except OSError as error:
            says = f"{shown} does not answer: {error}"
            yield Finding("mlflow", State.WARN, says, "start it; runs go on without it, `fathom sync` catches up")
            return
        state, do = (State.OK, "") if status == 200 else (State.WARN, "look at its log; `fathom sync` catches up")
        yield Finding("mlflow", state, f"{shown} answers {status}", do)
    else:
        yield Finding("mlflow", State.OK, f"{shown}, which is not looked at")


def _database(path: Path) -> Finding:
    if not path.exists():
        return Finding("mlflow", State.OK, f"{path} is made by the first run")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as database:
            database.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.Error as error:
        return Finding("mlflow", State.FAIL, f"{path}: {error}", "put it back from a backup, or name another database")
    if not os.access(path, os.W_OK):
        return Finding("mlflow", State.FAIL, f"{path} cannot be written", "give it to your user")
    return Finding("mlflow", State.OK, str(path))


def open_to_others(check: str, file: Path, state: State) -> Finding | None:
    mode = stat.S_IMODE(file.stat().st_mode)
    if not mode & 0o077:
        return None
    return Finding(check, state, f"{file} has mode {mode:04o}: others can read it", f"run `chmod 600 {file}`")


def _there(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder
