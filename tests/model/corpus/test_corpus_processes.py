"""Several processes: the same result, and none is left behind, however the command ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from corpora import json_lines, made, shards, texts

import model.corpus.units
from model.corpus.pool import Pool, cores

pytestmark = pytest.mark.processes

SCRIPT = """
import sys, threading
from pathlib import Path
import model.corpus.units
from model.corpus import Mixture, Options, Source, prepare

def main():
    model.corpus.units.UNIT_BYTES = 1500
    sys.modules["model.corpus.prepare"].BUCKET_DOCUMENTS = 10
    phase, number = sys.argv[3], int(sys.argv[4])
    seen = []
    def progress(name, done, total):
        seen.append(name)
        if seen.count(name) == number and name == phase:
            print("here", flush=True)
            threading.Event().wait()
    prepare(Mixture(sources=(Source(name="text", uri=sys.argv[1]),)), sys.argv[2],
            Options(vocab_size=300, workers=2), progress=progress)

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(model.corpus.units, "UNIT_BYTES", 1500)
    monkeypatch.setattr("corpora.PREPARE.BUCKET_DOCUMENTS", 10)
    (tmp_path / "x.jsonl").write_bytes(json_lines(texts(40)))
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "x.jsonl"


def wait_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=120)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_two_processes_give_what_one_gives(corpus: Path, tmp_path: Path) -> None:
    before = psutil.Process().children(recursive=True)
    one = made(corpus, tmp_path / "one", workers=1)
    two = made(corpus, tmp_path / "two", workers=2)
    assert two == one.model_copy(update={"sources": two.sources})
    assert [source.train for source in two.sources] == [source.train for source in one.sources]
    assert two.inputs_digest == one.inputs_digest
    assert shards(tmp_path / "two") == shards(tmp_path / "one")
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    assert not [p for p in left if "resource_tracker" not in " ".join(p.cmdline())]


@pytest.mark.parametrize(("phase", "number"), [("reading", 3), ("encoding", 2)])
def test_killed_with_its_processes_it_goes_on(corpus: Path, tmp_path: Path, phase: str, number: int) -> None:
    """SIGKILL: nothing can be tidied up, and the processes notice it themselves."""
    whole = made(corpus, tmp_path / "whole")
    command = [sys.executable, str(tmp_path / "script.py"), str(corpus), str(tmp_path / "out"), phase, str(number)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        with pytest.raises(FileExistsError, match="another process is preparing"):
            made(corpus, tmp_path / "out")
        process.send_signal(signal.SIGKILL)
    wait_gone(children)
    phases: list[str] = []
    assert made(corpus, tmp_path / "out", progress=lambda *step: phases.append(step[0])) == whole
    assert phases[0] == "resumed"
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_process_that_dies_is_told() -> None:
    with Pool(2) as pool, pytest.raises(ChildProcessError, match=r"one of the 2 processes died.*fewer --workers"):
        pool.map(die, list(range(20)), lambda result: None)


def fail(number: int) -> int:
    if number == 1:
        raise ValueError(f"piece {number}")
    return number


def test_an_error_in_a_process_is_the_error(tmp_path: Path) -> None:
    with Pool(2) as pool, pytest.raises(ValueError, match="piece 1"):
        pool.map(fail, list(range(50)), lambda result: None)


def test_one_process_or_one_piece_starts_none() -> None:
    found: list[int] = []
    with Pool(1) as pool:
        pool.map(os.getpgid, [0, 0], found.append)
    with Pool(4) as pool:
        pool.map(lambda number: os.getpid(), [0], found.append)
        assert pool._executor is None
    assert found == [os.getpgid(0), os.getpgid(0), os.getpid()]
    assert cores() >= 1
    with pytest.raises(ValueError, match="workers must be at least 1"):
        Pool(0)
