"""The driver of a cluster on a real Ray cluster: a head without CPUs and a node with workers, as two kinds of pods are.

All of it is on this machine, so that nothing here shows what happens between machines.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.canaries import files_below, found_in_texts
from support.ear import Ear, listening
from support.home import JOB, ROOT
from support.pods import INCARNATION, PATIENCE, HeadPod
from support.shooting import wait_until

from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import (
    CheckpointCommitted,
    Event,
    Progress,
    Started,
    WorkersLost,
    read,
)
from orchestrator.launch.resolve import Resolved, resolve
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]

STEPS = 40


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """Of a cluster whose head counts no CPU."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80_000_000, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "tests"))))
        cluster = Cluster(initialize_head=True, head_node_args=small | {"num_cpus": 0})
        try:
            patch.setenv("FATHOM_NODE", "node-2")  # as the pods of workers have it, and not the driver's
            cluster.add_node(num_cpus=2, object_store_memory=80_000_000)
            yield cluster.address
        finally:
            cluster.shutdown()


@pytest.fixture
def pod(tmp_path: Path, data: Path, ray_address: str) -> Iterator[HeadPod]:
    document = yaml.safe_load(JOB)
    document["metadata"] = {"name": "tiny", "namespace": "team-a"}
    document["spec"]["data"]["source"] = str(data)
    document["spec"]["training"] |= {"tokens": STEPS * 256, "evaluation": {"everySteps": 20}}
    document["spec"]["checkpoint"]["uri"] = str(tmp_path / "storage")
    job = TrainingJob.model_validate(document)
    resolved = resolve(
        job, uid="u-1", attempt=1, incarnation="placeholder", settings=Settings.load({"FATHOM_HOME": "/no"}),
        storage_uri="unused", read_data=False,
    )  # fmt: skip
    command = [sys.executable, "-m", "orchestrator.launch.entry"]
    environment = {"RAY_ADDRESS": ray_address, "AWS_SECRET_ACCESS_KEY": "canary-of-the-store-0123"}
    with listening(RunFolder(tmp_path / "controller")) as ear:
        yield HeadPod(
            tmp_path,
            job,
            resolved,
            ear,
            command,
            environment,
            "canary-of-the-pod-0123",
            b"canary-of-the-key-0123456789abcd",
        )


def test_workers_die_and_the_run_goes_on_to_its_end(pod: HeadPod) -> None:
    with pod.driver() as process:
        wait_until(lambda: process.poll() is not None or has(pod.ear, Progress), lambda: pod.said, PATIENCE)
        registered = [int(file.name) for file in (pod.run.root / "workers").iterdir()]
        assert len(registered) == 2, pod.said
        for process_id in registered:  # a peer that lives on would be heard before it is known who died
            os.kill(process_id, signal.SIGKILL)
        assert process.wait(PATIENCE) == 0, pod.said
    lost = [event for event in pod.ear.events if isinstance(event, WorkersLost)]
    assert lost, "told by Ray's controller, through the mailbox"
    assert {node for event in lost for node in event.nodes} == {"node-2"}, lost
    left = [int(file.name) for file in (pod.run.root / "workers").iterdir()]
    assert sorted(left) == sorted(registered), "all others have signed off"
    require_whole(pod)
    require_no_secret_anywhere(pod)


def require_whole(pod: HeadPod) -> None:
    """The controller knows what the pod knows, and has what is left of a run."""
    events = pod.ear.events
    assert events == read(pod.run.events)[0]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert {(e.job, e.attempt, e.incarnation) for e in events} == {("u-1", 1, INCARNATION)}
    starts = [number for number, event in enumerate(events) if isinstance(event, Started)]
    assert [e.world_size for e in events if isinstance(e, Started)] == [2, 2]
    again = [e.step for e in events[starts[1] :] if isinstance(e, Progress)]
    assert again == list(range(again[0], STEPS + 1)), "from where it was saved last"
    saved = [e.step for e in events[: starts[1]] if isinstance(e, CheckpointCommitted)]
    assert again[0] > max(saved, default=0)
    assert (events[-1], pod.ended().outcome, pod.ended().step) == (pod.ended(), "succeeded", STEPS)
    assert {*pod.ear.tokens} == {pod.token}
    completed = Resolved.model_validate_json(pod.run.resolved(1).read_text())
    assert (completed.data_pending, completed.incarnation) == (False, INCARNATION)
    assert "arithmetic: " in pod.ear.log.decode(), "what workers print"
    assert "arithmetic: " in pod.said
    for name in ("expert_load.json", "sample.txt"):
        assert (pod.ear.folder.artifacts / name).read_bytes() == (pod.run.artifacts / name).read_bytes()
    assert pod.done


def require_no_secret_anywhere(pod: HeadPod) -> None:
    """In no event, log, artifact or checkpoint, and in nothing that was printed."""
    secrets = {"token": pod.token.encode(), "signing key": pod.key, "store": pod.more["AWS_SECRET_ACCESS_KEY"].encode()}
    told = {"log": pod.ear.log, "printed": pod.said.encode()}
    told |= {f"event {event.seq}": event.model_dump_json().encode() for event in pod.ear.events}
    places = (
        files_below(pod.run.root, ()) | files_below(pod.ear.folder.root, ()) | files_below(pod.root / "storage", ())
    )
    assert found_in_texts(secrets, told | places) == []


def has(ear: Ear, kind: type[Event]) -> bool:
    return any(isinstance(event, kind) for event in ear.events)
