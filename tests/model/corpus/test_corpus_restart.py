"""Interrupted anywhere, the same call again gives the same dataset and does nothing twice."""

import errno
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from corpora import PREPARE, json_lines, made, shards, texts

import model.corpus.runs
import model.corpus.units
import model.corpus.workspace
from model.corpus import steps
from model.corpus.listing import Member
from model.corpus.prepare import Progress
from model.corpus.records import Record
from model.corpus.runs import RunWriter
from model.corpus.units import Part
from model.corpus.workspace import workspace

STEPS = ("read", "select", "encode", "assemble")


class Stopped(BaseException):
    """As Ctrl-C: no handler of errors sees it."""


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 documents that are read in several units and encoded in several buckets."""
    monkeypatch.setattr(model.corpus.units, "UNIT_BYTES", 1500)
    monkeypatch.setattr(PREPARE, "BUCKET_DOCUMENTS", 10)
    path = tmp_path / "x.jsonl"
    path.write_bytes(json_lines(texts(40)))
    return path


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many pieces of each step were really done: each writes one marker."""
    counts: Counter[str] = Counter()
    before = steps.write_marker

    def count(path: Path, content: dict[str, Any], files: Iterable[Path] = ()) -> None:
        before(path, content, files)
        counts[path.parent.name + ("/shard" if path.name.startswith("shard") else "")] += 1

    monkeypatch.setattr(steps, "write_marker", count)
    return counts


def stop_at(phase: str, number: int) -> Progress:
    """A progress that raises at the n-th call of a phase."""
    seen: Counter[str] = Counter()

    def progress(name: str, done: int, total: int) -> None:
        seen[name] += 1
        if name == phase and seen[name] == number:
            raise Stopped

    return progress


PIECES = [("reading", n) for n in (1, 2, 4)] + [("tokenizer", n) for n in (1, 5)]
PIECES += [("encoding", n) for n in (1, 2, 4)] + [("assembling", n) for n in (1, 3)]


