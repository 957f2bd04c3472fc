"""A new user's day with the service: jobs by YAML, curl and Python, a service that is killed, and what it comes to."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from support.canaries import files_below, found_in_texts
from support.faults import slow
from support.home import FATHOM, JOB, Done, Home, finish
from support.shooting import left

from orchestrator import Client
from orchestrator.launch import local
from orchestrator.launch.base import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]
HOOKS = "hooks.yaml"
PLANTED = {"AWS_SECRET_ACCESS_KEY": "canary-of-the-store-0123", "WANDB_API_KEY": "canary-of-another-0123"}
"""Secrets in the environment of the service, which its drivers and workers inherit."""
PATH_OF_HOOK, SECRET_OF_HOOK = (
    "canary-of-the-hook-0123",
    "whsec_" + base64.b64encode(b"canary-of-the-team-0123x").decode(),
)
SECOND, LONG = 200, 3000
"""Steps of the job that is suspended, and of the one that is cancelled at last."""
BROKEN = "broken"
"""Folder of the data of a third job: one bit of a shard is not what it was."""
ENDED = ("FINISHED", "KILLED", "FAILED")
"""What MLflow says of a run that is over."""
ALONE = {"parallelism": {}, "compute": {"accelerator": "cpu", "workers": 1}}


def job(name: str, steps: int) -> dict[str, Any]:
    """The tests' tiny model on one worker."""
    found: dict[str, Any] = yaml.safe_load(JOB)
    found["metadata"]["name"] = name
    found["spec"] |= ALONE
    found["spec"]["training"]["tokens"] = 256 * steps
    found["spec"]["tracking"] = {"experiment": "day"}
    found["spec"]["data"]["source"] = "data"
    return found


