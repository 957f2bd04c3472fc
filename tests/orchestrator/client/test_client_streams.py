"""What a job says, read by both clients from the real application: all of it, once, over a restart of it too."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cli import commands
from support.served import running
from support.service import Runs as Service
from support.service import story

from orchestrator.client import AsyncClient, Client
from orchestrator.cost.timeline import Held
from orchestrator.status import JobStatus, Phase
from orchestrator.store.access import Role
from orchestrator.store.base import StoredJob

T = 1_750_000_000.0


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    made = Service(tmp_path / "home")
    monkeypatch.setenv("FATHOM_HOME", str(made.home))
    for name in ("FATHOM_URL", "FATHOM_TOKEN", "FATHOM_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    (made.home / "admin.token").write_text(made.secrets[Role.ADMIN])
    yield made
    made.close()


def announce(service: Service, url: str) -> None:
    (service.home / "service.json").write_text(json.dumps({"url": url}))


@pytest.fixture
def ended(service: Service) -> StoredJob:
    """After two attempts."""
    stored = service.job()
    events = story(1, T, 4, "failed") + story(2, T + 20, 3)
    service.run(stored, events, [Held(1, T, T + 8), Held(2, T + 20, T + 30)], log="one\n\ntwo\n")
    service.end(stored)
    return stored


async def _looped() -> dict[str, Any]:
    async def every(items: AsyncIterator[Any]) -> list[Any]:
        return [item async for item in items]

    async with AsyncClient() as client:
        return {
            "log": await every(client.logs("mini")),
            "followed": await every(client.logs("mini", follow=True, attempt=1)),
            "events": await every(client.events("mini")),
            "followed events": await every(client.events("mini", follow=True)),
            "metrics": await every(client.metrics("mini")),
            "cost": await client.cost("mini"),
            "costs": await client.costs(),
        }


def test_everything_that_a_job_has_said(service: Service, ended: StoredJob) -> None:
    with running(service) as url:
        announce(service, url)
        with Client() as client:
            found = {
                "log": list(client.logs("mini")),
                "followed": list(client.logs("mini", follow=True, attempt=1)),
                "events": list(client.events("mini")),
                "followed events": list(client.events("mini", follow=True)),
                "metrics": list(client.metrics("mini")),
                "cost": client.cost("mini"),
                "costs": client.costs(),
            }
            assert list(client.logs("mini", tail=1)) == ["two"]
            page = client.metrics_since("mini")
            assert client.metrics_since("mini", page.next).items == []
        assert asyncio.run(_looped()) == found
    assert found["log"] == found["followed"] == ["one", "", "two"]
    assert found["events"] == found["followed events"]
    assert [one["kind"] for one in found["events"]].count("progress") == 7
    assert [one["step"] for one in found["metrics"]] == [1, 2, 3, 4, 1, 2, 3]
    assert float(found["cost"]["spent"]) == 18.0
    assert found["costs"]["jobs"][0]["spent"] == found["cost"]["spent"]


def test_the_commands_on_the_real_service(
    service: Service, ended: StoredJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fathom = commands(monkeypatch, capsys)
    with running(service) as url:
        announce(service, url)
        assert fathom("logs", "mini", "-f")[:2] == (0, "one\n\ntwo\n")
        assert fathom("events", "mini")[1].splitlines()[1].split()[:4] == ["2025-06-15", "15:06:41", "1", "started"]
        assert "$18.00" in fathom("cost", "mini")[1]
        assert [line.split()[:3] for line in fathom("cost")[1].splitlines()[1:2]] == [
            ["default/mini", "Succeeded", "$18.00"]
        ]
        assert fathom("wait", "mini")[:2] == (0, "default/mini\n")
        line = fathom("top", "mini")[1].splitlines()[1]
        assert line.split()[:2] == ["default/mini", "Succeeded"]
        assert line.endswith(" █▃▁"), "the steps of the attempt that failed were done again"


def test_a_reader_loses_nothing_when_the_service_is_started_again(service: Service) -> None:
    """The first service ends while a log is followed, the second has another port; the job writes on meanwhile."""
    stored = service.job()
    service.run(stored, story(1, T, 2, None), [Held(1, T, T + 3)], log="0\n")
    service.store.set_status(stored.uid, JobStatus(phase=Phase.RUNNING, observed_generation=1))
    log = service.folder(stored).log(1)
    lines: list[str] = []
    some = threading.Event()

    def read() -> None:
        with Client() as client:
            for line in client.logs("mini", follow=True):
                lines.append(line)
                if line == "9":
                    some.set()

    def write(numbers: range) -> None:
        with log.open("a") as file:
            file.writelines(f"{number}\n" for number in numbers)

    with running(service) as url:
        announce(service, url)
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        write(range(1, 10))
        assert some.wait(120)
    write(range(10, 20))
    service.start()
    with running(service) as url:
        announce(service, url)
        write(range(20, 30))
        service.store.set_status(stored.uid, JobStatus(phase=Phase.SUCCEEDED, observed_generation=1))
        reader.join(120)
    assert not reader.is_alive()
    assert lines == [str(number) for number in range(30)]
