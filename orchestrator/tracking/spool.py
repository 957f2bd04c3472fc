"""Points that are still to be sent. Pure: what is sent already, `Reached` says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from orchestrator.launch.events import Event
from orchestrator.tracking.points import Fold, Point
from orchestrator.tracking.reached import Reached

_EVENTS_AT_ONCE = 200


class Spool:
    """Points of the events of one job that are still to be sent. Kept from call to call: each event is folded once."""

    def __init__(self, fold: Fold, say: Callable[[str], None]) -> None:
        self.fold, self._say = fold, say
        self._taken = 0
        self._waiting: deque[tuple[Event, dict[int | None, list[Point]]]] = deque()
        self._dropped: dict[str, int] = {}

    def knows(self, reached: Reached) -> bool:
        """False if what was dropped here as sent is missing there: then a new spool has to be filled."""
        return all(reached.seen.get(source, 0) >= seq for source, seq in self._dropped.items())

    def fill(self, events: Sequence[Event], reached: Reached) -> None:
        """Take in what is new; `events` only ever grows."""
        for event in events[self._taken :]:
            self._waiting.append((event, self.fold.add(event)))
            for remark in [] if self._is_sent(event, reached) else self.fold.remarks:
                self._say(remark)
        self._taken = len(events)

    def next(self, reached: Reached) -> list[tuple[Event, dict[int | None, list[Point]]]]:
        """Some that are not sent yet; empty if all are."""
        while self._waiting and self._is_sent(self._waiting[0][0], reached):
            self.drop(1)
        some = [self._waiting[at] for at in range(min(_EVENTS_AT_ONCE, len(self._waiting)))]
        return [one for one in some if not self._is_sent(one[0], reached)]

    def drop(self, count: int) -> None:
        """The first ones are sent."""
        for _ in range(count):
            event, _points = self._waiting.popleft()
            self._dropped[source(event)] = max(event.seq, self._dropped.get(source(event), 0))

    def _is_sent(self, event: Event, reached: Reached) -> bool:
        return event.seq <= reached.seen.get(source(event), 0)


def source(event: Event) -> str:
    """Within which `seq` increases."""
    return f"{event.attempt}/{event.incarnation}"
