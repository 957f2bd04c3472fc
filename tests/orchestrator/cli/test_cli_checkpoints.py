"""`fathom checkpoints`: what is said about good, damaged and missing checkpoints, and what is never removed."""

import io
import json
import shutil
import sys
from pathlib import Path

import fsspec
import pytest
from support.checkpoints import save, upload
from support.cli import Cli, command
from support.runs import resolved, tiny_job

from model.checkpoint import Identity, Store
from orchestrator.controller.record import Record
from orchestrator.launch.local import hold_lock
from orchestrator.launch.resolve import JobRef
from orchestrator.settings import Settings


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `fathom checkpoints ...`: exit code, stdout, stderr."""
    return command("checkpoints", monkeypatch, capsys)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path / "runs"))
    monkeypatch.delenv("FATHOM_SIGNING_KEY_FILE", raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path / "runs"


@pytest.fixture
def record(home: Path) -> Record:
    return Record.create(home, tiny_job())


@pytest.fixture
def run(record: Record) -> Path:
    return record.folder.root


def launched(record: Record, storage: str, attempt: int = 1) -> None:
    """As the launcher leaves the run's folder."""
    one = resolved(attempt=attempt, storage=storage, job=JobRef(namespace="default", name="tiny", uid=record.uid))
    record.folder.resolved(attempt).write_text(one.model_dump_json())
    Settings.load().signing_key()


def begun(record: Record, attempt: int = 1) -> Store:
    """The storage as rank 0 of an attempt finds it."""
    storage = str(record.folder.root)
    launched(record, storage, attempt)
    identity = Identity(job=record.uid, attempt=attempt, incarnation=f"i{attempt}")
    return Store(storage, identity, Settings.load().signing_key())


@pytest.fixture
def store(record: Record) -> Store:
    """Good checkpoints of steps 5, 10 and 15, the last by a second attempt."""
    store = begun(record)
    store.claim()
    save(store, 5)
    save(store, 10)
    second = begun(record, attempt=2)
    second.claim()
    save(second, 15)
    return second


def damage(run: Path, step: int) -> None:
    path = next((run / "checkpoints" / f"step-{step}").glob("*/rank-0.pt"))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


# ------------------------------------------------------------------- list
def test_list_for_people(cli: Cli, run: Path, store: Store) -> None:
    upload(store, 20)
    (run / "checkpoints/step-10/manifest.json").write_text("[red]x")
    code, out, err = cli("list", run)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["STEP", "TOKENS", "SIZE", "CREATED", "(UTC)", "TOPOLOGY", "BY", "STATE"]
    assert lines[1].split()[:4] == ["5", "500", "552", "B"]
    assert "1970-01-01 00:00  2 processes, experts over 2, ZeRO-1, fp32  1/i1/1  ok" in lines[1]
    assert lines[2].split() == ["10", "-", "-", "-", "-", "-", "unusable"]
    assert "2/i2/2" in lines[3]
    assert lines[4].split() == ["20", "-", "-", "-", "-", "-", "unfinished"]
    assert "step-10: its manifest is not valid: Invalid JSON" in lines[5]
    assert lines[6] == "step-20: unfinished: it has no manifest"
    assert "verify checks contents" in err


def test_list_for_programs(cli: Cli, run: Path, store: Store) -> None:
    (run / "checkpoints/step-10/1-i1-1/rank-1.pt").unlink()
    code, out, err = cli("list", run, "-o", "json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert [(row["step"], row["state"], row["problem"]) for row in rows] == [
        (5, "ok", None),
        (10, "unusable", "rank-1.pt is missing"),
        (15, "ok", None),
    ]
    assert rows[2] == {
        "step": 15,
        "state": "ok",
        "problem": None,
        "tokens": 1500,
        "bytes": 552,
        "files": 2,
        "created": "1970-01-01T00:00:01.500000+00:00",
        "attempt": 2,
        "incarnation": "i2",
        "epoch": 2,
        "topology": {"worldSize": 2, "expertParallel": 2, "zeroStage": 1, "precision": "fp32"},
        "skipped": [],
    }


def test_list_looks_at_no_contents(cli: Cli, run: Path, store: Store) -> None:
    damage(run, 10)
    _, out, _ = cli("list", run, "-o", "json")
    assert [row["state"] for row in json.loads(out)] == ["ok"] * 3


def test_topology_in_words(store: Store) -> None:
    topology = store.verify(5).topology
    alone = topology.model_copy(update={"world_size": 1, "expert_parallel": 1, "zero_stage": 0, "precision": "bf16"})
    assert str(topology) == "2 processes, experts over 2, ZeRO-1, fp32"
    assert str(alone) == "1 process, ZeRO-0, bf16"


# ------------------------------------------------------------------- verify
def test_verify_all(cli: Cli, run: Path, store: Store) -> None:
    upload(store, 20)
    code, out, err = cli("verify", run)
    assert code == 0, "one in the making is not damaged"
    assert out.splitlines() == ["step-20: unfinished: it has no manifest", "step-15: ok", "step-10: ok", "step-5: ok"]
    assert err == "a resume would take step 15\n"


def test_verify_names_what_is_damaged_and_what_a_resume_would_take(cli: Cli, run: Path, store: Store) -> None:
    damage(run, 15)
    code, out, err = cli("verify", run)
    assert code == 1
    assert "step-15: rank-0.pt has changed since it was written" in out
    assert "step-5: ok" in out
    assert err == "error: 1 of 3 checked cannot be used (step 15); a resume would take step 10\n"
    damage(run, 10)
    damage(run, 5)
    assert "a resume would begin anew" in cli("verify", run)[2]


