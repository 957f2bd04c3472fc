"""The real application in process, on a real store, with clients of several tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI
from starlette.testclient import TestClient

from orchestrator.api.app import make_app
from orchestrator.api.capacity import Capacity, Slots
from orchestrator.api.limits import Limits
from orchestrator.settings import Settings
from orchestrator.status import JobStatus
from orchestrator.store.access import Access, Role
from orchestrator.store.sqlite import SqliteStore
from support.runs import dataset
from support.store import small_document

URL = "http://localhost:8470"
PRICES = """
- {{accelerator: cpu, priceClass: on-demand, amount: "{cpu}", currency: USD,
   unit: cpu-hour, source: test, date: 2026-01-01}}
"""


class Service:
    """An application over a home of the test's own."""

    def __init__(self, home: Path, *, limits: Limits = Limits(rate=None), **env: str) -> None:  # noqa: B008
        self.home = home
        home.mkdir(exist_ok=True)
        self.data = dataset(home / "data")
        self.prices("0.05")
        known = {"FATHOM_HOME": str(home), "FATHOM_PRICES": str(home / "prices.yaml")}
        self.settings = Settings.load(known | env)
        self.store = SqliteStore(home / "fathom.db")
        self.access = Access(self.store.database)
        self.capacity = Capacity(Slots(cpus=8))
        self.woken = 0
        self._limits = limits
        self.app: FastAPI
        self.start()
        self.secrets = {role: self.access.make(f"a-{role}", role, by="test")[1] for role in Role}

    def start(self) -> None:
        """The application over the store as it is now: as a service does that comes back."""
        self.app = make_app(
            self.store, self.settings, capacity=lambda: self.capacity, wake=self._wake, limits=self._limits
        )

    def client(self, secret: str | None, **options: Any) -> TestClient:  # noqa: ANN401
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        return TestClient(self.app, base_url=URL, headers=headers, **options)

    @property
    def admin(self) -> TestClient:
        return self.client(self.secrets[Role.ADMIN])

    @property
    def runner(self) -> TestClient:
        return self.client(self.secrets[Role.RUNNER])

    @property
    def reader(self) -> TestClient:
        return self.client(self.secrets[Role.READER])

    def of_team(self, team: str, role: Role = Role.RUNNER) -> TestClient:
        return self.client(self.access.make(f"{team}-{role}", role, team=team, by="test")[1])

    def prices(self, cpu: str) -> None:
        (self.home / "prices.yaml").write_text(PRICES.format(cpu=cpu))

    def document(self, name: str = "mini", namespace: str = "default", **spec: Any) -> dict[str, Any]:  # noqa: ANN401
        """A job that this service accepts."""
        data = {"data": {"source": str(self.data), "sequenceLength": 32}}
        return small_document(name, namespace, **(data | spec))

    def create(self, name: str = "mini", namespace: str = "default", **spec: Any) -> dict[str, Any]:  # noqa: ANN401
        answer = self.admin.post("/v1/jobs", json={"job": self.document(name, namespace, **spec)})
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def set_status(self, status: JobStatus, name: str = "mini", namespace: str = "default") -> None:
        assert self.store.set_status(self.store.get(namespace, name).uid, status)

    def audited(self) -> list[dict[str, Any]]:
        """Newest first."""
        found: list[dict[str, Any]] = self.admin.get("/v1/audit").json()["items"]
        return found

    def close(self) -> None:
        self.store.database.close()

    def _wake(self) -> None:
        self.woken += 1


def problem(answer: httpx2.Response, status: int, code: str) -> Mapping[str, Any]:
    """The problem document of an answer, which must be one of that kind."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert (found["code"], found["status"]) == (code, status), found
    assert found["requestId"] == answer.headers["x-request-id"]
    assert found["type"] == f"https://fathom.dev/problems/{code}"
    return found


def pointers(found: Mapping[str, Any]) -> list[str]:
    return [one["pointer"] for one in found["errors"]]
