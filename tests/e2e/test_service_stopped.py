"""The service is stopped (SIGSTOP) when 90 % of a job's budget are spent: the job holds the limit by itself."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from support.runs import dataset, tiny_job
from support.shooting import Service, drivers, left, wait_until

from orchestrator import Client
from orchestrator.controller.record import Record
from orchestrator.cost.timeline import Held
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import Ended, read
from orchestrator.spec import Budget
from orchestrator.status import ConditionType, Phase, Reason

pytestmark = [pytest.mark.processes, pytest.mark.timeout(3600)]
LIMIT = Decimal(400)
"""A dollar a second: what is left of it at 90 % lasts for 40 s, of which 30 are kept for the end."""
PRICES = (
    '- {accelerator: cpu, priceClass: on-demand, amount: "1800", currency: USD, unit: cpu-hour, source: test, '
    "date: 2026-01-01}\n"
)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "prices.yaml").write_text(PRICES)
    (home / "story.json").write_text(json.dumps({"seconds": 400.0, "outcome": "succeeded"}))
    monkeypatch.setenv("FATHOM_HOME", str(home))
    made = Service(home, FATHOM_CPUS="2", FATHOM_PRICES=str(tmp_path / "prices.yaml"))
    made.start()
    wait_until(made.is_up, made.words)
    yield made
    made.end()
    for process in drivers(home):
        process.kill()


def spend_before(folder: RunFolder, share: Decimal) -> None:
    """As if the attempt that was suspended had gone on for longer: waiting for that would take minutes."""
    record = Record.open(folder.root)
    [one] = record.held()
    record.save_held([Held(one.attempt, one.end - float(share * LIMIT), one.end)])


def test_the_limit_holds_while_the_service_is_stopped(service: Service, tmp_path: Path) -> None:
    job = tiny_job(str(dataset(tmp_path / "data")))
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"budget": Budget(limit=str(LIMIT))})})
    with Client() as client:
        client.apply(job)
        wait_until(lambda: any(client.metrics("tiny")), service.words)  # there is something to save, which is measured
        client.suspend("tiny")
        client.wait("tiny", [Phase.SUSPENDED], timeout=240)
        [root] = service.home.glob("tiny-*")
        folder = RunFolder(root)
        wait_until(lambda: not drivers(service.home), service.words)
        spend_before(folder, Decimal("0.9"))
        client.resume("tiny")
        client.wait("tiny", [Phase.RUNNING], timeout=240)
        spent = Decimal(client.cost("tiny")["spent"])
        assert LIMIT * 9 / 10 <= spent < LIMIT, spent
        assert service.process is not None
        os.kill(service.process.pid, signal.SIGSTOP)
        stopped = time.time()
        wait_until(lambda: not drivers(service.home), service.words)
        while time.time() < stopped + 25:  # longer than it lived
            time.sleep(0.5)
        end = read(folder.events)[0][-1]
        assert isinstance(end, Ended)
        assert end.failure_class == "over-budget"
        assert end.step, "with a last checkpoint"
        os.kill(service.process.pid, signal.SIGCONT)

        found = client.wait("tiny", [Phase.SUSPENDED], timeout=240)
        reasons = {kind: one.reason for kind in ConditionType if (one := found.status.condition(kind)) is not None}
        assert reasons[ConditionType.COMPLETE] is Reason.LIMIT_REACHED
        assert reasons[ConditionType.BUDGET_OK] is Reason.LIMIT_REACHED
        cost = client.cost("tiny")
        assert LIMIT * 9 / 10 < Decimal(cost["spent"]) < LIMIT, "nothing is paid for after the end"
        held = Record.open(root).held()[-1]
        assert held.end < end.time + 2, "and the machine was given back when the driver ended"

        client.patch("tiny", {"budget": {"limit": str(LIMIT * 10)}})
        client.wait("tiny", [Phase.RUNNING], timeout=240)
        assert folder.last_attempt() == 3, "by itself"
        client.delete("tiny")
        wait_until(lambda: not root.exists(), service.words)
    assert service.end() == 0
    wait_until(lambda: not left(service.home), lambda: left(service.home))
