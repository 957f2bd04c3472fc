"""A zip with what somebody who helps needs to see of a run: no data, no weights, no secrets, of bounded size.

Only plain files of the run's folder are read, never through links. Every text goes through `redact` as a whole before
it is cut, so that no half of a secret is left.
"""

from __future__ import annotations

import io
import json
import os
import platform
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from orchestrator.controller.record import Record
from orchestrator.doctor.findings import Finding, Place
from orchestrator.doctor.installation import own_version
from orchestrator.doctor.redact import GONE, Secrets, is_secret_name
from orchestrator.launch.base import RunFolder
from orchestrator.reasons import Ways
from orchestrator.status import JobStatus
from orchestrator.why import why

MAX_BYTES = 24_000_000
"""Of all texts together."""
_PART, _LOG, _EVENTS = 256_000, 1_000_000, 4_000_000
"""The most of one file; of logs and events, the end."""
_MOST_FILES = 60
_SHOWN = ("FATHOM_", "MLFLOW_", "RAY_", "CUDA_", "NCCL_", "OMP_", "TORCH", "DS_", "GLOO_", "PYTHON", "HF_", "AWS_")
"""Variables of the environment that matter to a run; of all others not even the name is told."""
_NAMES = (
    "job.json", "status.json", "held.json", "control.json", "tracking.json", "tracking-trouble.json", "reserved.json",
    "driver.lock", "launcher.lock", "ledger/ledger.json", "artifacts/forecast.json",
)  # fmt: skip
_PATTERNS = ("resolved-*.json", "tariff-*.json", "failure-*.json", "logs/stacks-*.txt")


@dataclass(frozen=True)
class Member:
    """One text of the bundle."""

    name: str
    text: str
    note: str = ""
    """What of it is left out."""


def make_bundle(record: Record, place: Place, findings: Sequence[Finding]) -> tuple[bytes, str]:
    """The zip, and what is in it in words."""
    notify = record.job.spec.notify
    secrets = Secrets.of(place.settings, place.env, [] if notify is None else [notify.url])
    listed, left, removed = list[str](), MAX_BYTES, 0
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
        for member in _members(record, place, findings):
            text, count = secrets.without(member.text)
            data = text.encode("utf-8", "replace")
            if len(data) > left:
                listed.append(f"{member.name}: left out, since the bundle is full")
                continue
            left, removed = left - len(data), removed + count
            bundle.writestr(secrets.without(member.name)[0], data)
            taken = f", {count} secrets taken out" if count else ""
            listed.append(f"{member.name}: {len(data):,} bytes{member.note}{taken}")
        contents = _contents(record, listed, removed)
        bundle.writestr("CONTENTS.txt", secrets.without(contents)[0])
    return out.getvalue(), secrets.without(contents)[0]


def _contents(record: Record, listed: Sequence[str], removed: int) -> str:
    now = datetime.now(UTC)
    head = (
        f"Bundle of {record.folder.root.name}, made by fathom {own_version()} at {now:%Y-%m-%d %H:%M} UTC.\n"
        f"It holds no data and no weights. {removed} passages that are secrets or look like one stand as {GONE}.\n"
        "Names of files, of machines and of people may still be in it: look through it before you give it away.\n"
    )
    return "\n".join([head, *listed, ""])


def _members(record: Record, place: Place, findings: Sequence[Finding]) -> Iterator[Member]:
    """The most telling ones first: what comes last is left out where there is too much."""
    folder = record.folder
    yield Member("doctor.json", json.dumps([one.document() for one in findings], indent=1))
    yield Member("why.txt", _why(record))
    yield Member("versions.json", json.dumps(_versions(), indent=1))
    yield Member("environment.json", json.dumps(_environment(place), indent=1))
    yield Member("files.txt", _listing(folder))
    for name in _NAMES:
        yield from _file(folder.root, folder.root / name, _PART)
    for pattern in _PATTERNS:
        newest = sorted(folder.root.glob(pattern), key=_changed, reverse=True)
        for path in newest[:_MOST_FILES]:
            yield from _file(folder.root, path, _PART)
    yield from _file(folder.root, folder.events, _EVENTS)
    logs = sorted(folder.root.glob("logs/*.log"), key=_changed, reverse=True)
    for path in logs[:_MOST_FILES]:
        yield from _file(folder.root, path, _LOG)


def _file(root: Path, path: Path, most: int) -> Iterator[Member]:
    """The end of a plain file, from a whole line on; nothing where there is none."""
    read = _tail(path, most)
    if read is None or not path.resolve().is_relative_to(root.resolve()):
        return
    data, size = read
    cut = size > len(data)
    if cut:
        data = data.partition(b"\n")[2]  # the line that was cut may begin with half a secret
    note = f", the last of {size:,}" if cut else ""
    yield Member(str(path.relative_to(root)), data.decode("utf-8", "replace"), note)


def _tail(path: Path, most: int) -> tuple[bytes, int] | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return None
        file.seek(max(0, found.st_size - most))
        return file.read(most), found.st_size


def _changed(path: Path) -> tuple[float, str]:
    try:
        return path.lstat().st_mtime, path.name
    except OSError:
        return 0.0, path.name


def _why(record: Record) -> str:
    ways = Ways.by_folder(record.job.metadata.name, record.folder.root.name, max(1, record.folder.last_attempt()))
    found = why(record.job, record.status() or JobStatus(), datetime.now(UTC), ways=ways)
    return "\n".join([found.sentence, f"what to do: {found.advice}", *found.details, ""])


def _versions() -> dict[str, object]:
    packages = {one.metadata["Name"]: one.version for one in metadata.distributions()}
    return {
        "fathom": own_version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": dict(sorted(packages.items(), key=lambda one: str(one[0]).lower())),
    }


def _environment(place: Place) -> dict[str, str]:
    return {
        name: GONE if is_secret_name(name) else value
        for name, value in sorted(place.env.items())
        if name.startswith(_SHOWN)
    }


def _listing(folder: RunFolder) -> str:
    """What is in the run's folder, with sizes."""
    lines = []
    for path in sorted(folder.root.rglob("*"))[:2000]:
        try:
            found = path.lstat()
        except OSError:
            continue
        if not stat.S_ISDIR(found.st_mode):
            kind = " (no plain file)" if not stat.S_ISREG(found.st_mode) else ""
            changed = datetime.fromtimestamp(found.st_mtime, UTC)
            lines.append(f"{found.st_size:>14,}  {changed:%Y-%m-%d %H:%M:%S}  {path.relative_to(folder.root)}{kind}")
    return "\n".join([*lines, ""])