def test_verify_one(cli: Cli, run: Path, store: Store) -> None:
    damage(run, 15)
    upload(store, 20)
    assert cli("verify", run, 10) == (0, "step-10: ok\n", "")
    code, out, err = cli("verify", run, 15)
    assert (code, out) == (1, "step-15: rank-0.pt has changed since it was written\n")
    assert "a resume would take step 10" in err
    assert cli("verify", run, 20)[0] == 1
    code, _, err = cli("verify", run, 7)
    assert code == 3
    assert "there is no checkpoint of step 7: there are 5, 10, 15, 20" in err


# ------------------------------------------------------------------- rm
class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_rm(cli: Cli, run: Path, store: Store) -> None:
    assert cli("rm", run, 5, 10, 5, "--yes") == (0, "removed step-5\nremoved step-10\n", "")
    assert store.steps() == [15]
    code, _, err = cli("rm", run, 15, "--yes")
    assert code == 4
    assert "step 15 is the last that verifies" in err
    assert store.verify(15)
    assert cli("rm", run, 15, "--yes", "--force")[0] == 0
    assert store.steps() == []


def test_rm_reads_contents_before_it_trusts_what_is_left(cli: Cli, run: Path, store: Store) -> None:
    damage(run, 5)
    damage(run, 15)
    code, _, err = cli("rm", run, 10, "--yes")
    assert code == 4
    assert "step 10 is the last that verifies" in err
    assert cli("rm", run, 5, 15, "--yes")[0] == 0
    damage(run, 10)
    assert cli("rm", run, 10, "--yes")[0] == 0, "there is nothing to lose"


def test_rm_asks_on_a_terminal(cli: Cli, run: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    code, out, err = cli("rm", run, 5)
    assert (code, out.strip()) == (130, "")
    assert f"remove step 5 from {run} for ever? [y/N]" in err
    assert store.steps() == [5, 10, 15]
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    code, out, _ = cli("rm", run, 5)
    assert code == 0
    assert store.steps() == [10, 15]


def test_rm_does_not_guess_without_a_terminal(
    cli: Cli, run: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, _, err = cli("rm", run, 5)
    assert code == 2
    assert "--yes" in err
    assert store.steps() == [5, 10, 15]


def test_rm_knows_what_there_is(cli: Cli, run: Path, store: Store) -> None:
    code, _, err = cli("rm", run, 5, 7, "--yes")
    assert code == 3
    assert "there is no checkpoint of step 7: there are 5, 10, 15" in err
    assert store.steps() == [5, 10, 15]


def test_rm_waits_for_the_run_to_end(cli: Cli, run: Path, record: Record, store: Store) -> None:
    with hold_lock(record.folder.lock):
        code, _, err = cli("rm", run, 5, "--yes", "--force")
    assert code == 4
    assert "is being trained by process" in err
    with hold_lock(record.folder.launcher_lock):
        assert cli("rm", run, 5, "--yes")[0] == 4
    assert store.steps() == [5, 10, 15]
    assert cli("rm", run, 5, "--yes")[0] == 0


# ------------------------------------------------------------------- what may be missing or broken
@pytest.mark.parametrize("command", [["list"], ["verify"], ["rm", "5", "--yes"]])
def test_bad_surroundings_are_messages(
    cli: Cli, record: Record, run: Path, home: Path, tmp_path: Path, command: list[str]
) -> None:
    def expect(code: int, words: str, folder: Path = run) -> None:
        given, out, err = cli(command[0], folder, *command[1:])
        assert (given, out) == (code, "")
        assert words in err
        assert "Traceback" not in err
        assert err.startswith("error: ")

    expect(3, "is not the folder of a run", tmp_path / "nowhere")
    expect(3, "none of its attempts was ever started")
    begun(record)
    key = home / "signing.key"
    content = key.read_bytes()
    key.unlink()
    expect(2, "FATHOM_SIGNING_KEY_FILE")
    assert not key.exists(), "looking makes no key"
    key.write_bytes(b"short")
    expect(2, "holds 5 bytes")
    key.write_bytes(content)
    record.folder.resolved(1).write_text("{")
    expect(2, "resolved-1.json")
    launched(record, "nosuch://bucket")
    expect(2, "nosuch")
    (tmp_path / "file").write_text("")
    launched(record, str(tmp_path / "file"))
    expect(1, "Not a directory")


def test_a_run_without_checkpoints(cli: Cli, record: Record, run: Path) -> None:
    begun(record)
    assert cli("list", run) == (0, "", f"no checkpoints in {run}\n")
    assert cli("list", run, "-o", "json") == (0, "[]\n", f"no checkpoints in {run}\n")
    assert cli("verify", run) == (3, "", f"error: no checkpoints in {run}\n")
    assert cli("rm", run, 5, "--yes")[0] == 3
    assert not (run / "checkpoints").exists()


def test_a_damaged_folder(cli: Cli, run: Path, store: Store) -> None:
    shutil.rmtree(run / "checkpoints/step-15")
    (run / "checkpoints/step-15").write_text("no folder")
    code, out, _ = cli("verify", run)
    assert code == 1
    assert "step-15: is a file, not a folder" in out
    assert cli("rm", run, 15, "--yes")[0] == 0
    assert store.steps() == [5, 10]


def test_a_storage_out_of_reach(cli: Cli, record: Record, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",  # nobody listens there
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    launched(record, "s3://bucket/job")
    code, out, err = cli("list", run)
    assert (code, out) == (1, "")
    assert "error: s3://bucket/job cannot be used: EndpointConnectionError: Could not connect" in err

    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    code, _, err = cli("list", run)
    assert code == 2
    assert "fathom-train[s3]" in err
