"""`fathom compare`: data on stdout, talk on stderr, a page that is whole or not there, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.api import Service
from support.cli import Cli, command
from support.compared import folder
from support.served import running
from support.store import small_job
from support.wire import as_json, wire

from orchestrator.cli.compare import By
from orchestrator.compare.document import Comparison
from orchestrator.compare.facts import Axis
from orchestrator.status import JobStatus, Phase
from orchestrator.store.access import Role

LOSSES = [5.0, 4.0, 3.5, 3.0]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs `fathom compare ...`: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path))
    return command("compare", monkeypatch, capsys)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [folder(tmp_path, "fast", LOSSES), folder(tmp_path, "slow", LOSSES, slower=2, seed=2)]


def test_what_a_person_reads(cli: Cli, runs: list[Path]) -> None:
    code, out, err = cli(*runs)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "At equal dollars ($6.000) fast is best with 1.5000 bits per byte; slow 2.0000 (+0.5000)."
    assert lines[2].split() == ["EVAL/BITS_PER_BYTE", "AT", "EQUAL", "fast", "slow"]
    assert lines[3].split() == ["dollars", "($6.000)", "1.5000", "*", "2.0000", "at", "60%", "of", "its", "own"]
    assert "fast: $7.000 for 1.5000: nobody beats it" in lines
    assert "slow: $11.00 for 1.5000: beaten by fast" in lines
    assert ["seed", "1", "2"] in [line.split() for line in lines]
    assert "until" not in out.lower()
    assert err == "note: which data fast, slow had is not recorded here: whether it is the same is not checked\n"
    wide = cli(*runs, "-o", "wide")[1]
    assert "UNTIL 1.5000 WAS REACHED" in wide
    assert "COST BY CLASS OF TIME" in wide


def test_programs_get_everything_and_nothing_else(cli: Cli, runs: list[Path]) -> None:
    code, out, err = cli(*runs, "-o", "json", "--by", "tokens", "--metric", "train/loss")
    assert (code, err[:5]) == (0, "note:")
    found = Comparison.model_validate_json(out)
    assert (found.by, found.metric.name, found.metric.unit) == ("tokens", "train/loss", "nats per token")
    assert yaml.safe_load(cli(*runs, "-o", "yaml", "--by", "tokens", "--metric", "train/loss")[1]) == json.loads(out)


def test_jobs_are_named_by_their_names(cli: Cli, runs: list[Path]) -> None:
    assert cli("slow", "fast", "-o", "json")[0] == 0
    assert cli("slow", runs[0].name)[0] == 0


def test_the_best_comes_first(cli: Cli, runs: list[Path]) -> None:
    assert cli("slow", "fast", "-o", "name")[:2] == (0, "fast\nslow\n")
    assert cli("slow", "fast", "-o", "name", "--metric", "train/tokens_per_second")[:2] == (0, "fast\nslow\n")
    assert cli("slow", "fast", "-o", "name", "--by", "tokens")[0] == 0


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A real service with the two jobs, whose home is not that of the command."""
    service = Service(tmp_path / "served")
    for name, slower in (("one", 1.0), ("two", 2.0)):
        stored = service.store.create(small_job(name), by="a")
        folder(service.home, name, LOSSES, slower=slower).rename(service.home / stored.folder)
        service.store.set_status(stored.uid, JobStatus(phase=Phase.SUCCEEDED))
    with running(service) as address:
        monkeypatch.setenv("FATHOM_URL", address)
        monkeypatch.setenv("FATHOM_TOKEN", service.secrets[Role.READER])
        yield address
    service.close()


def test_jobs_of_the_service_are_compared_by_it(cli: Cli, url: str, tmp_path: Path) -> None:
    code, out, _ = cli("one", "default/two", "--html", tmp_path / "page.html")
    assert code == 0
    assert out.startswith("At equal dollars ($6.000) one is best with 1.5000 bits per byte; two 2.0000 (+0.5000).")
    assert (tmp_path / "page.html").read_bytes().startswith(b"<!doctype html>")
    found = Comparison.model_validate_json(
        cli("one", "two", "--by", "hours", "--metric", "train/loss", "-o", "json")[1]
    )
    assert (found.by, found.metric.name) == ("hours", "train/loss")
    code, out, err = cli("one", "none")
    assert (code, out) == (3, "")
    assert "default/none" in err


def test_folders_are_read_here_beside_a_service(cli: Cli, url: str, runs: list[Path]) -> None:
    assert cli(*runs)[1].startswith("At equal dollars ($6.000) fast is best")


def test_a_service_of_another_version(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with wire() as server:
        monkeypatch.setenv("FATHOM_URL", server.url)
        monkeypatch.setenv("FATHOM_TOKEN", "secret")
        server.routes(GET_me=as_json({"name": "a", "role": "reader"}), GET_compare=as_json({"version": 9}))
        code, _, err = cli("a/b", "a/c")
    assert code == 2
    assert "a form that this version does not know" in err


def test_the_page_is_written_beside_the_table(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, out, err = cli(*runs, "--html", page)
    assert code == 0
    assert out.startswith("At equal dollars")
    assert err.endswith(f"{page}: written\n")
    assert page.read_bytes().startswith(b"<!doctype html>")
    before = page.read_bytes()
    code, out, err = cli(*runs, "--html", page, "--metric", "train/loss")
    assert (code, out, page.read_bytes()) == (4, "", before)
    assert "exists already: give --force" in err
    assert cli(*runs, "--html", page, "--metric", "train/loss", "--force")[0] == 0
    assert page.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["fast"], 2, "a comparison is of 2 to 20 runs, got 1: name another one, with which to compare"),
        (["fast", "fast"], 2, "the run fast is named twice"),
        (["fast", "none"], 3, "there is no run of a job 'none' in"),
        (["fast", "slow", "--metric", "train/los"], 3, "no run has the metric 'train/los': did you mean train/loss"),
        (["fast", "slow", "--by", "joules"], 2, "joules"),
        (["fast", "slow", "--html", "page.txt"], 2, "--html must end in .html, got page.txt"),
        ([], 2, "Missing argument 'RUN...'"),
    ],
)
def test_what_is_refused(cli: Cli, runs: list[Path], arguments: list[str], code: int, says: str) -> None:
    ended, out, err = cli(*arguments)
    assert (ended, out) == (code, "")
    assert err.startswith("error: ")
    assert says in err


def test_a_damaged_run_is_named(cli: Cli, runs: list[Path]) -> None:
    (runs[1] / "held.json").write_text("{")
    code, _, err = cli(*runs)
    assert code == 2
    assert f"{runs[1] / 'held.json'} cannot be read" in err


def test_the_axes_of_the_command_are_those_of_the_comparison() -> None:
    assert [by.value for by in By] == [axis.value for axis in Axis]
