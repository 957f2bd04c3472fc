"""Takes what is new in the run's folder to the controller, and its answer back: a thread of the driver in a pod.

Invariants: a controller that is away costs nothing but the news, training goes on and the folder keeps everything;
nothing is told twice in a row; whoever is fenced ends at once.
"""

from __future__ import annotations

import random
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from orchestrator.launch.control import take_over
from orchestrator.launch.delivery import Delivery, Receipt
from orchestrator.launch.events import Answer, Continue
from orchestrator.launch.pods.outbox import Outbox
from orchestrator.launch.pods.post import Fenced, Undelivered

RHYTHM_SECONDS = 1.0
MOST_SECONDS = 30.0
"""Between two tries while the controller is away."""
FINAL_SECONDS = 2.0
"""The same when the attempt has ended and its pods wait."""


def _say(text: str) -> None:
    print(text, flush=True)


class Courier:
    """Of one incarnation of an attempt."""

    def __init__(
        self,
        outbox: Outbox,
        post: Callable[[Delivery], Receipt],
        control: Path,
        fenced: Callable[[str], None],
        *,
        say: Callable[[str], None] = _say,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`post` raises Fenced, and Undelivered; `control` is the file for the answer; `fenced` ends the attempt."""
        self._outbox, self._post, self._control, self._fenced = outbox, post, control, fenced
        self._say, self._chance = say, chance
        self._heard: Answer = Continue()
        """What the controller said last."""
        self._failures = 0
        """In a row."""
        self._trouble = ""
        """Told already."""
        self._wake, self._final, self._over = threading.Event(), threading.Event(), threading.Event()
        self._all = False
        """Whether everything was delivered at the end."""

    def start(self) -> None:
        """Deliver until the driver ends."""
        threading.Thread(target=self._run, name="courier", daemon=True).start()

    def finish(self, seconds: float) -> bool:
        """Deliver all that is in the folder now, and nothing after so many seconds; whether all is delivered."""
        self._final.set()
        self._wake.set()
        self._over.wait(seconds)
        self._over.set()
        return self._all

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                pause = self.deliver()
            except Exception:  # noqa: BLE001 - e.g. a disk that fails for a moment: the news must go on
                traceback.print_exc()
                pause = RHYTHM_SECONDS
            if self._over.is_set():
                return
            self._wake.wait(pause)
            self._wake.clear()

    def deliver(self) -> float:
        """One delivery; -> seconds until the next."""
        final = self._final.is_set()
        parcel = self._outbox.pack(final=final)
        if final and parcel.empty:
            self._all = True
            self._over.set()
            return 0.0
        try:
            receipt = self._post(parcel.delivery)
        except Fenced as error:
            self._over.set()
            self._fenced(str(error))
            return 0.0
        except Undelivered as error:
            return self._undelivered(str(error))
        if self._trouble:
            self._say("the controller takes deliveries again")
        self._failures, self._trouble = 0, ""
        further = self._outbox.acknowledged(parcel, receipt)
        self._obey(receipt.answer)
        return 0.0 if further else RHYTHM_SECONDS

    def _undelivered(self, reason: str) -> float:
        if reason != self._trouble:
            self._trouble = reason
            self._say(f"the controller could not be told, which is tried again: {reason}")
        self._failures += 1
        most = FINAL_SECONDS if self._final.is_set() else MOST_SECONDS
        return min(most, RHYTHM_SECONDS * 2.0 ** min(self._failures - 1, 10)) * (0.5 + self._chance() / 2)

    def _obey(self, answer: Answer) -> None:
        """Into the control file, where it is another answer than before."""
        if answer == self._heard:
            return
        if answer.nonsense:
            self._say(f"a newer deadline is ignored: {answer.nonsense}")
        try:
            take_over(self._control, answer, self._heard)
        except OSError as error:  # told again with the next receipt
            self._say(f"the controller's answer could not be written: {error}")
            return
        self._heard = answer
