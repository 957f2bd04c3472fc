"""The classes of held time: which stretch was training, saving, recovering, lost. Pure; no prices here.

Called by `cost.ledger` only. Invariant: the pieces of a held interval follow each other without gap or
overlap from its start to its end, whatever the events say; event times are clamped and made to run forward, past one
that all by itself is ahead of the next.

queued       as a cluster's launcher says (`Phase`; that of one machine has none): waiting for devices, paid or not
pulling      as the launcher says: images are fetched
starting     from the start of the first interval to its first progress
productive   up to a progress event, from the one before; while the attempt goes on, up to now
checkpoint   the seconds that training stood still for a checkpoint, taken out before its commit, which may be
             several steps later than the standstill
recovering   from the last sign of life before a restart to the first progress after it, and from that of a stalled
             attempt to its end
lost         was productive, until a restart resumed from an older step
idle         after the last progress, until the devices were given back

The launcher's phases divide only time in which no step was done: where it and the workers disagree about work, the
workers' word stands. Waste has a cause: why the workers had to start again, or why the attempt ended.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from orchestrator.launch.events import (
    ASIDES,
    Anomaly,
    CheckpointCommitted,
    Ended,
    Event,
    FailureClass,
    Progress,
    Started,
    WorkersLost,
)

Waiting = Literal["queued", "pulling"]
TimeClass = Literal["queued", "pulling", "starting", "productive", "checkpoint", "recovering", "lost", "idle"]

ROLLBACK, FINISHED = "rollback", "finished"
"""Causes that are no failure class: workers went back by themselves (`anomalies`); the attempt had nothing to do."""


def _is_time(seconds: float) -> bool:
    """Between the years 1 and 9999; NaN is not."""
    return -62_135_596_800 <= seconds < 253_402_300_800


@dataclass(frozen=True)
class Held:
    """An interval in which an attempt held its devices, by our own clock; unix seconds."""

    attempt: int
    start: float
    end: float

    def __post_init__(self) -> None:
        if not (_is_time(self.start) and _is_time(self.end)):
            raise ValueError(f"attempt {self.attempt} is held from {self.start} to {self.end}: not a time")
        if self.end < self.start:
            raise ValueError(f"attempt {self.attempt} is held until {self.end}, before its start {self.start}")


@dataclass(frozen=True)
class Phase:
    """What an attempt waited for before its workers could start, by the word of its launcher; unix seconds."""

    attempt: int
    kind: Waiting
    start: float
    end: float

    def __post_init__(self) -> None:
        if not (_is_time(self.start) and _is_time(self.end)) or self.end < self.start:
            raise ValueError(f"attempt {self.attempt} is {self.kind} from {self.start} to {self.end}: not a time")


class Piece(NamedTuple):
    """A stretch of one class; microseconds since 1970. `to_step`: the step that a productive piece led to.

    A tuple, because a long run has millions, and they are made anew whenever its ledger is.
    """

    attempt: int
    time_class: TimeClass
    start: int
    end: int
    to_step: int | None = None
    cause: str | None = None
    """Of waste: a failure class, or `ROLLBACK` or `FINISHED`."""
    held: bool = True
    """False for waiting that nobody pays for."""


@dataclass(frozen=True)
class Timeline:
    """Pieces in order of the held intervals, unpaid waiting after them, and how far training really got."""

    pieces: list[Piece]
    step: int
    tokens: int


def timeline(events: Iterable[Event], held: Sequence[Held], phases: Sequence[Phase] = ()) -> Timeline:
    """Divides all held intervals; intervals that overlap (two incarnations) are divided each by itself."""
    order = sorted(held, key=lambda one: (one.start, one.attempt, one.end))
    shares = _share_out(_in_order(events, order), order)
    walk = _Walk()
    for index, (one, mine) in enumerate(zip(order, shares, strict=True)):
        walk.interval(one, mine, order[index + 1] if index + 1 < len(order) else None)
    waits = _waits(phases)
    pieces = [part for piece in _merged(walk.pieces) for part in _divided(piece, waits)]
    return Timeline(_merged(pieces) + _unpaid(waits, order), walk.step, walk.tokens)


def _waits(phases: Sequence[Phase]) -> list[Piece]:
    """Phases as pieces that do not overlap within an attempt: a later one ends the one before it."""
    ordered = sorted(phases, key=lambda one: (one.attempt, one.start, one.end, one.kind))
    waits: list[Piece] = []
    for one in ordered:
        piece = Piece(one.attempt, one.kind, _microseconds(one.start), _microseconds(one.end), held=False)
        if waits and waits[-1].attempt == one.attempt and waits[-1].end > piece.start:
            before = waits[-1]
            piece = piece._replace(end=max(piece.end, before.end))  # no moment of either is forgotten
            waits[-1] = before._replace(end=piece.start)
        waits.append(piece)
    return [wait for wait in waits if wait.start < wait.end]


def _divided(piece: Piece, waits: Sequence[Piece]) -> list[Piece]:
    """A piece with the launcher's waits in it; only where no step was done."""
    if piece.time_class not in ("starting", "recovering", "idle"):
        return [piece]
    parts, at = [], piece.start
    for wait in waits:
        start, end = max(wait.start, at), min(wait.end, piece.end)
        if wait.attempt != piece.attempt or end <= start:
            continue
        parts += [piece._replace(start=at, end=start), wait._replace(start=start, end=end, held=True)]
        at = end
    return [*parts, piece._replace(start=at)]


