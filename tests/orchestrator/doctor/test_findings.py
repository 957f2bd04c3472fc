"""Each check on a machine or a home in which something is wrong, and on one in which all is well."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from support.nvml import FakeNvml
from support.runs import tiny_job
from support.wire import Asked, Gone, Reply, as_json, problem, wire

from orchestrator.controller import outbox
from orchestrator.controller.outbox import Entry
from orchestrator.controller.record import Record
from orchestrator.doctor import files, installation, leftovers, machine, service
from orchestrator.doctor.findings import Check, Finding, Place, State, all_checks, examine, worst
from orchestrator.launch import local
from orchestrator.settings import Settings
from orchestrator.status import JobStatus, Phase


def place(home: Path, **env: str) -> Place:
    variables = {"FATHOM_HOME": str(home), "PATH": os.environ["PATH"]} | env
    return Place(Settings.load(variables), variables)


def look(check: Check, where: Place) -> list[Finding]:
    return list(examine(where, [check]))


def only(check: Check, where: Place) -> Finding:
    (found,) = look(check, where)
    return found


def test_all_is_well_in_an_empty_home_and_nothing_is_made_there(tmp_path: Path) -> None:
    quick = [one for one in all_checks() if one not in (installation.imports, files.prices)]
    home = tmp_path / "deep" / "home"
    found = list(examine(place(home), quick))
    assert [one for one in found if one.state is State.FAIL] == []
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_breaks_is_a_finding() -> None:
    def broken_thing(_: Place) -> Iterator[Finding]:
        raise RuntimeError("boom\x1b[31m\n")
        yield

    found = only(broken_thing, SimpleNamespace())  # type: ignore[arg-type]
    assert (found.check, found.state) == ("broken thing", State.FAIL)
    assert found.says == "could not be checked: RuntimeError: boom [31m"
    assert worst([found]) is State.FAIL
    assert worst([]) is State.OK


# Installation


def test_what_is_required_is_read_from_the_package() -> None:
    needed = installation.required()
    assert needed["torch"] == "2.11"
    assert needed["ray"] == "2.60"
    assert "pydantic" not in needed
    assert "pytest" not in needed


@pytest.mark.parametrize(
    ("versions", "state", "says"),
    [
        ({}, State.WARN, "training needs torch, ray"),
        ({"torch": "2.9.1+cu128", "ray": "2.60.0"}, State.FAIL, "too old: torch 2.9.1+cu128 (needs 2.11)"),
        ({"torch": "2.11.0", "ray": "2.100.0"}, State.OK, "torch 2.11.0"),
    ],
)
def test_packages(
    versions: dict[str, str], state: State, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "required", lambda: {"torch": "2.11", "ray": "2.60"})
    monkeypatch.setattr(installation, "version_of", versions.get)
    found = look(installation.packages, place(tmp_path))
    assert [one.state for one in found] == [state]
    assert says in found[0].says


@pytest.mark.parametrize(
    ("code", "state", "says"),
    [
        ("print('1.0 with 0 GPUs')", State.OK, "torch 1.0 with 0 GPUs"),
        ("raise ImportError('libcudart.so.13: cannot open')", State.FAIL, "libcudart.so.13: cannot open"),
        ("import os; os.abort()", State.FAIL, "it ended with -6"),
        ("import time; time.sleep(60)", State.FAIL, "torch is not imported after 1 s"),
    ],
)
def test_imports(code: str, state: State, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "_PATIENCE_SECONDS", 1.0 if "sleep" in code else 60.0)
    found = installation._imported("torch", code)
    assert found.state is state
    assert says in found.says


def test_a_missing_compiler_is_only_a_warning(tmp_path: Path) -> None:
    assert only(installation.compiler, place(tmp_path, PATH=str(tmp_path))).state is State.WARN


# Machine


TWO = "echo 'H100, 81559 MiB, 570.1'; echo 'H100, 81559 MiB, 570.1'"


def program(folder: Path, name: str, script: str) -> str:
    """-> a PATH on which it is found first."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("script", "state", "says"),
    [
        (TWO, State.OK, "2: H100, 81559 MiB, 570.1"),
        ("echo 'driver mismatch' >&2; exit 18", State.FAIL, "nvidia-smi finds none: driver mismatch"),
        ("exit 0", State.FAIL, "nvidia-smi finds none: it ended with 0"),
        ("exec sleep 60", State.FAIL, "nvidia-smi does not answer for 1 s"),
    ],
)
def test_gpus(script: str, state: State, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PATIENCE_SECONDS", 1.0 if "sleep" in script else 30.0)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(2))
    found = only(machine.gpus, place(tmp_path, PATH=program(tmp_path, "nvidia-smi", script)))
    assert (found.state, found.says) == (state, says)


@pytest.mark.parametrize(
    ("package", "visible", "state", "says", "do"),
    [
        (True, "1,5", State.OK, "; jobs may use 1 (CUDA_VISIBLE_DEVICES)", ""),
        (
            True,
            "5",
            State.WARN,
            "; jobs may use none of them",
            "correct CUDA_VISIBLE_DEVICES: jobs on GPUs are refused",
        ),
        (False, None, State.WARN, "; jobs may use none of them", "install the package nvidia-ml-py: jobs on GPUs"),
    ],
)
def test_gpus_that_jobs_may_not_use(
    package: bool,
    visible: str | None,
    state: State,
    says: str,
    do: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(2) if package else None)
    more = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = only(machine.gpus, place(tmp_path, PATH=program(tmp_path, "nvidia-smi", TWO), **more))
    assert (found.state, found.says) == (state, f"2: H100, 81559 MiB, 570.1{says}")
    assert found.do.startswith(do)


def test_limits_of_a_container_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2**29}\n")
    few = only(machine.processor, place(tmp_path))
    assert (few.state, few.says.startswith("0.5 cores")) == (State.WARN, True)
    little = look(machine.memory, place(tmp_path))[0]
    assert (little.state, little.says) == (State.WARN, "0.5 GiB of 1.0 GiB free")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert "0.5" not in only(machine.processor, place(tmp_path)).says


