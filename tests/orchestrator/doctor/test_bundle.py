"""The zip for a helper: all that he needs, no secret, no more than it may hold."""

from __future__ import annotations

import base64
import io
import json
import os
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import pytest
from support.cli import command
from support.mirrored import Story

from orchestrator.controller.record import Record
from orchestrator.doctor import bundle
from orchestrator.doctor.bundle import make_bundle
from orchestrator.doctor.findings import Finding, Place, State
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob
from orchestrator.status import JobStatus, Phase

KEY = bytes(range(220, 252))
PLANTED = {
    "signing": base64.b64encode(KEY).decode(),
    "admin": "fth_adminADMINadmin",
    "own token": "fth_ownOWNown12345",
    "webhook path": "T0A/B0B/hookHOOKhook",
    "team path": "teampathTEAMPATH",
    "team secret": "whsec_" + base64.b64encode(b"s" * 24).decode(),
    "environment": "wandbWANDB0123",
    "odd": 'pw"with\\odd/chars',
    "mlflow": "mlflowPASSWORD99",
    "foreign": "foreignDRIVERpass",
    "pem": "MIIEvQIBADANBgkq",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "bearer": "eyJhbGciOiJI.eyJzdWIiOi.c2lnbmF0",
}


def texts(data: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


def place(home: Path, **env: str) -> Place:
    variables = {"FATHOM_HOME": str(home)} | env
    return Place(Settings.load(variables), variables)


def planted(tmp_path: Path) -> tuple[Record, Place]:
    """A real run with secrets wherever somebody or something may have put one."""
    home, inside = tmp_path / "home", tmp_path / "inside"
    inside.mkdir()
    story = Story(home, "x").whole()
    root = story.record.folder.root
    job = story.record.job.document()
    job["spec"]["notify"] = {"url": f"https://hooks.example.org/{PLANTED['webhook path']}"}
    job["spec"]["tracking"] = {"tags": {"api_key": PLANTED["environment"]}}
    story.record.with_job(TrainingJob.model_validate(job))
    everything = "\n".join(
        [
            *PLANTED.values(),
            *(json.dumps({"x": value}) for value in PLANTED.values()),
            *(quote(value, safe="") for value in PLANTED.values()),
            *(base64.b64encode(value.encode()).decode() for name, value in PLANTED.items() if name in KNOWN),
            KEY.hex(),
        ]
    )
    unknown = (
        f"postgresql://me:{PLANTED['foreign']}@db/x AWS {PLANTED['aws']} Authorization: Bearer {PLANTED['bearer']}\n"
        f"-----BEGIN PRIVATE KEY-----\n{PLANTED['pem']}\n-----END PRIVATE KEY-----\n"
    )
    known = "\n".join(line for line in everything.splitlines() if not any(PLANTED[n] in line for n in UNKNOWN))
    for name in ("logs/attempt-1.log", "logs/stacks-attempt-1-i1-rank-0.txt", "failure-1-i1.json", "control.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(f"begin\n{known}\n{unknown}\nend\n")
    story.say("warning", 20, 2, message=f"{known} {unknown}"[:4000])
    status = {"phase": "Failed", "attempts": [_failed(f"unknown: {PLANTED['admin']} password={PLANTED['odd']}")]}
    story.record.save_status(JobStatus.model_validate_json(json.dumps(status)))
    (root / "ledger").mkdir()
    (root / "ledger/ledger.json").write_text(json.dumps({"source": f"https://u:{PLANTED['mlflow']}@prices/"}))
    (home / "signing.key").write_bytes(KEY)
    (home / "admin.token").write_text(PLANTED["admin"])
    (inside / "own.token").write_text(PLANTED["own token"])
    row = f"team: a, url: 'https://x.test/{PLANTED['team path']}', secret: {PLANTED['team secret']}"
    (inside / "hooks.yaml").write_text(f"- {{{row}}}\n")
    (inside / "shadow").write_text("outside of the run")
    (root / "logs/attempt-2.log").symlink_to(inside / "shadow")
    os.mkfifo(root / "logs/attempt-3.log")
    env = {
        "WANDB_API_KEY": PLANTED["environment"],
        "AWS_SESSION_TOKEN": PLANTED["odd"],
        "MLFLOW_TRACKING_URI": f"https://me:{PLANTED['mlflow']}@mlflow.example.org/",
        "FATHOM_TOKEN_FILE": str(inside / "own.token"),
        "FATHOM_WEBHOOKS": str(inside / "hooks.yaml"),
        "RAY_ADDRESS": "10.0.0.1:6379",
        "HOME": "/somebody",
    }
    return Record.open(root), place(home, **env)


KNOWN = frozenset({"admin", "own token", "webhook path", "team path", "team secret", "environment", "odd", "mlflow"})
UNKNOWN = ("foreign", "pem", "aws", "bearer")
"""Of which this machine knows nothing: found by how they look."""


def _failed(reason: str) -> Mapping[str, object]:
    return {"number": 1, "startedAt": "2026-06-01T12:00:00Z", "outcome": "failed", "reason": reason}


def test_no_secret_leaves_the_house(tmp_path: Path) -> None:
    record, where = planted(tmp_path)
    findings = [Finding("mlflow", State.WARN, f"https://me:{PLANTED['mlflow']}@host said {PLANTED['admin']}")]
    data, contents = make_bundle(record, where, findings)
    found = texts(data)
    whole = "\n".join([*found, *found.values(), contents])
    for name, secret in PLANTED.items():
        for form in {secret, json.dumps(secret)[1:-1], quote(secret, safe="")}:
            assert form not in whole, name
        if name in KNOWN:
            assert base64.b64encode(secret.encode()).decode() not in whole, name
    assert KEY.hex() not in whole
    assert "outside of the run" not in whole
    assert "/somebody" not in whole
    for name in ("logs/attempt-1.log", "logs/stacks-attempt-1-i1-rank-0.txt", "failure-1-i1.json"):
        assert found[name].startswith("begin\n")
        assert found[name].endswith("end\n"), "only the secrets are gone"
        assert f"{name}: " in contents


def test_all_that_a_helper_needs_is_there(tmp_path: Path) -> None:
    record, where = planted(tmp_path)
    found = texts(make_bundle(record, where, [Finding("home", State.OK, "fine")])[0])
    assert {"doctor.json", "why.txt", "versions.json", "environment.json", "files.txt", "CONTENTS.txt"} < set(found)
    assert {"job.json", "status.json", "held.json", "resolved-1.json", "resolved-2.json"} < set(found)
    assert {"events/events.jsonl", "ledger/ledger.json", "logs/attempt-1.log"} < set(found)
    assert "logs/attempt-2.log" not in found
    assert "logs/attempt-2.log (no plain file)" in found["files.txt"]
    assert "logs/attempt-3.log (no plain file)" in found["files.txt"]
    assert json.loads(found["environment.json"])["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert json.loads(found["environment.json"])["AWS_SESSION_TOKEN"] == "[removed]"
    assert json.loads(found["versions.json"])["packages"]["pydantic"]
    assert json.loads(found["doctor.json"]) == [{"check": "home", "state": "ok", "says": "fine", "do": ""}]
    assert found["why.txt"].startswith("tiny has failed")
    assert len(found["events/events.jsonl"].splitlines()) > 10
    assert json.loads(found["job.json"])["job"]["spec"]["training"]["tokens"] == 100_000
    assert json.loads(found["events/events.jsonl"].splitlines()[1])["tokens"] == 1_000_000


def test_a_folder_elsewhere_is_not_read(tmp_path: Path) -> None:
    record = Story(tmp_path / "home", "x").whole().record
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "attempt-1.log").write_text("not of this run")
    (record.folder.root / "logs").symlink_to(tmp_path / "elsewhere")
    found = texts(make_bundle(record, place(tmp_path / "home"), [])[0])
    assert "not of this run" not in "".join(found.values())


def test_it_is_bounded_and_says_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Story(tmp_path, "x").whole().record
    log = record.folder.log(1)
    log.parent.mkdir()
    monkeypatch.setattr(bundle, "_LOG", 100_000)
    lines = [f"line {number} ".ljust(99, "x") for number in range(4_000)]
    log.write_text("\n".join(lines) + "\n")
    found = texts(make_bundle(record, place(tmp_path), [])[0])
    kept = found["logs/attempt-1.log"]
    assert 90_000 < len(kept) <= 100_000
    assert kept.splitlines()[-1] == lines[-1]
    assert kept.splitlines()[0] in lines, "whole lines"
    assert "the last of 400,000" in found["CONTENTS.txt"]
    monkeypatch.setattr(bundle, "MAX_BYTES", 60_000)
    small = texts(make_bundle(record, place(tmp_path), [])[0])
    assert "logs/attempt-1.log: left out, since the bundle is full" in small["CONTENTS.txt"]
    assert sum(map(len, small.values())) < 65_000
    assert "job.json" in small


def test_half_a_secret_at_the_cut_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one line that is longer than all that may be kept."""
    monkeypatch.setattr(bundle, "_LOG", 10_000)
    record = Story(tmp_path, "x").whole().record
    (tmp_path / "admin.token").write_text("SECRETsecret" * 4)
    log = record.folder.log(1)
    log.parent.mkdir()
    tail = "\n" + "y" * 9_960 + "\n"
    for more in range(0, 60, 7):
        log.write_text("x" * more + "SECRETsecret" * 4 + tail)
        assert "ecret" not in texts(make_bundle(record, place(tmp_path), [])[0])["logs/attempt-1.log"]
    log.write_text("SECRETsecret" * 2_000)
    assert texts(make_bundle(record, place(tmp_path), [])[0])["logs/attempt-1.log"] == ""


def test_the_command_writes_it_for_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("orchestrator.doctor.findings.all_checks", lambda: (lambda _: [Finding("x", State.FAIL, "y")],))
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    record = Story(tmp_path, "x").whole().record
    record.save_status(JobStatus(phase=Phase.SUCCEEDED))
    doctor = command("doctor", monkeypatch, capsys)
    code, out, err = doctor("--bundle", "tiny")
    assert (code, out) == (0, f"fathom-{record.folder.root.name}.zip\n")
    assert "status.json: " in err
    made = tmp_path / out.strip()
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert "why.txt" in texts(made.read_bytes())
    assert doctor("--bundle", "tiny")[0] == 4, "it is there already"
    code, out, _ = doctor("--bundle", record.folder.root, "--output-file", made, "--force", "-o", "json")
    assert (code, json.loads(out)["bundle"]) == (0, str(made))
    assert doctor("--bundle", "nobody")[0] == 3
    assert doctor("--output-file", "x.zip")[0] == 2


def test_the_command_fails_where_a_check_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path))
    doctor = command("doctor", monkeypatch, capsys)
    good, bad = Finding("disk", State.WARN, "little", "make room"), Finding("home", State.FAIL, "gone", "set it")
    monkeypatch.setattr("orchestrator.doctor.findings.all_checks", lambda: (lambda _: [good],))
    code, out, _ = doctor()
    assert (code, out.split()) == (0, ["warn", "disk", "little", "->", "make", "room"])
    monkeypatch.setattr("orchestrator.doctor.findings.all_checks", lambda: (lambda _: [good, bad],))
    code, out, _ = doctor("-o", "json")
    assert code == 1
    assert json.loads(out)["worst"] == "fail"
    assert json.loads(out)["checks"][1] == {"check": "home", "state": "fail", "says": "gone", "do": "set it"}
    assert doctor("-o", "name")[1] == "disk\nhome\n"