def _unpaid(waits: Sequence[Piece], held: Sequence[Held]) -> list[Piece]:
    """What is left of the waits outside of all intervals of their attempts."""
    left = list(waits)
    for one in held:
        start, end = _microseconds(one.start), _microseconds(one.end)
        left = [
            part
            for wait in left
            for part in (
                [wait]
                if wait.attempt != one.attempt
                else [wait._replace(end=min(wait.end, start)), wait._replace(start=max(wait.start, end))]
            )
            if part.start < part.end
        ]
    return left


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _in_order(events: Iterable[Event], held: Sequence[Held]) -> list[tuple[int, Event]]:
    """(time, event) with time running forward in each attempt; `held` in order of its starts.

    What an older incarnation says after a newer one has spoken is left out, and so is what was posted twice. So are
    the kinds that say nothing of training: others write them, by clocks of their own and at any later time.
    """
    groups: dict[tuple[int, str], dict[int, Event]] = {}
    for event in events:
        if isinstance(event, ASIDES):
            continue
        groups.setdefault((event.attempt, event.incarnation), {}).setdefault(event.seq, event)
    sequences = [[group[seq] for seq in sorted(group)] for group in groups.values()]
    sequences.sort(key=lambda sequence: (sequence[0].attempt, sequence[0].time, sequence[0].incarnation))
    begins = {one.attempt: _microseconds(one.start) for one in reversed(held)}
    ordered: list[tuple[int, Event]] = []
    for index, sequence in enumerate(sequences):
        follower = sequences[index + 1] if index + 1 < len(sequences) else None
        fenced = follower is not None and follower[0].attempt == sequence[0].attempt
        now = begins.get(sequence[0].attempt, 0)
        for event, following in zip(sequence, [*sequence[1:], sequence[-1]], strict=True):
            time = event.time
            if now <= _microseconds(following.time) < _microseconds(time):
                time = following.time  # one clock that is ahead, or all that follows would have no time
            if fenced and follower is not None and time >= follower[0].time:
                break
            now = max(now, _microseconds(time))
            ordered.append((now, event))
    return ordered


def _share_out(events: Sequence[tuple[int, Event]], held: Sequence[Held]) -> list[list[tuple[int, Event]]]:
    """Each event goes to the interval of its attempt that had begun last by then, or to the first one."""
    shares: list[list[tuple[int, Event]]] = [[] for _ in held]
    starts: dict[int, list[tuple[int, int]]] = {}
    for index, one in enumerate(held):
        starts.setdefault(one.attempt, []).append((_microseconds(one.start), index))
    for now, event in events:
        if mine := starts.get(event.attempt):
            begun = bisect.bisect_right(mine, (now, len(held)))
            shares[mine[max(0, begun - 1)][1]].append((now, event))
    return shares


