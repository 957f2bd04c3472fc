"""Objects of one kind as they were last seen, by `namespace/name`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from orchestrator.kube.resources import Json, key_of


def without_managed_fields(found: Json) -> Json:
    """Who wrote which field takes more room than the object, and nobody here asks."""
    metadata = {key: value for key, value in found["metadata"].items() if key != "managedFields"}
    return found | {"metadata": metadata}


class Cache:
    """Threads may share it. What it hands out is shared, too: read it, change a copy."""

    def __init__(self, trim: Callable[[Json], Json] = without_managed_fields) -> None:
        """`trim`: what is kept of each object."""
        self._trim = trim
        self._lock = threading.Lock()
        self._objects: dict[str, Json] = {}

    def get(self, key: str) -> Json | None:
        """None: not there."""
        with self._lock:
            return self._objects.get(key)

    def all(self, namespace: str | None = None) -> list[Json]:
        """Of one namespace or of all, in no order."""
        with self._lock:
            found = list(self._objects.items())
        return [one for key, one in found if namespace is None or key.startswith(f"{namespace}/")]

    def __len__(self) -> int:
        with self._lock:
            return len(self._objects)

    # ------------------------------------------------------------------ by the watch alone
    def put(self, found: Json) -> str | None:
        """-> the key if that is news."""
        key, kept = key_of(found), self._trim(found)
        with self._lock:
            news = _version(self._objects.get(key)) != _version(kept)
            self._objects[key] = kept
        return key if news else None

    def remove(self, found: Json) -> str | None:
        """-> the key if it was there."""
        key = key_of(found)
        with self._lock:
            return key if self._objects.pop(key, None) is not None else None

    def replace(self, found: Iterable[Json]) -> list[str]:
        """With a whole list; -> keys of what is new, changed or gone."""
        new = {key_of(one): self._trim(one) for one in found}
        with self._lock:
            old, self._objects = self._objects, new
        changed = [key for key, one in new.items() if _version(old.get(key)) != _version(one)]
        return changed + [key for key in old if key not in new]


def _version(found: Json | None) -> tuple[str, str] | None:
    if found is None:
        return None
    metadata = found["metadata"]
    return str(metadata.get("uid")), str(metadata.get("resourceVersion"))
