"""Objects of one kind as they were last seen, by `namespace/name`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from orchestrator.kube.resources import Json, key_of

Version = tuple[str, str]


def without_managed_fields(found: Json) -> Json:
    """Who wrote which field takes more room than the object, and nobody here asks."""
    metadata = {key: value for key, value in found["metadata"].items() if key != "managedFields"}
    return found | {"metadata": metadata}


def version_of(found: Json) -> Version:
    """By which two states of one object are told apart."""
    metadata = found["metadata"]
    return str(metadata.get("uid")), str(metadata.get("resourceVersion"))


class Cache:
    """Threads may share it. What it hands out is shared, too: read it, change a copy."""

    def __init__(
        self,
        trim: Callable[[Json], Json] = without_managed_fields,
        version: Callable[[Json], Version] = version_of,
    ) -> None:
        """`trim`: what is kept of each object; `version`: what `version_of` says of it, of what is kept."""
        self._trim, self._version = trim, version
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
        key = key_of(found)
        before = self.get(key)
        kept = self._kept(found, before)
        with self._lock:
            self._objects[key] = kept
        return None if kept is before else key

    def remove(self, found: Json) -> str | None:
        """-> the key if it was there."""
        key = key_of(found)
        with self._lock:
            return key if self._objects.pop(key, None) is not None else None

    def replace(self, found: Iterable[Json]) -> list[str]:
        """With a whole list; -> keys of what is new, changed or gone."""
        new: dict[str, Json] = {}
        changed: list[str] = []
        for one in found:
            key = key_of(one)
            before = self.get(key)
            new[key] = self._kept(one, before)
            if new[key] is not before:
                changed.append(key)
        with self._lock:
            old, self._objects = self._objects, new
        return changed + [key for key in old if key not in new]

    def _kept(self, found: Json, before: Json | None) -> Json:
        """That of before, if it is the same: a list brings all of them again, and nearly none of them is new."""
        if before is not None and self._version(before) == version_of(found):
            return before
        return self._trim(found)
