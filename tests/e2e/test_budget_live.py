"""Limit and price changed under a real run: it goes on beyond its first deadline, and stops before its second."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from support.faults import slow
from support.home import Home, events, finish, wait_for

from orchestrator.controller.record import Record
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import BudgetNote, CheckpointCommitted, Ended, FailureClass, Progress, read_control

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]

PRICES = (
    '- {{accelerator: cpu, priceClass: on-demand, amount: "{}", currency: USD, unit: cpu-hour, source: test, '
    "date: 2026-01-01}}\n"
)


def last_step(folder: RunFolder) -> Progress | None:
    found = events(folder)
    assert not any(isinstance(event, Ended) for event in found), found[-1]
    return next((event for event in reversed(found) if isinstance(event, Progress)), None)


def test_a_raised_limit_and_a_raised_price(make_home: Callable[[], Home]) -> None:
    home = make_home()
    file = home.prices
    file.write_text(PRICES.format("1800"))  # the two of them cost a dollar a second
    home.inject(slow(0.25))  # it goes on for a minute, in which others want the cores
    job = ("--set", "training.tokens=50M", "--set", "budget.limit=70", "--set", "checkpoint.intervalMinutes=0.2")
    process = home.start("train", "job.yaml", "-o", "json", *job)
    folder = home.run_folder()
    began = wait_for(lambda: next((one.start for one in Record.open(folder.root).held()), None))
    raised = home.fathom("budget", folder.root, "--limit", "2000", "-o", "json")  # at once: starting may take long
    assert raised.code == 0, raised.err
    assert raised.result()["limit"] == "2000"

    def beyond() -> bool | None:
        step = last_step(folder)
        return True if step is not None and step.time > began + 75 else None

    wait_for(beyond)
    deadline = read_control(folder.control).hard_deadline
    assert deadline is not None
    assert deadline.limit > time.time() + 1000

    file.write_text(PRICES.format("180000"))  # a hundred dollars a second: what is left lasts for less than 20 s
    done = finish(process)
    assert done.code == 5, done.err
    found = events(folder)
    assert [note.about for note in found if isinstance(note, BudgetNote)] == ["limit-changed", "price-changed"], (
        "and no share of 2000 was reached"
    )
    end = found[-1]
    assert isinstance(end, Ended)
    assert end.failure_class is FailureClass.OVER_BUDGET
    assert end.time < deadline.limit - 900
    saved = [event.step for event in found if isinstance(event, CheckpointCommitted)]
    assert saved[-1] == end.step, "the last checkpoint was made in time"
    assert float(done.result()["ledger"]["cost"]) < 2000
    assert "the price is 360000 USD per hour from" in done.err
    shown = home.fathom("budget", folder.root)
    assert "limit     $2,000.00" in shown.out
    assert f"go on with `fathom train --resume {folder.root}`" in shown.out
