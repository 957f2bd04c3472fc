"""The answer to a running job (`control.json`): changed in turns, and read so that nothing old or wrong counts.

The launcher orders the stop and gives newer deadlines, the driver's own signal handler orders the stop, too; in a
cluster the driver writes into its own file what the controller's says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.cost.budget import Deadlines
from orchestrator.launch.events import (
    Answer,
    CheckpointAndStop,
    Continue,
    HardDeadline,
    read_control,
    write_control,
)
from orchestrator.launch.locks import locked

PATIENCE_SECONDS, _PAUSE = 10.0, 0.01
"""For a turn at the file, which takes milliseconds."""


def amend_control(
    path: Path, *, order: CheckpointAndStop | None = None, until: Deadlines | None = None, incarnation: str = ""
) -> Answer:
    """Put an order to stop, or a newer deadline of an incarnation, into the answer and leave the rest; -> the new one.

    Several processes may do so at once: they take turns. What is no answer is replaced. OSError if it cannot be
    written. Never call it in a signal handler: what that interrupted may have the turn.
    """

    def change(before: Answer) -> Answer:
        deadline = before.hard_deadline
        if until is not None:
            known = deadline.number if deadline is not None and deadline.incarnation == incarnation else 0
            deadline = hard_deadline(known + 1, incarnation, until)
        return _answer(order or before, deadline)

    return _changed(path, change)


def take_over(path: Path, heard: Answer, before: Answer) -> Answer:
    """Put what another control file says now, and said otherwise `before`, into this one; -> the new answer.

    An order to stop stays, whoever gave it; of two the later one counts, as if all had written into this file. Errors
    as above.
    """

    def change(known: Answer) -> Answer:
        deadline, offered = known.hard_deadline, heard.hard_deadline
        old = deadline is not None and offered is not None and deadline.incarnation == offered.incarnation
        if offered is not None and not (old and deadline is not None and offered.number <= deadline.number):
            deadline = offered
        return _answer(heard if _order(heard) not in (None, _order(before)) else known, deadline)

    return _changed(path, change)


def _order(answer: Answer) -> tuple[float, str] | None:
    return (answer.deadline, answer.reason) if isinstance(answer, CheckpointAndStop) else None


def _answer(order: Answer, deadline: HardDeadline | None) -> Answer:
    return order.model_copy(update={"hard_deadline": deadline, "nonsense": ""})


def _changed(path: Path, change: Callable[[Answer], Answer]) -> Answer:
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock"), patience=PATIENCE_SECONDS, pause=_PAUSE) as mine:
        if not mine:
            raise TimeoutError(f"{path} is being written by another process for {PATIENCE_SECONDS:.0f} s")
        try:
            before = read_control(path)
        except ValueError:
            before = Continue()
        answer = change(before)
        write_control(path, answer)
    return answer


def ordered(path: Path) -> tuple[str | None, float | None]:
    """Why the job was told to stop, and until when (unix seconds); None where it was not."""
    try:
        answer = read_control(path)
    except (ValueError, OSError):
        return None, None
    return (answer.reason, answer.deadline) if isinstance(answer, CheckpointAndStop) else (None, None)


def hard_deadline(number: int, incarnation: str, until: Deadlines) -> HardDeadline:
    """The form in which a reckoning of the budget travels."""
    return HardDeadline(number=number, incarnation=incarnation, stop=until.stop, end=until.end, limit=until.limit)


def newest(
    known: HardDeadline | None, answer: Answer, *, incarnation: str, began: float
) -> tuple[HardDeadline | None, str]:
    """-> the deadline that counts now, and what is wrong with the one that was offered. Pure.

    An older one, and one of another incarnation, say nothing to this driver. It may be earlier than the one before:
    prices rise, too; but not before the attempt `began` (unix seconds).
    """
    offered = answer.hard_deadline
    if offered is None:
        return known, answer.nonsense
    if offered.incarnation != incarnation or (known is not None and offered.number <= known.number):
        return known, ""
    if offered.limit <= began:
        return known, f"it is {offered.limit:.3f}, and the attempt has begun at {began:.3f}"
    return offered, ""
