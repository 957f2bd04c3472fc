"""What has to be known of a job before its files go, even if its record cannot be read."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal

from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.errors import FathomError
from orchestrator.launch.base import RunFolder
from orchestrator.store.base import StoredJob


def is_anothers_folder(folder: RunFolder, uid: str) -> bool:
    """Whether another job lies where that one should."""
    with suppress(FathomError):
        return Record.open(folder.root).uid != uid
    return False


def paid_for(job: StoredJob, folder: RunFolder) -> tuple[Decimal, str] | None:
    """By the run's own record; where that cannot be read, by the status. None: nothing."""
    with suppress(OSError, FathomError):
        last, history = folder.last_attempt(), History(Record.open(folder.root))
        return (history.charged(), history.rate(last).currency) if last else None
    cost = job.status.cost
    return None if cost is None else (Decimal(cost.spent), cost.currency)
