"""An API with runs behind it: what launchers and drivers leave in folders, beside the jobs of the store."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx2
from starlette.testclient import TestClient

from orchestrator.api.app import make_app
from orchestrator.api.streams import Streams
from orchestrator.controller.health import Health
from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.cost.timeline import Held
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import Event, EventLog
from orchestrator.launch.files import replace_file
from orchestrator.status import Cost, JobStatus, Phase
from orchestrator.store.access import Role
from orchestrator.store.base import StoredJob
from support.api import Service
from support.runs import event, resolved
from support.store import small_job


def story(attempt: int, began: float, steps: int, outcome: str | None = "succeeded") -> list[Event]:
    """An attempt of so many steps, one a second."""
    found = [event("started", began + 1, attempt=attempt, step=0, tokens=0, world_size=2)]
    found += [
        event("progress", began + 1 + n, attempt=attempt, step=n, tokens=100 * n, metrics={"train/loss": 5.0 / n})
        for n in range(1, steps + 1)
    ]
    if outcome is not None:
        failed = {} if outcome == "succeeded" else {"failure_class": "stalled"}
        found.append(event("ended", began + 2 + steps, attempt=attempt, outcome=outcome, step=steps, **failed))
    return found


class Runs(Service):
    """Jobs cost a dollar a second."""

    def __init__(self, home: Path, *, health: Health | None = None, streams: Streams | None = None, **env: str) -> None:
        self.health, self.streams = health, streams
        self._tokens: dict[tuple[Role, str], str] = {}
        super().__init__(home, **env)

    def start(self) -> None:
        self.app = make_app(
            self.store,
            self.settings,
            capacity=lambda: self.capacity,
            wake=self._wake,
            limits=self._limits,
            controller=self.health,
            streams=self.streams,
        )

    def get(self, path: str, role: Role = Role.ADMIN, team: str = "", **headers: str) -> httpx2.Response:
        """As a token of a role, of all teams or of one."""
        if team and (role, team) not in self._tokens:
            self._tokens[role, team] = self.access.make(f"{team}-{role}", role, team=team, by="test")[1]
        client: TestClient = self.client(self._tokens[role, team] if team else self.secrets[role])
        found: httpx2.Response = client.get(path, headers=headers)
        return found

    def job(self, name: str = "mini", team: str = "default", **spec: Any) -> StoredJob:  # noqa: ANN401
        return self.store.create(small_job(name, team, **spec), by="tests")

    def folder(self, stored: StoredJob) -> RunFolder:
        return RunFolder(self.home / stored.folder)

    def run(self, stored: StoredJob, events: Iterable[Event], held: list[Held], log: str = "") -> Record:
        """What a launcher and its drivers leave."""
        folder = self.folder(stored)
        record = Record(folder, stored.uid, stored.wish.job)
        folder.root.mkdir(exist_ok=True)
        record.with_job(stored.wish.job)
        ref = resolved().job.model_copy(update={"name": stored.name, "namespace": stored.namespace, "uid": stored.uid})
        for attempt in sorted({one.attempt for one in held}):
            folder.resolved(attempt).write_text(resolved(attempt=attempt, job=ref).model_dump_json())
            folder.log(attempt).parent.mkdir(exist_ok=True)
            folder.log(attempt).write_text(log)
        record.save_held(held)
        for one in events:
            EventLog(folder.events).append(**one.model_dump(exclude={"seq", "version"}))
        return record

    def end(self, stored: StoredJob, phase: Phase = Phase.SUCCEEDED) -> None:
        """As the controller writes it down."""
        record = Record.open(self.folder(stored).root)
        history = History(record)
        last = record.folder.last_attempt()
        ledger = history.ledger(history.resolved(last))
        replace_file(record.folder.ledger, ledger.to_json())
        cost = Cost(
            spent=f"{ledger.totals.cost:.6f}",
            burn_per_hour="0",
            wasted=f"{ledger.totals.wasted:.6f}",
            currency=ledger.rate.currency,
        )
        status = JobStatus(phase=phase, observed_generation=1, cost=cost, attempt_count=last)
        record.save_status(status)
        self.store.set_status(stored.uid, status)
