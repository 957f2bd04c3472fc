"""How a running job speaks and is spoken to: events as JSON lines, and the control file with the answer.

Rank 0 and the driver append; the local launcher (or the controller) reads and answers. Invariants: within one
(job, attempt, incarnation) `seq` is unique and increasing, whoever appends; a torn line is never read as an
event and never damages its neighbours.
"""

from __future__ import annotations

import fcntl
import math
import os
import secrets
import time as clock
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from model.config import Frozen
from orchestrator.launch.failure import FailureClass as FailureClass
from orchestrator.launch.files import in_short
from orchestrator.schema import Money

_MAX_MESSAGE = 4000

Count = Annotated[int, Field(ge=0)]
Instant = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Identifier = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Wire(Frozen):
    """Travels between processes of different versions: unknown fields are ignored, not refused."""

    model_config = ConfigDict(
        extra="ignore",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


def _finite_only(value: object) -> object:
    """Metrics without those that have no JSON form."""
    if not isinstance(value, dict):
        return value
    return {name: number for name, number in value.items() if not isinstance(number, float) or math.isfinite(number)}


class _Event(Wire):
    job: Identifier
    """uid of the job."""
    attempt: int = Field(ge=1)
    incarnation: Identifier
    """One Ray cluster of the attempt; fences late writers."""
    seq: int = Field(ge=1)
    time: float = Field(ge=0)
    """Unix seconds by the writer's clock."""
    version: Literal[1] = 1


class Started(_Event):
    """Workers are up and the model is loaded."""

    kind: Literal["started"] = "started"
    step: Count
    tokens: Count
    world_size: int = Field(ge=1)
    resumed_from: str | None = Field(None, max_length=2048)
    """The checkpoint it goes on from; None for a fresh start."""
    arithmetic: str = Field("", max_length=_MAX_MESSAGE)
    """What matrix products run on, and why; empty from writers that did not say."""


class Progress(_Event):
    """An optimizer step is done."""

    kind: Literal["progress"] = "progress"
    step: Count
    tokens: Count
    metrics: dict[str, float] = Field(default={}, max_length=200)
    """By the names of `model.metrics`; a value that is not finite has no JSON form and is left out."""
    samples: int | None = Field(None, ge=0)
    """Checksum of the sequences of this step: equal sequences, equal number. Not a metric."""

    _finite = field_validator("metrics", mode="before")(_finite_only)


class CheckpointCommitted(_Event):
    """A checkpoint's manifest is written."""

    kind: Literal["checkpoint-committed"] = "checkpoint-committed"
    step: Count
    uri: str = Field(max_length=2048)
    size_bytes: Count
    seconds: float = Field(ge=0)
    """Time that training stood still for it."""


class WorkersLost(_Event):
    """Workers of this attempt died or gave up; Ray starts all of them again."""

    kind: Literal["workers-lost"] = "workers-lost"
    message: str = Field(max_length=_MAX_MESSAGE)
    nodes: tuple[Annotated[str, Field(max_length=253)], ...] = Field((), max_length=64)
    """Of the machines that may be to blame; none where that is not known, or so many went at once that it is not
    theirs."""


class Anomaly(_Event):
    """A step's loss is not finite or far above those before it; see `model.anomaly`."""

    kind: Literal["anomaly"] = "anomaly"
    step: Count
    data_step: Count
    fault: str = Field(max_length=63)
    value: float | None = None
    score: float | None = None
    action: str = Field(max_length=63)
    """What happens now; after "replay" and "skip" the workers start again from the last checkpoint."""
    message: str = Field(max_length=_MAX_MESSAGE)


class Warning_(_Event):
    """Something that a person should know and that does not end the run."""

    kind: Literal["warning"] = "warning"
    message: str = Field(max_length=_MAX_MESSAGE)


class LogPiece(_Event):
    """A piece of a rank's log is in the job's storage."""

    kind: Literal["log-piece"] = "log-piece"
    rank: Count
    name: str = Field(max_length=1024)
    offset: Count
    """Where the piece begins in the whole log, in bytes."""
    size_bytes: Count


class MachineLoad(_Event):
    """How busy one machine of the attempt is: a sign of life of the machine, not of training."""

    kind: Literal["machine-load"] = "machine-load"
    node: str = Field(max_length=253)
    metrics: dict[str, float] = Field(default={}, max_length=200)
    """By MLflow's names of system metrics without the prefix, e.g. `cpu_utilization_percentage`."""

    _finite = field_validator("metrics", mode="before")(_finite_only)


class Evaluated(_Event):
    """Somebody evaluated the state after `step`, at any later time and outside of training."""

    kind: Literal["evaluated"] = "evaluated"
    step: Count
    tokens: Count
    metrics: dict[str, float] = Field(default={}, max_length=1000)
    """By the names of `model.metrics`, e.g. `eval/bits_per_byte` or `eval/arc/acc`."""

    _finite = field_validator("metrics", mode="before")(_finite_only)


class BudgetNote(_Event):
    """The launcher's word on the money of the run: no sign of life of the attempt that it stands beside."""

    kind: Literal["budget"] = "budget"
    about: Literal["share-spent", "limit-changed", "price-changed"]
    limit: Money | None = None
    """Of the budget, in force from now on."""
    spent: Money | None = None
    """When this was said, to six decimals."""
    share: float | None = Field(None, gt=0, lt=1)
    """The one of `budget.warnAt` that is reached."""
    message: str = Field(max_length=_MAX_MESSAGE)


class Ended(_Event):
    """The attempt is over; this, in the job's storage, is the truth of how."""

    kind: Literal["ended"] = "ended"
    outcome: Literal["succeeded", "stopped", "failed"]
    failure_class: FailureClass | None = None
    """None where the outcome is `succeeded`."""
    message: str = Field("", max_length=_MAX_MESSAGE)
    step: Count | None = None
    """The last step that is done, where known."""


Event = Annotated[
    Started
    | Progress
    | CheckpointCommitted
    | WorkersLost
    | Anomaly
    | Warning_
    | LogPiece
    | MachineLoad
    | Evaluated
    | BudgetNote
    | Ended,
    Field(discriminator="kind"),
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)

ASIDES = (MachineLoad, Evaluated, BudgetNote)
"""Kinds that say nothing of training: others write them, by clocks of their own and at any later time."""


class HardDeadline(Wire):
    """Until when the money of a running attempt lasts; of two for one incarnation the higher number counts."""

    number: int = Field(ge=0)
    incarnation: Identifier
    stop: Instant
    """Unix time from which on a final checkpoint is due."""
    end: Instant
    """What has not ended by itself is ended by force."""
    limit: Instant
    """The money is gone."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.stop <= self.end <= self.limit:
            raise ValueError(f"stop {self.stop}, end {self.end} and limit {self.limit} must follow each other")
        return self


class _Answer(Wire):
    """Nonsense in the deadline costs the deadline, not the order that it came with."""

    hard_deadline: HardDeadline | None = None
    """Newer than the one that the driver knows: the limit was changed, the price, or what stopping takes."""
    nonsense: str = Field("", exclude=True)
    """What was wrong with the deadline."""

    @model_validator(mode="before")
    @classmethod
    def _without_nonsense(cls, found: Any) -> Any:  # noqa: ANN401 - whatever a file holds
        offered = found.get("hardDeadline") if isinstance(found, dict) else None
        if offered is None:
            return found
        try:
            HardDeadline.model_validate(offered)
        except ValidationError as error:
            return {**found, "hardDeadline": None, "nonsense": f"hardDeadline {offered}: {in_short(error)}"[:1000]}
        return found


class Continue(_Answer):
    """Go on."""

    kind: Literal["continue"] = "continue"


class CheckpointAndStop(_Answer):
    """Write a final checkpoint and end."""

    kind: Literal["checkpoint-and-stop"] = "checkpoint-and-stop"
    deadline: float
    """Unix time by which the process must have ended."""
    reason: str = Field("", max_length=_MAX_MESSAGE)


Answer = Annotated[Continue | CheckpointAndStop, Field(discriminator="kind")]
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


@dataclass(frozen=True)
class Scan:
    """Complete lines of an event file from some offset on."""

    events: list[Event]
    offset: int
    """Where to go on."""
    skipped: int
    """Complete lines that are no event of this version (torn by a crash, or from a newer writer)."""


def scan(path: Path, offset: int = 0, most: int = -1) -> Scan:
    """Read events from byte `offset`; a last line without its newline waits for the next call.

    A missing file is an empty one. A file shorter than `offset` was replaced: it is read from its beginning. `most`
    bounds the bytes of one call; -1: all. A line that is longer than that is no event.
    """
    try:
        with path.open("rb") as stream:
            if offset > stream.seek(0, os.SEEK_END):
                offset = 0
            stream.seek(offset)
            data = stream.read(most)
    except FileNotFoundError:
        return Scan([], 0, 0)
    complete = data[: data.rfind(b"\n") + 1]
    if not complete and len(data) == most:
        return Scan([], offset + most, 0)  # its end, which is none either, is counted
    events, skipped = [], 0
    for line in complete.split(b"\n")[:-1]:
        try:
            events.append(_EVENT.validate_json(line))
        except ValidationError:
            skipped += 1
    return Scan(events, offset + len(complete), skipped)


class EventLog:
    """Appends to one event file; any number of processes, and threads of one, may do so at once.

    Each look reads only what was appended since the one before: keep a log that is used often (`shared_log`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._last: dict[tuple[str, int, str], int] = {}

    def append(
        self,
        kind: str,
        *,
        job: str,
        attempt: int,
        incarnation: str,
        time: float | None = None,
        **fields: Any,  # noqa: ANN401 - checked by the event's own class
    ) -> Event:
        """Write one event with the next `seq` and return it; ValidationError if the fields are wrong."""
        if isinstance(fields.get("message"), str):
            fields["message"] = fields["message"][:_MAX_MESSAGE]
        keys = {"kind": kind, "job": job, "attempt": attempt, "incarnation": incarnation}
        content = fields | keys | {"time": clock.time() if time is None else time}
        _EVENT.validate_python(content | {"seq": 1})  # before the file is touched
        with appending(self.path) as descriptor:
            self._catch_up()
            event = _EVENT.validate_python(content | {"seq": self._last.get((job, attempt, incarnation), 0) + 1})
            write_lines(descriptor, [event])
        return event

    def read(self, offset: int = 0) -> tuple[list[Event], int]:
        """Events from byte `offset` on and where to go on; see `scan`."""
        found = scan(self.path, offset)
        return found.events, found.offset

    def _catch_up(self) -> None:
        """Learn the numbers that were given since the last look; call with the lock held."""
        found = scan(self.path, self._offset)
        self._offset = found.offset
        for event in found.events:
            key = (event.job, event.attempt, event.incarnation)
            self._last[key] = max(self._last.get(key, 0), event.seq)


def shared_log(path: Path) -> EventLog:
    """The one log of this process for a file; a process that was forked begins with one of its own."""
    return _shared_log(path, os.getpid())


@lru_cache(maxsize=16)
def _shared_log(path: Path, pid: int) -> EventLog:
    return EventLog(path)


def read(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Events of the file from byte `offset` on and where to go on; see `scan`."""
    return EventLog(path).read(offset)


@contextmanager
def appending(path: Path) -> Iterator[int]:
    """A file of lines, for `write_lines`, while nobody else appends; made if there is none.

    A last line that a crashed writer left torn has its end then, so that whoever reads now knows of all lines: it may
    have been whole but for that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # released when the descriptor is closed, also by a crash
        size = os.fstat(descriptor).st_size
        if size > 0 and os.pread(descriptor, 1, size - 1) != b"\n":
            write_whole(descriptor, b"\n")
        yield descriptor
    finally:
        os.close(descriptor)


def write_lines(descriptor: int, events: Iterable[Event]) -> None:
    """Append them, all or none."""
    write_whole(descriptor, b"".join(event.model_dump_json(by_alias=True).encode() + b"\n" for event in events))


def write_whole(descriptor: int, data: bytes) -> None:
    """Append as a whole or not at all; OSError if the disk is full."""
    size = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, data)
        if written != len(data):
            raise OSError(f"only {written} of {len(data)} bytes could be written: is the disk full?")
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def write_control(path: Path, answer: Answer) -> None:
    """Leave the answer for the driver; replaces an older one in one step, so that nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        draft.write_bytes(answer.model_dump_json(by_alias=True).encode())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_control(path: Path) -> Answer:
    """The answer; `Continue` where none was left. ValueError if the file holds something else."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Continue()
    try:
        return _ANSWER.validate_json(data)
    except ValidationError as error:
        raise ValueError(f"{path} holds no answer to a running job: {error}") from None