def break_data(home: Home) -> str:
    """-> the name of the shard."""
    shutil.copytree(home.root / "data", home.root / BROKEN)
    shard = next((home.root / BROKEN).glob("*/train*.bin"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    return shard.name


def serve(home: Home) -> subprocess.Popen[bytes]:
    """-> once it serves."""
    with (home.root / "service.log").open("ab") as log:
        environment = home.environment() | {"FATHOM_CPUS": "2", "FATHOM_WEBHOOKS": str(home.root / HOOKS)} | PLANTED
        command = [*FATHOM, "serve", "--port", "0"]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=home.root, env=environment)
    until, announced = time.monotonic() + 240, home.runs / "service.json"
    while not (announced.exists() and json.loads(announced.read_text())["pid"] == process.pid):
        assert process.poll() is None, (home.root / "service.log").read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    return process


def post(url: str, token: Path, document: dict[str, Any]) -> dict[str, Any]:
    """With curl, as docs/api.md says it."""
    curl = shutil.which("curl")
    assert curl is not None, "the test is of those who have it"
    header = ["-H", f"Authorization: Bearer {token.read_text().strip()}", "-H", "Content-Type: application/json"]
    command = [curl, "-sS", "--fail-with-body", "-X", "POST", *header, "--data-binary", "@-", f"{url}/v1/jobs"]
    done = subprocess.run(command, input=json.dumps({"job": document}), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


PRINTED: list[str] = []


def fine(home: Home, *arguments: object) -> Done:
    """A command that ends well; what it says is shown where the test fails."""
    done = home.fathom(*arguments)
    PRINTED.append(done.out + done.err)
    print(f"$ fathom {' '.join(map(str, arguments))}\n{done.out}{done.err}")
    assert done.code == 0, done.err
    return done


def plant(home: Home) -> None:
    """A webhook that nobody answers, so that there is something to complain of."""
    row = f"{{team: default, url: 'http://127.0.0.1:1/{PATH_OF_HOOK}', secret: {SECRET_OF_HOOK}}}"
    (home.root / HOOKS).write_text(f"- {row}\n")


def require_no_secret_anywhere(home: Home) -> None:
    """In no log, event, status, ledger, artifact, run of MLflow, metric or answer, and in nothing that was printed."""
    token, key = ((home.runs / name).read_bytes().strip() for name in ("admin.token", "signing.key"))
    secrets = {name: value.encode() for name, value in PLANTED.items()}
    secrets |= {
        "admin token": token,
        "signing key": key,
        "hook": PATH_OF_HOOK.encode(),
        "team": SECRET_OF_HOOK.encode(),
    }
    files = files_below(home.root, {"admin.token", "signing.key", HOOKS})
    assert len(files) > 50
    assert "canary" not in json.dumps(sorted(files))
    assert any(b"webhook of the team" in text for name, text in files.items() if name == "service.log")
    url = json.loads((home.runs / "service.json").read_text())["url"]
    for path in ("/metrics", "/v1/jobs", "/v1/jobs/default/second", "/v1/jobs/default/second/events", "/v1/audit"):
        request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {token.decode()}"})
        with urllib.request.urlopen(request) as answer:
            files[path] = answer.read()
    assert found_in_texts(secrets, files | {"what commands print": "\n".join(PRINTED).encode()}) == []


def test_a_day_with_the_service(make_home: Callable[[], Home], monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home()
    plant(home)
    home.inject(slow(0.08, SECOND), slow(0.2, LONG))  # they last while other things happen, which want the cores
    monkeypatch.setenv("FATHOM_HOME", str(home.runs))
    service = serve(home)
    try:
        _day(home, service)
    finally:
        home.end_all()
        for line in left(home.runs):
            with suppress(psutil.NoSuchProcess):
                psutil.Process(int(line.split()[0])).kill()
        print((home.root / "service.log").read_text())


def _day(home: Home, service: subprocess.Popen[bytes]) -> None:
    (home.root / "two.yaml").write_text(
        f"{yaml.safe_dump(job('first', 120))}---\n{yaml.safe_dump(job('second', SECOND))}"
    )
    fine(home, "apply", "two.yaml", "-y")
    announced = json.loads((home.runs / "service.json").read_text())
    shard, by_curl = break_data(home), job("by-curl", 60)
    by_curl["spec"]["data"]["source"] = str(home.root / BROKEN)
    assert post(announced["url"], home.runs / "admin.token", by_curl)["metadata"]["name"] == "by-curl"
    by_client = job("by-client", LONG)
    by_client["spec"]["data"]["source"] = str(home.root / "data")
    with Client() as client:
        assert client.apply(by_client).key == "default/by-client"
    fine(home, "list")
    fine(home, "wait", "second", "--until", "Running", "--until", "Succeeded")
    following = home.start("logs", "first", "-f")
    fine(home, "suspend", "second", "--wait")
    fine(home, "why", "second")
    assert finish(following).code == 0, "it ends with the job"
    fine(home, "wait", "first")

    fine(home, "wait", "by-client", "--until", "Running")
    folder = RunFolder(next(home.runs.glob("by-client-*")))
    driver = local.running(folder)
    assert driver is not None
    service.send_signal(signal.SIGKILL)
    service.wait()
    gone = home.fathom("list")
    print(gone.err)
    assert gone.code != 0
    service = serve(home)
    fine(home, "resume", "second")
    fine(home, "wait", "second", "--until", "Running", "--until", "Succeeded")
    again = local.running(folder)
    assert again is not None
    assert again.process.pid == driver.process.pid, "the training was not touched"
    fine(home, "cancel", "by-client", "--wait")
    fine(home, "wait", "second")
    _require_failed_at_once(home, shard)
    listed = json.loads(fine(home, "list", "-o", "json").out)
    phases = {one["metadata"]["name"]: one["status"]["phase"] for one in listed}
    assert phases == {"first": "Succeeded", "second": "Succeeded", "by-curl": "Failed", "by-client": "Cancelled"}
    fine(home, "get", "second")
    fine(home, "cost", "second")
    compared = fine(home, "compare", "first", "second", "--html", home.root / "compare.html")
    assert "first" in compared.out
    _require_in_mlflow_once(home, phases)
    require_no_secret_anywhere(home)
    fine(home, "delete", *phases, "-y")
    until = time.monotonic() + 240
    while json.loads(home.fathom("list", "-o", "json").out):
        assert time.monotonic() < until
    assert [path for path in home.runs.iterdir() if (path / "job.json").exists()] == []
    service.send_signal(signal.SIGINT)
    assert service.wait(240) == 0
    until = time.monotonic() + 240
    while found := left(home.runs):
        assert time.monotonic() < until, found
        time.sleep(0.2)


def _require_failed_at_once(home: Home, shard: str) -> None:
    """What no retry can cure; the reason names the file."""
    ended = home.fathom("wait", "by-curl")
    assert ended.code == 1, ended.out
    said = fine(home, "why", "by-curl").out
    assert "user-error" in said
    assert shard in said
    found = json.loads(fine(home, "get", "by-curl", "-o", "json").out)
    assert [one["outcome"] for one in found["status"]["attempts"]] == ["failed"], "and was not tried again"


def _require_in_mlflow_once(home: Home, names: dict[str, str]) -> None:
    """Each job, with its attempts below it, once and ended."""
    client, until = home.client(), time.monotonic() + 240
    while True:
        experiment = client.get_experiment_by_name("day")
        found = client.search_runs([experiment.experiment_id]) if experiment is not None else []
        parents = [run for run in found if run.data.tags.get("fathom.role") == "job"]
        if len(parents) == len(names) and all(run.info.status in ENDED for run in found):
            break
        assert time.monotonic() < until, [(run.info.run_name, run.info.status) for run in found]
        time.sleep(0.5)
    assert sorted(str(run.info.run_name) for run in parents) == sorted(names)
    attempts = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    assert len(attempts) == len(names) + 1, "the one that was suspended has two"
    assert [run.info.status for run in parents if run.info.run_name == "by-curl"] == ["FAILED"]
