"""The API over a real store and real run folders, called in process, with tokens of every role."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI
from starlette.testclient import TestClient

from orchestrator.api.app import make_app
from orchestrator.api.capacity import Capacity, Holder, Slots
from orchestrator.api.limits import Limits
from orchestrator.controller.health import Health
from orchestrator.controller.history import History
from orchestrator.controller.record import Record, replace_file
from orchestrator.cost.timeline import Held
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import Event, EventLog
from orchestrator.settings import Settings
from orchestrator.status import Cost, JobStatus, Phase
from orchestrator.store.access import Access, Role
from orchestrator.store.base import StoredJob
from orchestrator.store.sqlite import SqliteStore
from support.runs import event, resolved
from support.store import small_job

CAPACITY = Capacity(Slots(cpus=8), (Holder("default", "mini", Slots(cpus=2)),))


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


@dataclass
class Service:
    """A home with a store, and the app over it."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    health: Health | None = None

    def __post_init__(self) -> None:
        self.settings = Settings.load({"FATHOM_HOME": str(self.home), **self.environment})
        self.store = SqliteStore(self.home / "fathom.db")
        self.access = Access(self.store.database)
        self.app: FastAPI = make_app(
            self.store,
            self.settings,
            capacity=lambda: CAPACITY,
            wake=lambda: None,
            limits=Limits(rate=None),
            controller=self.health,
        )
        self.secrets: dict[tuple[Role, str | None], str] = {}

    def close(self) -> None:
        self.store.database.close()

    def secret(self, role: Role = Role.ADMIN, team: str | None = None) -> str:
        """Of a token that is made where it is asked for first."""
        if (role, team) not in self.secrets:
            name = f"{role}-{team or 'all'}"
            self.secrets[role, team] = self.access.make(name, role, team=team, by="tests")[1]
        return self.secrets[role, team]

    def client(self, role: Role = Role.ADMIN, team: str | None = None) -> TestClient:
        headers = {"Authorization": f"Bearer {self.secret(role, team)}"}
        return TestClient(self.app, base_url="http://localhost", headers=headers, raise_server_exceptions=True)

    def get(self, path: str, role: Role = Role.ADMIN, team: str | None = None, **headers: str) -> httpx2.Response:
        found: httpx2.Response = self.client(role, team).get(path, headers=headers)
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
