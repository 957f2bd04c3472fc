"""What an attempt would be if it were started now, and what is in its way. Used by one follower."""

from __future__ import annotations

import time

from orchestrator.controller.aside import KEPT_SECONDS, Aside, urls
from orchestrator.controller.change import resolve_next
from orchestrator.controller.decide import Leave, Money, Situation
from orchestrator.controller.history import History
from orchestrator.controller.purse import Purse
from orchestrator.controller.teams import reserve
from orchestrator.errors import FathomError, InvalidJob, OverBudget
from orchestrator.launch.base import Launcher
from orchestrator.launch.resolve import Resolved
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob
from orchestrator.status import Reason

ASK_SECONDS = 2.0
"""Between two questions for the price and the team's money, which read files."""


class Drafting:
    """Of one run. Nothing of it waits: what is on other machines is read aside."""

    def __init__(self, launcher: Launcher, settings: Settings, purse: Purse, history: History, patience: float) -> None:
        """`patience`: seconds for another launch that has the team's money in its hands."""
        self._launcher, self._settings, self._purse, self._history = launcher, settings, purse, history
        self._patience, self._remote = patience, launcher.capacity() is None
        self._draft: Resolved | None = None
        self._checked: tuple[float, TrainingJob] | None = None
        """When the draft was found fit to run, and for which job."""
        self._aside: Aside[Resolved] = Aside()
        self._answers: tuple[float, Situation] | None = None

    @property
    def _job(self) -> TrainingJob:
        return self._purse.record.job

    def forget(self) -> None:
        """What was answered: something has changed since."""
        self._answers = None

    def take(self) -> Resolved | None:
        """The attempt that was asked for just now: it is started, and never drafted again."""
        draft, self._draft, self._checked, self._answers = self._draft, None, None, None
        return draft

    def ask(self, attempt: int) -> Situation:
        """What an attempt needs: that it can be resolved and paid, and the team's leave. Now and then only: the answers
        stand in files of others. What is granted of the team's money is kept from now on."""
        now = time.monotonic()
        if self._answers is not None and now < self._answers[0]:
            return self._answers[1]
        found = self._ask(attempt)
        self._answers = (now + ASK_SECONDS, found)
        return found

    def problems(self, attempt: int) -> tuple[str, Resolved | None]:
        """Why the job could never run as it is written, and its draft. What it reads from other machines was read just
        now by whoever submitted it, and is read again before it starts."""
        if self._urls():
            return "", None
        try:
            draft = self._resolve(attempt)
            if draft is not None:
                self._launcher.check(self._job, draft)
        except InvalidJob as error:
            return str(error), None
        except FathomError:
            return "", None  # a limit or a price file can be mended
        self._draft, self._checked = draft, (time.monotonic(), self._job)
        return "", draft

    def _ask(self, attempt: int) -> Situation:
        try:
            if not self._is_checked(attempt):
                self._draft = self._resolve(attempt)
                if self._draft is not None:
                    self._launcher.check(self._job, self._draft)
        except OverBudget as error:
            return Situation(money=Money(suffices=False, why=str(error)))
        except InvalidJob as error:
            if any(uri in str(error) for uri in self._urls()):  # whoever submitted it could read that
                return _waits(Reason.WAITING_FOR_QUEUE, f"it is tried again in {KEPT_SECONDS:.0f} s at most: {error}")
            return Situation(problems=str(error))
        except FathomError as error:
            return _waits(Reason.PRICE_MISSING, str(error))
        if self._draft is None:
            words = f"it waits for what it reads from another machine: {', '.join(self._urls())}"
            return _waits(Reason.WAITING_FOR_QUEUE, words)
        if (told := self._launcher.obstacle(self._job)) is not None:
            return _waits(told.reason, told.message)
        try:
            reserve(self._purse.record, self._settings, patience=self._patience)
        except FathomError as error:
            return _waits(Reason.WAITING_FOR_TEAM_BUDGET, str(error))
        return Situation()

    def _is_checked(self, attempt: int) -> bool:
        """Whether the draft is of a moment ago, when the job was accepted. It serves once."""
        checked, self._checked = self._checked, None
        if checked is None or self._draft is None:
            return False
        at, job = checked
        return job is self._job and self._draft.attempt == attempt and time.monotonic() - at < ASK_SECONDS

    def _resolve(self, attempt: int) -> Resolved | None:
        """None while other machines have not answered yet."""
        self._purse.follow_limit()
        record, prices = self._purse.record, self._purse.prices_now()

        def resolved() -> Resolved:
            return resolve_next(record, self._history, self._settings, attempt, prices, read_data=not self._remote)

        if not self._urls():
            return resolved()
        compute = record.job.spec.compute
        paid = None if prices is None else prices.history(compute.accelerator, compute.price_class)
        return self._aside.get((attempt, record.job, paid), resolved)

    def _urls(self) -> list[str]:
        """Of other machines that are read here."""
        return urls(self._job, data=not self._remote)


def _waits(reason: Reason, why: str) -> Situation:
    return Situation(leaves=(Leave(False, reason, why),))