@pytest.mark.parametrize(("phase", "number"), PIECES)
def test_stopped_at_any_piece(corpus: Path, tmp_path: Path, done: Counter[str], phase: str, number: int) -> None:
    options = {"shard_tokens": 700}
    whole = made(corpus, tmp_path / "whole", **options)
    once = Counter(done)
    assert min(once.values()) >= 3
    done.clear()
    with pytest.raises(Stopped):
        made(corpus, tmp_path / "out", progress=stop_at(phase, number), **options)
    assert not (tmp_path / "out").exists()
    phases: list[str] = []
    again = made(corpus, tmp_path / "out", progress=lambda *step: phases.append(step[0]), **options)
    assert ("resumed" in phases) is ((phase, number) != ("reading", 1))
    assert again == whole
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")
    assert done == once, "each piece is done once"
    assert {path.name for path in tmp_path.iterdir()} == {"x.jsonl", "whole", "out"}


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_keeps_what_is_done(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Counter[str], step: str
) -> None:
    whole = made(corpus, tmp_path / "whole", shard_tokens=700)
    once = Counter(done)
    done.clear()
    folder = {"read": "runs", "select": "selected"}.get(step, "encoded")
    calls = 0
    before = model.corpus.workspace.write_whole

    def full(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += path.parent.name == folder and path.name.startswith("shard") is (step == "assemble")
        if calls == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        before(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(model.corpus.workspace, "write_whole", full)
        with pytest.raises(OSError, match="No space left"):
            made(corpus, tmp_path / "out", shard_tokens=700)
    assert (tmp_path / ".out.preparing").is_dir()
    assert made(corpus, tmp_path / "out", shard_tokens=700) == whole
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")
    assert done == once, "each piece is done once"


def test_a_disk_that_is_full_in_the_middle_of_a_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the piece is there, its marker is not."""
    whole = made(corpus, tmp_path / "whole")
    before = model.corpus.runs.RunWriter.flush

    def half(self: RunWriter) -> None:
        before(self)
        if self.stem == "unit-000002":
            path = self.folder / f"{self.stem}.0.txt"
            path.write_bytes(path.read_bytes()[:7])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(model.corpus.runs.RunWriter, "flush", half)
        with pytest.raises(OSError, match="No space left"):
            made(corpus, tmp_path / "out")
    assert made(corpus, tmp_path / "out") == whole


def spoil(path: Path, how: str) -> None:
    raw = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": raw[: len(raw) // 2], "empty": b"", "other": b"[1]", "object": b"{}"}[how])


PATTERNS = ["runs/*.json", "runs/*.idx", "runs/*.txt", "selected/*.json", "selected/*.idx", "encoded/bucket*.json"]
PATTERNS += ["encoded/*.bin", "encoded/shard*.json", "result/text/*.bin", "inputs"]


CASES = [(pattern, how) for pattern in PATTERNS for how in ("gone", "cut", "empty")]
CASES += [(pattern, how) for pattern in PATTERNS if pattern.endswith("json") for how in ("other", "object")]


@pytest.mark.parametrize(("pattern", "how"), CASES)
def test_a_torn_piece_is_done_again(corpus: Path, tmp_path: Path, pattern: str, how: str) -> None:
    """As a machine that loses its power leaves it."""
    whole = made(corpus, tmp_path / "whole", shard_tokens=700)
    with pytest.raises(Stopped):
        made(corpus, tmp_path / "out", progress=stop_at("assembling", 3), shard_tokens=700)
    for path in sorted((tmp_path / ".out.preparing").glob(pattern))[:2]:
        spoil(path, how)
    assert made(corpus, tmp_path / "out", shard_tokens=700) == whole
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")


def test_other_inputs_start_anew(corpus: Path, tmp_path: Path, done: Counter[str]) -> None:
    with pytest.raises(Stopped):
        made(corpus, tmp_path / "out", progress=stop_at("encoding", 3))
    done.clear()
    corpus.write_bytes(json_lines(texts(40, first=1000)))
    phases: list[str] = []
    found = made(corpus, tmp_path / "out", progress=lambda *step: phases.append(step[0]))
    assert "resumed" not in phases
    assert found.digest == made(corpus, tmp_path / "whole").digest
    assert done["runs"] == 2 * (phases.count("reading") - 1), "of both calls"


def test_a_file_that_changes_or_goes_meanwhile_is_noticed(source: Path, tmp_path: Path) -> None:
    """And what was made of it is not taken up."""

    def change(phase: str, done: int, total: int) -> None:
        if phase == "reading" and done == 0:
            (source / "sub" / "7.txt").write_text("replaced")

    with pytest.raises(ValueError, match=r"7\.txt changed while it was being prepared: run the command again"):
        made(source, tmp_path / "out", progress=change)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}

    def remove(phase: str, done: int, total: int) -> None:
        if phase == "reading" and done == 0:
            (source / "sub" / "7.txt").unlink()

    with pytest.raises(ValueError, match=r"7\.txt was there a moment ago"):
        made(source, tmp_path / "out", progress=remove)


def test_a_file_that_changes_while_it_is_read_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = steps.read_part

    def change(member: Member, part: Part, field: str, limit: int) -> Iterator[Record]:
        yield from before(member, part, field, limit)
        if member.name == "sub/7.txt":
            (source / "sub" / "7.txt").write_text("replaced")

    monkeypatch.setattr(steps, "read_part", change)
    with pytest.raises(ValueError, match=r"7\.txt changed while it was being prepared"):
        made(source, tmp_path / "out")


def test_a_second_one_at_the_same_time_is_refused(corpus: Path, tmp_path: Path) -> None:
    with (
        workspace(tmp_path / "out"),
        pytest.raises(FileExistsError, match=r"another process is preparing .*: wait"),
    ):
        made(corpus, tmp_path / "out")
    made(corpus, tmp_path / "out")


def test_an_interrupted_start_anew_takes_nothing_up(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while the pieces of other inputs were being removed, and then called with those again."""
    whole = made(corpus, tmp_path / "whole")
    with pytest.raises(Stopped):
        made(corpus, tmp_path / "out", progress=stop_at("encoding", 3))

    def stop(path: Path, **_: object) -> None:
        for file in path.glob("*.0.*"):
            file.unlink()
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(model.corpus.workspace.shutil, "rmtree", stop)
        with pytest.raises(Stopped):
            made(corpus, tmp_path / "out", vocab_size=310)
    phases: list[str] = []
    assert made(corpus, tmp_path / "out", progress=lambda *step: phases.append(step[0])) == whole
    assert "resumed" not in phases


def test_a_marker_says_what_its_piece_has_given(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        made(corpus, tmp_path / "out", progress=stop_at("reading", 3))
    marker = tmp_path / ".out.preparing" / "runs" / "unit-000000.json"
    content = json.loads(marker.read_text())
    assert content["documents"] > 3
    assert {Path(name).suffix for name in content["files"]} == {".txt", ".idx"}
