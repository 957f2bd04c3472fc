"""What the API server has of one kind, in all namespaces that are looked after, and by what belongs together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

from orchestrator.kube.cache import Cache
from orchestrator.kube.client import Kube
from orchestrator.kube.resources import Json, Target
from orchestrator.kube.watch import Informer, Rhythm
from orchestrator.launch.cluster.kinds import kept

Group = tuple[str, ...]


class Kind:
    """Objects of one kind, each as `kept`. Threads may share it. What it hands out is shared: change a copy of it."""

    def __init__(
        self,
        kube: Kube,
        target: Target,
        namespaces: Sequence[str] = (),
        *,
        labels: str = "",
        group: Callable[[Json], Group | None] = lambda _: None,
        rhythm: Rhythm = Rhythm(),  # noqa: B008 - frozen
    ) -> None:
        """`namespaces`: empty: all. `group`: what an object belongs to; None: to nothing that anybody asks for."""
        self.target, self._group = target, group
        places = [target.at(one) for one in namespaces] or [target]
        self._informers = [
            Informer(kube, one, labels=labels, rhythm=rhythm, cache=Cache(partial(kept, target))) for one in places
        ]
        self._by_namespace = dict(zip(namespaces, self._informers, strict=False))
        self._lock = threading.Lock()
        self._groups: dict[Group, set[str]] = {}
        self._group_of: dict[str, Group] = {}
        self._handlers: list[Callable[[str, Group | None], None]] = []
        for one in self._informers:
            one.on_change(self._changed)

    def start(self) -> None:
        """Returns at once."""
        for one in self._informers:
            one.start()

    def catch_up(self) -> None:
        """See `Informer.catch_up`."""
        for one in self._informers:
            one.catch_up()

    def stop(self) -> None:
        for one in self._informers:
            one.stop()

    @property
    def synced(self) -> bool:
        """Whether all that there is, is known. Of a kind that is not installed there is nothing."""
        return all(one.synced.is_set() or one.missing for one in self._informers)

    @property
    def missing(self) -> bool:
        """Whether the kind is not installed."""
        return any(one.missing for one in self._informers)

    @property
    def problem(self) -> str:
        """Why the server is not followed now; empty: it is."""
        return next((one.problem for one in self._informers if one.problem), "")

    def on_change(self, handler: Callable[[str, Group | None], None]) -> None:
        """Called with key and group of whatever is new, changed or gone; it must be quick."""
        self._handlers.append(handler)

    def get(self, key: str) -> Json | None:
        """By `namespace/name`; None: not there."""
        informer = self._by_namespace.get(key.partition("/")[0]) if self._by_namespace else self._informers[0]
        return None if informer is None else informer.cache.get(key)

    def all(self) -> list[Json]:
        """In no order."""
        return [found for one in self._informers for found in one.cache.all()]

    def of(self, group: Group) -> list[Json]:
        """All that belong to it, by their names."""
        with self._lock:
            keys = sorted(self._groups.get(group, ()))
        return [found for key in keys if (found := self.get(key)) is not None]

    def _changed(self, key: str) -> None:
        found = self.get(key)
        with self._lock:
            before = self._group_of.pop(key, None)
            group = before if found is None else self._group(found)
            if before is not None and (found is None or before != group):
                self._groups[before].discard(key)
                if not self._groups[before]:
                    del self._groups[before]
            if found is not None and group is not None:
                self._group_of[key] = group
                self._groups.setdefault(group, set()).add(key)
        for handler in self._handlers:
            handler(key, group)
