"""The driver of a cluster on a real Ray cluster: a head without CPUs and a node with workers, as two kinds of pods are.

Both are on this machine and share its files; that they need none but the job's storage, and the head's run folder, is
shown by what the workers are given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.ear import Ear, fenced, listening
from support.home import JOB, PATIENCE, ROOT

from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import (
    Answer,
    CheckpointAndStop,
    CheckpointCommitted,
    Continue,
    Ended,
    FailureClass,
    Progress,
    Started,
    read,
)
from orchestrator.launch.rayjob import agreed
from orchestrator.launch.resolve import Resolved, resolve
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

STEPS = 40


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """Of a cluster whose head counts no CPU."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    small = {"object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small | {"num_cpus": 0})
    try:
        cluster.add_node(num_cpus=2, object_store_memory=80_000_000)
        yield cluster.address
    finally:
        cluster.shutdown()


class Pod:
    """Of the head: what is mounted and said there, and its driver."""

    def __init__(self, root: Path, data: Path, ear: Ear, ray_address: str) -> None:
        self.root, self.ear = root, ear
        self.configuration, self.run = root / "etc", RunFolder(root / "tmp")
        self.storage = root / "storage"
        self.configuration.mkdir()
        document = yaml.safe_load(JOB)
        document["metadata"] = {"name": "tiny", "namespace": "team-a"}
        document["spec"]["data"]["source"] = str(data)
        document["spec"]["training"] |= {"tokens": STEPS * 256, "evaluation": {"everySteps": 20}}
        document["spec"]["checkpoint"]["uri"] = str(self.storage)
        self.job = TrainingJob.model_validate(document)
        self.resolved = resolve(
            self.job, uid="u-1", attempt=1, incarnation="placeholder", settings=Settings.load({"FATHOM_HOME": "/no"}),
            storage_uri="unused", read_data=False,
        )  # fmt: skip
        (root / "signing.key").write_bytes(bytes(range(32)))
        (root / "token").write_text("a-token\n")
        (self.configuration / agreed.JOB_DOCUMENT).write_text(json.dumps(self.job.document()))
        (self.configuration / agreed.RESOLVED).write_text(self.resolved.model_dump_json())
        foreign = ("FATHOM_", "MLFLOW_", "RAY_")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | {
            "FATHOM_CONTROLLER_URL": ear.url,
            "FATHOM_HOME": str(self.run.root),
            "FATHOM_INCARNATION": "tiny-a1-abcde",
            "FATHOM_NODE": "node-1",
            "FATHOM_SIGNING_KEY_FILE": str(root / "signing.key"),
            "FATHOM_STOP_SECONDS": "60",
            "FATHOM_TOKEN_FILE": str(root / "token"),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "RAY_ADDRESS": ray_address,
        }

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "orchestrator.launch.entry", "--cluster", str(self.configuration)]
        with (self.root / "stdout").open("wb") as out:
            return subprocess.Popen(command, env=self.env, stdout=out, stderr=out, start_new_session=True, cwd="/")

    def train(self) -> int:
        driver = self.start()
        try:
            return driver.wait(PATIENCE)
        finally:
            driver.kill()
            driver.wait()

    @property
    def stdout(self) -> str:
        return (self.root / "stdout").read_text(errors="replace")

    def ended(self) -> Ended:
        [ended] = [event for event in self.ear.events if isinstance(event, Ended)]
        return ended


@pytest.fixture
def pod(tmp_path: Path, data: Path, ray_address: str) -> Iterator[Pod]:
    with listening(RunFolder(tmp_path / "controller")) as ear:
        yield Pod(tmp_path, data, ear, ray_address)


def test_a_run_to_the_end(pod: Pod) -> None:
    code = pod.train()
    assert code == 0, pod.stdout
    events = pod.ear.events
    assert events == read(pod.run.events)[0]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert {(e.job, e.attempt, e.incarnation) for e in events} == {("u-1", 1, "tiny-a1-abcde")}
    assert [e.step for e in events if isinstance(e, Progress)] == list(range(1, STEPS + 1))
    assert [e.world_size for e in events if isinstance(e, Started)] == [2]
    assert (events[-1], pod.ended().outcome, pod.ended().step) == (pod.ended(), "succeeded", STEPS)
    assert {*pod.ear.tokens} == {"a-token"}
    completed = Resolved.model_validate_json(pod.run.resolved(1).read_text())
    assert (completed.data_pending, completed.incarnation) == (False, "tiny-a1-abcde")
    assert "arithmetic: " in pod.ear.log.decode(), "what workers print"
    assert "arithmetic: " in pod.stdout
    for name in ("expert_load.json", "sample.txt"):
        assert (pod.ear.folder.artifacts / name).read_bytes() == (pod.run.artifacts / name).read_bytes()
    assert (pod.run.root / "driver.done").exists()
    assert list((pod.run.root / "workers").iterdir()) == [], "each process has signed off"


def test_a_stop_that_the_answer_orders(pod: Pod) -> None:
    def stop_at_ten(ear: Ear) -> Answer:
        far = any(isinstance(e, Progress) and e.step >= 10 for e in ear.events)
        return CheckpointAndStop(deadline=time.time() + 60, reason="cancelled") if far else Continue()

    pod.ear.answers = stop_at_ten
    pod.resolved = pod.resolved.model_copy(update={"recipe": pod.resolved.recipe.model_copy(update={"steps": 10_000})})
    (pod.configuration / agreed.RESOLVED).write_text(pod.resolved.model_dump_json())
    assert pod.train() == 0, pod.stdout
    ended = pod.ended()
    assert (ended.outcome, ended.failure_class, ended.message) == ("stopped", FailureClass.INTERRUPTED, "cancelled")
    saved = [e.step for e in pod.ear.events if isinstance(e, CheckpointCommitted)]
    assert saved[-1] == ended.step
    assert ended.step is not None
    assert 10 <= ended.step < 10_000


def test_a_dataset_that_is_not_there(pod: Pod) -> None:
    (pod.configuration / agreed.RESOLVED).write_text(
        pod.resolved.model_copy(
            update={"recipe": pod.resolved.recipe.model_copy(update={"data": str(pod.root / "none")})}
        ).model_dump_json()
    )
    assert pod.train() == 1
    ended = pod.ended()
    assert (ended.outcome, ended.failure_class) == ("failed", FailureClass.USER_ERROR)
    assert ended.message.startswith("spec.data.source: no prepared dataset at ")


def test_a_newer_attempt_ends_this_one_without_a_word(pod: Pod) -> None:
    pod.ear.refuse = lambda token: fenced() if any(isinstance(e, Progress) for e in pod.ear.events) else None
    (pod.configuration / agreed.RESOLVED).write_text(
        pod.resolved.model_copy(
            update={"recipe": pod.resolved.recipe.model_copy(update={"steps": 100_000})}
        ).model_dump_json()
    )
    assert pod.train() == 1
    assert not any(isinstance(event, Ended | CheckpointCommitted) for event in pod.ear.events)
    [ended] = [event for event in read(pod.run.events)[0] if isinstance(event, Ended)]
    assert (ended.failure_class, ended.message) == (FailureClass.FENCED, "attempt 2 has begun")