# Home and settings


def test_a_home_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    assert only(files.home, place(tmp_path / "home")).says.endswith("is no folder")


def test_a_home_that_cannot_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:  # noqa: ANN401
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refused)
    found = only(files.home, place(tmp_path))
    assert (found.state, "cannot be written: Permission denied" in found.says) == (State.FAIL, True)


@pytest.mark.parametrize(("free", "state"), [(2**29, State.FAIL), (5 * 2**30, State.WARN), (2**40, State.OK)])
def test_disk(free: int, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_files=10**6, f_favail=10**6))
    assert only(files.disk, place(tmp_path)).state is state


def test_a_disk_without_room_for_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**40))
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_files=10**6, f_favail=5))
    assert look(files.disk, place(tmp_path))[0].says == "only 5 more files fit"


@pytest.mark.parametrize(
    ("answers", "state", "says"),
    [
        ([False, True], State.OK, "locks keep other processes out"),
        ([True, True], State.FAIL, "two processes get the same lock"),
        ([False, False], State.FAIL, "a lock that was given back is not free"),
    ],
)
def test_locks(answers: list[bool], state: State, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_can_lock", lambda _: answers.pop(0))
    found = only(files.locks, place(tmp_path))
    assert (found.state, says in found.says) == (state, True)


def test_real_locks_of_this_file_system_work(tmp_path: Path) -> None:
    assert only(files.locks, place(tmp_path)).state is State.OK


def test_a_clock_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat

    def late(path: Any, **more: Any) -> Any:  # noqa: ANN401
        found = real(path, **more)
        return SimpleNamespace(st_mtime=found.st_mtime + 100) if ".fathom-doctor-" in str(path) else found

    monkeypatch.setattr("os.stat", late)
    found = only(files.clock, place(tmp_path))
    assert (found.state, "+100 s from this machine's clock" in found.says) == (State.WARN, True)
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    assert only(files.clock, place(tmp_path)).state is State.FAIL


@pytest.mark.parametrize(
    ("content", "mode", "state", "says"),
    [
        (b"k" * 32, 0o600, State.OK, "for you only"),
        (b"k" * 32, 0o640, State.FAIL, "mode 0640: others can read it"),
        (b"k" * 5, 0o600, State.FAIL, "holds 5 bytes, a key needs at least 32"),
    ],
)
def test_signing_key(content: bytes, mode: int, state: State, says: str, tmp_path: Path) -> None:
    key = tmp_path / "signing.key"
    key.write_bytes(content)
    key.chmod(mode)
    found = only(files.signing_key, place(tmp_path))
    assert (found.state, says in found.says) == (state, True)


def test_prices_are_valid_and_not_too_old(tmp_path: Path) -> None:
    row = "- {accelerator: H100, priceClass: on-demand, amount: '2.5', currency: USD, unit: gpu-hour, source: x, date: "
    own = tmp_path / "prices.yaml"
    own.write_text(row + "2019-01-01}\n")
    old = only(files.prices, place(tmp_path, FATHOM_PRICES=str(own)))
    assert (old.state, "the oldest of 2019-01-01 (H100 on-demand)" in old.says) == (State.WARN, True)
    own.write_text("nonsense")
    assert only(files.prices, place(tmp_path, FATHOM_PRICES=str(own))).state is State.FAIL


@pytest.mark.parametrize(
    ("variable", "check"), [("FATHOM_BUDGETS", files.budgets), ("FATHOM_WEBHOOKS", files.webhooks)]
)
def test_files_of_teams(variable: str, check: Check, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("- {team: UPPER}\n")
    own.chmod(0o600)
    assert only(check, place(tmp_path, **{variable: str(own)})).state is State.FAIL
    secret = base64.b64encode(b"k" * 24).decode()
    rows = {
        "FATHOM_BUDGETS": "limit: '5', currency: USD",
        "FATHOM_WEBHOOKS": f"url: 'https://x/', secret: whsec_{secret}",
    }
    own.write_text(f"- {{team: a, {rows[variable]}}}\n")
    assert only(check, place(tmp_path, **{variable: str(own)})).state is State.OK
    own.chmod(0o644)
    assert (only(check, place(tmp_path, **{variable: str(own)})).state is State.WARN) == (variable == "FATHOM_WEBHOOKS")


def test_mlflow(tmp_path: Path) -> None:
    assert "is made by the first run" in only(files.mlflow, place(tmp_path)).says
    (tmp_path / "mlflow.db").write_text("no database" * 1000)
    assert only(files.mlflow, place(tmp_path)).state is State.FAIL
    with wire() as server:
        server.replies(Reply(200, b"OK"))
        uri = server.url.replace("http://", "http://me:secret@")
        found = only(files.mlflow, place(tmp_path, MLFLOW_TRACKING_URI=uri))
        assert (found.state, found.says) == (State.OK, f"{server.url} answers 200")
        server.replies(Reply(503, b""))
        assert only(files.mlflow, place(tmp_path, MLFLOW_TRACKING_URI=uri)).state is State.WARN
    away = only(files.mlflow, place(tmp_path, MLFLOW_TRACKING_URI=uri))
    assert (away.state, "secret" in away.says) == (State.WARN, False)
    assert "not looked at" in only(files.mlflow, place(tmp_path, MLFLOW_TRACKING_URI="databricks")).says


# The service


def served(version: str, *, live: int = 200, refused: bool = False) -> Callable[[Asked], Reply | Gone]:
    def script(asked: Asked) -> Reply | Gone:
        if asked.path == "/livez":
            return as_json({}, live)
        if refused or asked.headers.get("authorization") != "Bearer right":
            return problem(401, "unauthorized")
        return Reply(200, f'# x\nfathom_build_info{{version="{version}",python="3"}} 1.0\n'.encode())

    return script


@pytest.mark.parametrize(
    ("script", "state", "says"),
    [
        (served(installation.own_version()), State.OK, f", fathom {installation.own_version()}"),
        (served("9.9"), State.WARN, "is fathom 9.9, this is"),
        (served("", refused=True), State.FAIL, "refuses our token"),
        (served("", live=404), State.FAIL, "answers 404 to /livez"),
        (lambda _: Gone(), State.FAIL, "does not answer"),
    ],
)
def test_service(script: Callable[[Asked], Reply | Gone], state: State, says: str, tmp_path: Path) -> None:
    with wire() as server:
        server.script = script
        found = look(service.service, place(tmp_path, FATHOM_URL=server.url, FATHOM_TOKEN="right"))
    assert found[0].state is state
    assert says in found[0].says


def test_a_service_that_is_gone_and_one_that_never_was(tmp_path: Path) -> None:
    assert only(service.service, place(tmp_path)).state is State.OK
    (tmp_path / "service.json").write_text('{"url": "http://127.0.0.1:1", "pid": 1, "started": 1, "boot": 1}')
    gone = only(service.service, place(tmp_path))
    assert (gone.state, "is gone" in gone.says) == (State.WARN, True)


def test_an_admin_token_that_others_can_read(tmp_path: Path) -> None:
    (tmp_path / "admin.token").write_text("x")
    (tmp_path / "admin.token").chmod(0o644)
    assert look(service.service, place(tmp_path))[0].state is State.FAIL


def test_a_clock_of_the_service_that_differs(tmp_path: Path) -> None:
    with wire() as server:
        ours = served(installation.own_version())
        server.script = lambda asked: with_date(ours(asked))
        found = look(service.service, place(tmp_path, FATHOM_URL=server.url, FATHOM_TOKEN="right"))
    assert "the service's clock is -" in found[1].says


def with_date(reply: Reply | Gone) -> Reply | Gone:
    assert isinstance(reply, Reply)
    return Reply(reply.status, reply.body, {**reply.headers, "Date": "Mon, 01 Jun 2026 12:00:00 GMT"})


# Leftovers


def test_runs_that_were_left_behind(tmp_path: Path) -> None:
    record = Record.create(tmp_path, tiny_job())
    record.save_status(JobStatus(phase=Phase.SUCCEEDED))
    assert only(leftovers.runs, place(tmp_path)).says == f"1 in {tmp_path}, none was left behind"
    record.save_status(JobStatus(phase=Phase.RUNNING))
    dead = only(leftovers.runs, place(tmp_path))
    assert (dead.state, "is Running by its status, but no process of it lives" in dead.says) == (State.WARN, True)
    with local.hold_lock(record.folder.launcher_lock):
        assert only(leftovers.runs, place(tmp_path)).state is State.OK, "somebody sees to it just now"
    with local.hold_lock(tmp_path / "service.lock"):
        assert only(leftovers.runs, place(tmp_path)).state is State.OK, "the service does"
    (record.folder.job).write_text("{")
    assert "cannot be read" in only(leftovers.runs, place(tmp_path)).says


def test_a_training_that_nobody_follows(tmp_path: Path) -> None:
    record = Record.create(tmp_path, tiny_job())
    code = (
        "import sys, pathlib; from orchestrator.launch.local import hold_lock\n"
        "with hold_lock(pathlib.Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(record.folder.lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert driver.stdin is not None
        driver.stdout.readline()
        found = only(leftovers.runs, place(tmp_path))
        assert (found.state, f"trains (process {driver.pid}), but nobody follows it" in found.says) == (
            State.WARN,
            True,
        )
        assert f"fathom train --resume {record.folder.root}" in found.do
        with suppress(psutil.NoSuchProcess):
            assert psutil.Process(driver.pid).is_running(), "it is only looked at"
        driver.stdin.close()


def test_a_lock_of_another_machine(tmp_path: Path) -> None:
    record = Record.create(tmp_path, tiny_job())
    with local.hold_lock(record.folder.lock):
        record.folder.lock.write_text('{"pid": 1, "started": 1, "boot": 1}')
        found = only(leftovers.runs, place(tmp_path))
    assert (found.state, "not by a driver on this machine" in found.says) == (State.WARN, True)


def test_many_leftovers_are_counted(tmp_path: Path) -> None:
    for number in range(23):
        Record.create(tmp_path, tiny_job(name=f"run-{number}")).save_status(JobStatus(phase=Phase.RUNNING))
    found = look(leftovers.runs, place(tmp_path))
    assert (len(found), found[-1].says) == (21, "and 3 more")


def test_notes_that_have_not_arrived(tmp_path: Path) -> None:
    assert look(leftovers.notes, place(tmp_path)) == []
    late = Entry(id="u-1-failed", to="job", team="a", url="https://x.test/hidden", at=time.time(), text="{}")
    outbox.write(outbox.outbox(tmp_path, "u"), [late.failed("x.test answered 500", time.time())])
    found = only(leftovers.notes, place(tmp_path))
    assert found.says == "1 notes have not arrived, the newest because x.test answered 500"
