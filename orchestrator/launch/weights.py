"""Where a run's final weights lie: the only answer to it, for whoever reads them."""

from __future__ import annotations

import json

from model.files import local_path, read_file
from model.headers import is_weights
from orchestrator.errors import UsageError
from orchestrator.launch.base import RunFolder

_MAX_RESOLVED = 1 << 26


def find_weights(source: str) -> str | None:
    """The folder or URL that holds whole weights: `source` itself, or the final ones of the run whose folder or storage
    it is; None if there are none yet.

    A run's weights lie in its storage, wherever that is, or, where the folder was moved with all that is in it, in the
    folder. UsageError if the run's record cannot be read; errors of fsspec as they come.
    """
    source = source.rstrip("/") or source
    if is_weights(source):
        return source
    places = (f"{root.rstrip('/')}/weights" for root in (_storage(source), source) if root is not None)
    return next((place for place in places if is_weights(place)), None)


def _storage(source: str) -> str | None:
    """Of the newest attempt, if `source` is the folder of a run that was ever started. Only this of the record is
    looked at, so that weights can be read whichever version wrote the rest."""
    path = local_path(source)
    if path is None or not (folder := RunFolder(path)).job.exists() or not (attempt := folder.last_attempt()):
        return None
    record = folder.resolved(attempt)
    try:
        return str(json.loads(read_file(record, _MAX_RESOLVED))["storage_uri"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{record} does not say where the run's storage is: {type(error).__name__}: {error}") from None
