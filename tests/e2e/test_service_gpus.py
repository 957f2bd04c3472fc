"""Jobs that share the GPUs of a machine, as their processes find them; services and `fathom train` are shot meanwhile.

The machine's GPUs are a `pynvml` of the test, the drivers are real processes that train nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.runs import dataset, tiny_job
from support.shooting import ROOT, Service, births, driven, drivers, left, wait_until

from orchestrator import Client
from orchestrator.errors import Unavailable
from orchestrator.launch.processes import kill_session
from orchestrator.spec import TrainingJob
from orchestrator.status import ConditionType, Phase

pytestmark = [pytest.mark.processes, pytest.mark.timeout(3600)]
STORY = {"seconds": 100_000.0, "outcome": "succeeded"}
NVML = "import sys\nfrom support.nvml import FakeNvml\nsys.modules[__name__] = FakeNvml({})\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    found = tmp_path / "home"
    found.mkdir()
    dataset(tmp_path / "data")
    (found / "story.json").write_text(json.dumps(STORY))
    for name in ("FATHOM_URL", "FATHOM_TOKEN", "FATHOM_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FATHOM_HOME", str(found))
    yield found
    for process in drivers(found):
        kill_session(process.pid)


def machine(home: Path, gpus: int, visible: str | None = None) -> dict[str, str]:
    """For the environment of a service on a machine of so many GPUs."""
    (home.parent / "nvml").mkdir(exist_ok=True)
    (home.parent / "nvml" / "pynvml.py").write_text(NVML.format(gpus))
    path = os.pathsep.join((str(home.parent / "nvml"), str(ROOT), str(ROOT / "tests")))
    return {"PYTHONPATH": path} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})


def job(home: Path, name: str, gpus: int = 1) -> TrainingJob:
    body = tiny_job(str(home.parent / "data"), name=name).model_dump(mode="json", by_alias=True, exclude_none=True)
    body["spec"]["compute"] = {"accelerator": "H100", "gpus": gpus} if gpus else {"accelerator": "cpu", "workers": 1}
    return TrainingJob.model_validate(body)


def environments(home: Path) -> dict[str, tuple[int, str | None]]:
    """By job: its driver, and the GPUs that this and all that it has started find."""
    found = {}
    for driver in drivers(home):
        try:
            run, every = driven(driver, home), [driver, *driver.children(recursive=True)]
            seen = {one.environ().get("CUDA_VISIBLE_DEVICES") for one in every}
            assert {one.environ().get("CUDA_DEVICE_ORDER") for one in every} == {"PCI_BUS_ID"}
        except psutil.Error:
            continue  # it has just ended
        assert run is not None
        [visible] = seen
        found[Path(run).name.rsplit("-", 2)[0]] = (driver.pid, visible)
    return found


def visible(home: Path) -> dict[str, str | None]:
    return {name: seen for name, (_, seen) in environments(home).items()}


def admitted(name: str) -> str:
    try:
        with Client() as client:
            conditions = client.get(name).status.conditions
    except Unavailable:
        return ""
    return next((one.message for one in conditions if one.type is ConditionType.ADMITTED), "")


def test_two_jobs_have_a_gpu_each_and_the_third_the_one_that_is_given_back(home: Path) -> None:
    """Of a service that may use two of three, and is shot meanwhile."""
    service = Service(home, **machine(home, 3, visible="2,0"), FATHOM_CPUS="8")
    service.start()
    wait_until(service.is_up, service.words)
    try:
        with Client() as client:
            for name, gpus in (("one", 1), ("two", 1), ("three", 1), ("cpu", 0)):
                client.apply(job(home, name, gpus))
        wait_until(lambda: visible(home) == {"one": "0", "two": "2", "cpu": ""}, service.words)
        wait_until(lambda: "0 of 2 GPUs are free" in admitted("three"), service.words)
        before = environments(home)
        service.shoot()
        service.start()
        wait_until(service.is_up, service.words)
        with Client() as client:
            client.apply(job(home, "four", 2))
            wait_until(lambda: "0 of 2 GPUs are free" in admitted("four"), service.words)
            assert environments(home) == before, "they are the same, and nothing was started beside them"
            assert admitted("two") == "it has GPU 2 of this machine"
            client.cancel("one")
            wait_until(lambda: visible(home) == {"three": "0", "two": "2", "cpu": ""}, service.words)
            assert environments(home)["two"] == before["two"]
            for name in ("two", "three"):
                client.cancel(name)
            wait_until(lambda: visible(home) == {"four": "0,2", "cpu": ""}, service.words)
            for name in ("four", "cpu"):
                client.cancel(name)
                assert client.wait(name, [Phase.CANCELLED], timeout=240).phase is Phase.CANCELLED
        wait_until(lambda: not drivers(home), service.words)
    finally:
        service.end()
    assert set(births(home).values()) == {1}


@pytest.mark.parametrize("place", ["prepared", "locked", "spawned", "started"])
def test_a_gpu_is_nobodys_or_its_drivers_wherever_the_service_dies(home: Path, place: str) -> None:
    service = Service(home, **machine(home, 2), FATHOM_CPUS="8")
    service.start(die_at=place)
    try:
        wait_until(lambda: (home / "service.json").exists(), service.words)
        with Client() as client:
            client.apply(job(home, "one"))
        service.has_shot_itself()
        before = environments(home)
        assert len(before) == (place in ("spawned", "started"))
        service.start()
        wait_until(service.is_up, service.words)
        with Client() as client:
            client.apply(job(home, "two"))
        wait_until(lambda: visible(home) == {"one": "0", "two": "1"}, service.words)
        assert before.items() <= environments(home).items()
    finally:
        service.end()
    assert set(births(home).values()) == {1}


def test_several_fathom_train_at_once_have_different_gpus(home: Path) -> None:
    """They begin together, and nobody looks after them all."""
    names, log = ("one", "two", "three"), home.parent / "train.log"
    trains: dict[str, subprocess.Popen[bytes]] = {}
    foreign = ("FATHOM_", "MLFLOW_", "RAY_", "CUDA_")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    environment = clean | machine(home, 2) | {"FATHOM_HOME": str(home), "OMP_NUM_THREADS": "1"}
    try:
        for name in names:
            (home.parent / f"{name}.json").write_text(job(home, name).model_dump_json(by_alias=True, exclude_none=True))
            command = [sys.executable, "-m", "support.training", str(home.parent / f"{name}.json")]
            with log.open("ab") as stream:
                trains[name] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
        wait_until(lambda: sorted(visible(home).values(), key=str) == ["0", "1"], log.read_text)
        [third] = set(names) - set(visible(home))
        status = f"{third}-*/status.json"
        wait_until(lambda: any("0 of 2 GPUs are free" in one.read_text() for one in home.glob(status)), log.read_text)
        assert "it waits: it needs 1 CPUs and 1 GPUs; " in log.read_text()
        first = next(name for name, seen in visible(home).items() if seen == "1")
        trains[first].send_signal(signal.SIGKILL)
        trains[first].wait()
        kill_session(environments(home)[first][0])
        wait_until(lambda: visible(home).get(third) == "1", log.read_text)
        assert len(visible(home)) == 2
    finally:
        for train in trains.values():
            train.kill()
            train.wait()
        for process in drivers(home):
            kill_session(process.pid)
    wait_until(lambda: not left(home), lambda: left(home), 30)