@dataclass
class _Walk:
    """Walks through the intervals; `opened` is where the stretch begins that has no class yet."""

    pieces: list[Piece] = field(default_factory=list)
    step: int = 0
    tokens: int = 0
    begun: bool = False
    attempt: int = 0
    limits: tuple[int, int] = (0, 0)
    opened: int = 0
    life: int = 0
    saves: list[tuple[int, int]] = field(default_factory=list)
    phase: TimeClass = "starting"
    seen: bool = False
    """Whether the workers have said anything of their training in this interval."""
    lost: bool = False
    """Whether the workers must have begun again without having said so yet."""
    cause: str | None = None
    """Why the workers start again, or will: of what is lost and of the time until the next step."""
    floor: int = 0
    """Number of pieces from which nothing can be taken back: of earlier intervals, or taken already."""

    def interval(self, held: Held, events: Sequence[tuple[int, Event]], following: Held | None) -> None:
        """Divides one held interval."""
        self.attempt = held.attempt
        self.limits = (_microseconds(held.start), _microseconds(held.end))
        self.opened = self.life = self.limits[0]
        self.saves, self.floor = [], len(self.pieces)
        self.phase = "recovering" if self.begun else "starting"
        self.lost, self.begun, self.seen = self.begun, True, False
        ended = None
        for time, event in events:
            now = min(max(time, self.opened), self.limits[1])
            if isinstance(event, Started):
                self._started(event.step, event.tokens, now)
            elif isinstance(event, Progress):
                self._progress(event, now)
            elif isinstance(event, CheckpointCommitted):
                self._saved(_microseconds(event.seconds), now)
            elif isinstance(event, WorkersLost):
                self.cause, self.lost = self.cause or FailureClass.WORKER_LOST.value, True
            elif isinstance(event, Anomaly):
                self.cause = ROLLBACK if event.action in ("replay", "skip") else self.cause
            elif isinstance(event, Ended):
                ended = event
                self._ended(now)
                self.cause = _why(event)
        if ended is None and following is not None and self.cause is None:
            # The same attempt goes on on other machines, or the next one follows an attempt that nobody saw end.
            moved = following.attempt == held.attempt
            self.cause = (FailureClass.PREEMPTED if moved else FailureClass.DRIVER_LOST).value
        self._tail(ended, last=following is None)

    def _started(self, step: int, tokens: int, now: int) -> None:
        if self.seen:
            # A restart inside the attempt; a start that never got to a step was alive until its last sign.
            if self.phase == "starting":
                self._close(self.life, "starting")
            self.phase = "recovering"
            self.cause = self.cause or FailureClass.WORKER_LOST.value
        if step < self.step:
            self._lose(step)
        self.step, self.tokens = step, tokens
        self.life, self.seen, self.lost = now, True, False

    def _progress(self, event: Progress, now: int) -> None:
        # An evaluation may report the same step once more; an older one is a straggler and divides nothing, unless the
        # workers began again and their word of it never arrived.
        if event.step < self.step:
            if not self.lost:
                return
            self._started(event.step - 1, 0, now)
        self.seen, self.lost = True, False
        self.step, self.tokens = event.step, max(self.tokens, event.tokens)
        self._close(now, self.phase, event.step)
        self.phase, self.cause = "productive", None
        self.life = now

    def _saved(self, length: int, now: int) -> None:
        """What is longer than the open stretch happened in productive pieces before it: they are shortened."""
        taken = sum(end - start for start, end in self.saves)
        here = min(length, max(0, now - self.opened - taken))
        moved, start = [(now - here, now)], now - here
        for begin, end in reversed(self.saves):  # earlier ones make room: no microsecond belongs to two
            back = max(0, end - start)
            start = begin - back
            moved.append((start, end - back))
        self.saves = moved[::-1]
        self._take_back(length - here)
        self.life = now

    def _take_back(self, length: int) -> None:
        """Turns the newest productive microseconds of this interval into those of a checkpoint."""
        at = len(self.pieces)
        while length > 0 and at > self.floor:
            at -= 1
            piece = self.pieces[at]
            if piece.time_class == "checkpoint":
                continue
            if piece.time_class != "productive":
                break
            cut = max(piece.start, piece.end - length)
            length -= piece.end - cut
            self.pieces[at : at + 1] = [piece._replace(end=cut), Piece(self.attempt, "checkpoint", cut, piece.end)]
        if length > 0:
            self.floor = len(self.pieces)

    def _ended(self, now: int) -> None:
        # Until the attempt ended it was still starting (or recovering); what comes after is teardown.
        if self.phase in ("starting", "recovering"):
            self._close(now, self.phase)
            self.phase = "idle"

    def _tail(self, ended: Ended | None, *, last: bool) -> None:
        """What is left of the interval: idle, unless training had yet to begin, was cut off, had stalled or goes on."""
        cut_off = not last and (ended is None or ended.outcome == "failed")
        cut_off |= ended is not None and ended.failure_class is FailureClass.STALLED
        if self.phase in ("starting", "recovering"):
            self._close(self.limits[1], self.phase)
        elif last and ended is None:
            self._close(self.limits[1], "recovering" if self.lost else "productive")
        else:
            self._close(self.limits[1], "recovering" if cut_off else "idle")

    def _close(self, until: int, time_class: TimeClass, step: int | None = None) -> None:
        """Gives the open stretch its class, less the checkpoints in it."""
        to_step = step if time_class == "productive" else None
        cause = self.cause if time_class in ("recovering", "idle") else None
        at = self.opened
        for start, end in self.saves:
            start, end = max(start, at), min(end, until)
            if end <= start:
                continue
            self.pieces.append(Piece(self.attempt, time_class, at, start, to_step, cause))
            self.pieces.append(Piece(self.attempt, "checkpoint", start, end))
            at = end
        self.pieces.append(Piece(self.attempt, time_class, at, until, to_step, cause))
        self.opened, self.saves = until, [save for save in self.saves if save[1] > until]

    def _lose(self, resumed: int) -> None:
        """Work beyond the step that the restart resumed from is done again."""
        self.pieces = [
            piece._replace(time_class="lost", to_step=None, cause=self.cause)
            if piece.to_step is not None and piece.to_step > resumed
            else piece
            for piece in self.pieces
        ]


def _why(ended: Ended) -> str:
    if ended.failure_class is not None:
        return ended.failure_class.value
    return FINISHED if ended.outcome == "succeeded" else FailureClass.UNKNOWN.value


def _merged(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours of one class become one piece; empty ones vanish."""
    merged: list[Piece] = []
    begin, before = 0, None
    for piece in pieces:
        if piece.end == piece.start:
            continue
        if before is not None and (before.end != piece.start or _kind(before) != _kind(piece)):
            merged.append(before._replace(start=begin))
            before = None
        if before is None:
            begin = piece.start
        before = piece
    return merged if before is None else [*merged, before._replace(start=begin)]


def _kind(piece: Piece) -> tuple[int, TimeClass, str | None, bool]:
    return piece.attempt, piece.time_class, piece.cause, piece.held
