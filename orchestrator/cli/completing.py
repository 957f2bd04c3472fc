"""Names that the shell completes: asked of the service, or else read from the folders of runs.

Called while a person waits for the Tab key: never raises, never prints, and takes a moment only. What was found is kept
for some seconds in the home, since Tab is pressed several times in a row.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

KEPT_SECONDS = 5.0
TIMEOUT_SECONDS = 0.5
_MOST = 500
_CACHE = ".completion.json"


def job_names(incomplete: str) -> list[str]:
    """Names of jobs that begin so; for `autocompletion` of arguments."""
    try:
        from orchestrator.settings import Settings

        names = _names(Settings.load().home)
    except Exception:  # noqa: BLE001 - whatever is wrong here, a message would end up in the line that is being typed
        return []
    return [name for name in names if name.startswith(incomplete)]


def _names(home: Path) -> list[str]:
    cache = home / _CACHE
    kept = _kept(cache)
    if kept is not None:
        return kept
    found = _of_service()
    names = sorted(set(_of_folders(home) if found is None else found))[:_MOST]
    with suppress(OSError):
        if home.is_dir():
            from orchestrator.launch.files import replace_file

            replace_file(cache, json.dumps({"at": time.time(), "names": names}))
    return names


def _kept(cache: Path) -> list[str] | None:
    try:
        found = json.loads(cache.read_text())
        fresh = 0 <= time.time() - found["at"] < KEPT_SECONDS
        return [str(name) for name in found["names"]] if fresh else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_service() -> list[str] | None:
    """None where no service answers in time. Jobs of other teams as TEAM/NAME, as commands take them."""
    from orchestrator.client.find import find
    from orchestrator.doctor.ask import ask
    from orchestrator.errors import FathomError

    if os.environ.get("FATHOM_CONTEXT"):
        return None  # a cluster takes longer to ask than anybody waits for a name
    try:
        service = find()
        answer = ask(service.url, f"/v1/jobs?limit={_MOST}", token=service.token, timeout=TIMEOUT_SECONDS)
        found = [item["metadata"] for item in json.loads(answer.body)["items"]] if answer.status == 200 else None
        return None if found is None else [_written(one["namespace"], one["name"]) for one in found]
    except (FathomError, OSError, ValueError, KeyError, TypeError):
        return None


def _written(team: str, name: str) -> str:
    return name if team == "default" else f"{team}/{name}"


def _of_folders(home: Path) -> list[str]:
    """By the names of the folders, which end with the time at which they were made."""
    from orchestrator.launch.base import RECORDS

    return [path.parent.name.rsplit("-", 2)[0] for path in home.glob(RECORDS)]
