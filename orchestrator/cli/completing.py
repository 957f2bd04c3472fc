"""Names that the shell completes: asked of the service, or else read from the folders of runs.

Called while a person waits for the Tab key: never raises, never prints, and takes a moment only. What was found is kept
for some seconds in the home, since Tab is pressed several times in a row.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.settings import Settings

KEPT_SECONDS = 5.0
TIMEOUT_SECONDS = 0.5
_MOST = 500
_CACHE = ".completion.json"


def job_names(incomplete: str) -> list[str]:
    """Names of jobs that begin so, and folders of runs where the word is a path; for `autocompletion` of arguments."""
    try:
        from orchestrator.settings import Settings

        names = _names(Settings.load())
    except Exception:  # noqa: BLE001 - whatever is wrong here, a message would end up in the line that is being typed
        return []
    return [name for name in names if name.startswith(incomplete)]


def _names(settings: Settings) -> list[str]:
    cache = settings.home / _CACHE
    kept = _kept(cache)
    if kept is not None:
        return kept
    found = _of_service(settings)
    names = sorted(set(_of_folders(settings.home) if found is None else found))[:_MOST]
    with suppress(OSError):
        if settings.home.is_dir():
            from orchestrator.controller.record import replace_file

            replace_file(cache, json.dumps({"at": time.time(), "names": names}))
    return names


def _kept(cache: Path) -> list[str] | None:
    try:
        found = json.loads(cache.read_text())
        fresh = 0 <= time.time() - found["at"] < KEPT_SECONDS
        return [str(name) for name in found["names"]] if fresh else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_service(settings: Settings) -> list[str] | None:
    """None where no service answers in time."""
    from orchestrator.cli.asking import ask, find_service

    service = find_service(settings.home)
    if service is None:
        return None
    answer = ask(service, f"/v1/jobs?limit={_MOST}", timeout=TIMEOUT_SECONDS)
    if answer is None or answer.status != 200:
        return None
    try:
        return [str(item["metadata"]["name"]) for item in json.loads(answer.body)["items"]]
    except (ValueError, KeyError, TypeError):
        return None


def _of_folders(home: Path) -> list[str]:
    """By the names of the folders, which end with the time at which they were made."""
    return [path.parent.name.rsplit("-", 2)[0] for path in home.glob("*/job.json")]
