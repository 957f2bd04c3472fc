"""Both clients against the real application on a real socket: requests, answers and errors are those of the service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.api import Service
from support.served import running

from orchestrator.client import AsyncClient, Client
from orchestrator.errors import Conflict, FathomError, InvalidJob, NotFound, StalePlan
from orchestrator.spec import TrainingJob
from orchestrator.status import JobStatus, Phase
from orchestrator.store.access import Role


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("home"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with running(service) as address:
        yield address


@pytest.fixture
def client(service: Service, url: str) -> Iterator[Client]:
    with Client(url, service.secrets[Role.ADMIN]) as made:
        yield made


def test_a_job_from_its_plan_to_its_end(service: Service, client: Client) -> None:
    planned = client.plan(service.document("whole"))
    assert planned.fits
    assert planned.price is not None
    assert planned.price.per_hour == "0.1"
    assert "spec.parallelism.expert" in [choice.path for choice in planned.choices]
    assert client.apply(planned, dry_run=True).metadata.uid.startswith("00000000-")
    job = client.apply(planned)
    assert (job.key, job.phase, job.metadata.created_by) == ("default/whole", Phase.PENDING, "a-admin")
    assert client.get(job) == job
    assert client.apply(planned) == job
    service.set_status(JobStatus(phase=Phase.RUNNING, observed_generation=1), "whole")
    assert client.wait("whole", [Phase.RUNNING]).phase is Phase.RUNNING
    assert client.suspend(job).spec.suspend
    assert not client.resume(job).spec.suspend
    assert client.cancel(job).metadata.cancelled_at is not None
    client.delete(job, keep_files=True)
    assert client.get(job).metadata.deleted_at is not None


def test_what_may_change_is_patched(service: Service, client: Client) -> None:
    document = service.document("changing", budget={"limit": "5.00"})
    job = client.apply(document)
    document["spec"]["budget"]["limit"] = "9.00"
    document["spec"]["retry"] = {"maxAttempts": 2}
    changed = client.apply(document)
    assert changed.spec.budget is not None
    assert (changed.spec.budget.limit, changed.spec.retry.max_attempts) == ("9.00", 2)
    assert changed.metadata.generation == 2
    with pytest.raises(Conflict):
        client.patch(job, {"suspend": True}, etag=job.etag)
    assert client.patch(job, {"suspend": True}, etag=changed.etag).spec.suspend
    document["spec"]["training"] = {"tokens": 999_999}
    with pytest.raises(Conflict, match=r"training\.tokens"):
        client.apply(document)
    with pytest.raises(InvalidJob, match=r"training\.tokens"):
        client.patch(job, {"training": {"tokens": 5}})


def test_a_first_budget_may_come_later(service: Service, client: Client) -> None:
    client.apply(service.document("poor"))
    changed = client.apply(service.document("poor", budget={"limit": "2.00"}))
    assert changed.spec.budget is not None
    assert changed.spec.budget.limit == "2.00"


def test_every_difference_that_the_client_allows_the_service_allows(service: Service, client: Client) -> None:
    """MUTABLE is said twice: here it is held together."""
    from orchestrator.client.differences import MUTABLE
    from orchestrator.spec_words import MUTABLE as SERVICE

    assert tuple(f"spec.{field}" for field in MUTABLE) == SERVICE
    tags = {"tags": {"a": "1", "x.y": "2"}}
    client.apply(service.document("tagged", tracking=tags))
    changed = client.apply(service.document("tagged", tracking={"tags": {"b": "3"}}))
    assert changed.spec.tracking.tags == {"b": "3"}


def test_a_plan_is_stale_when_prices_changed(service: Service, client: Client) -> None:
    planned = client.plan(service.document("stale"))
    service.prices("0.07")
    try:
        with pytest.raises(StalePlan):
            client.apply(planned)
    finally:
        service.prices("0.05")


def test_problems_come_with_their_fields(service: Service, client: Client) -> None:
    document = service.document("bad", data={"source": "/nowhere"})
    with pytest.raises(InvalidJob) as raised:
        client.apply(document)
    assert [problem.path for problem in raised.value.problems] == ["spec.data.source"]
    with pytest.raises(NotFound):
        client.get("default/none")


def test_lists_and_teams(service: Service, client: Client) -> None:
    for number in range(3):
        client.apply(TrainingJob.model_validate(service.document(f"v{number}", "vision")))
    names = [job.name for job in client.list(team="vision")]
    assert names == ["v2", "v1", "v0"]
    token = client.create_token("vera", "runner", team="vision", days=1)
    with Client(client.url, token.secret) as vera:
        assert (vera.me().team, vera.get("v1").key) == ("vision", "vision/v1")
        assert {job.team for job in vera.list()} == {"vision"}
        document = service.document("v9")
        del document["metadata"]["namespace"]
        assert vera.apply(document).key == "vision/v9"
        with pytest.raises(FathomError) as refused:
            vera.tokens()
        assert refused.value.code == "forbidden"
        client.revoke_token("vera")
        with pytest.raises(FathomError) as unknown:
            vera.me()
        assert unknown.value.code == "unauthorized"
    assert "vera" in [one.name for one in client.tokens()]
    assert client.capacity()["total"] == {"cpus": 8, "gpus": 0}


def test_the_same_on_an_event_loop(service: Service, url: str) -> None:
    async def whole() -> list[str]:
        async with AsyncClient(url, service.secrets[Role.ADMIN]) as client:
            planned = await client.plan(service.document("looped"))
            job = await client.apply(planned)
            await client.wait(job, ["Pending"])
            return [one.name async for one in client.list(name="looped")]

    assert asyncio.run(whole()) == ["looped"]


def test_a_file_is_a_job(service: Service, client: Client, tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(service.document("filed")))
    assert client.plan(path).job.metadata.name == "filed"
