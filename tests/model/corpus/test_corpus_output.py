"""The output folder: what may be replaced, what is never touched."""

import json
from pathlib import Path

import pytest
from corpora import documents, made, shards

import model.corpus.output
from model.corpus.output import publish
from model.data import TokenSplit
from model.dataset import read_manifest


def test_the_second_time_nothing_is_done(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = made(source, out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    phases: list[str] = []
    assert made(source, out, progress=lambda phase, done, total: phases.append(phase)) == first
    assert phases == ["reused"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps
    for name in ("text/train-00000.bin", "tokenizer.json"):
        (out / name).write_bytes(b"")
        assert made(source, out) == first, "a dataset that is not whole is made again"
        TokenSplit(out, first, first.sources[0], "train").verify()
        assert documents(out, first, "train")


def test_other_inputs_need_force(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = made(source, out)
    for change in ({"vocab_size": 301}, {"license": "MIT"}, {"heldout_share": 0.4}, {"fim_rate": 0.2}):
        with pytest.raises(FileExistsError, match="--force"):
            made(source, out, **change)  # type: ignore[arg-type]
    assert read_manifest(out) == first
    second = made(source, out, vocab_size=310, force=True)
    assert second.digest != first.digest
    assert read_manifest(out) == second
    (out / "manifest.json").write_text("{")
    with pytest.raises(FileExistsError, match="--force"):
        made(source, out, vocab_size=310)
    assert made(source, out, vocab_size=310, force=True) == second
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_a_changed_file_is_another_input(source: Path, tmp_path: Path) -> None:
    made(source, tmp_path / "out")
    (source / "0.txt").write_text("something else")
    with pytest.raises(FileExistsError, match="--force"):
        made(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["thesis.doc", "thesis", "text/thesis.doc", "text/thesis", ".hidden"])
@pytest.mark.parametrize("before", ["nothing", "a manifest", "a dataset"])
def test_force_never_removes_other_files(source: Path, tmp_path: Path, before: str, name: str) -> None:
    out = tmp_path / "out"
    if before == "a dataset":
        made(source, out, vocab_size=260)
    (out / name).parent.mkdir(exist_ok=True, parents=True)
    (out / name).write_text("years of work")
    if before == "a manifest":
        (out / "manifest.json").write_text("{}")
    with pytest.raises(FileExistsError, match="not a prepared dataset"):
        made(source, out, force=True)
    assert (out / name).read_text() == "years of work"
    with pytest.raises(FileExistsError, match="is not a folder"):
        made(source, out / name, force=True)


def test_an_older_dataset_needs_force(source: Path, tmp_path: Path) -> None:
    """Version 1 had its shards beside the manifest."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text(json.dumps({"version": 1}))
    (out / "tokenizer.json").write_text("{}")
    (out / "train-00000.bin").write_bytes(b"")
    with pytest.raises(FileExistsError, match="--force"):
        made(source, out)
    made(source, out, force=True)
    assert set(shards(out)) == {"tokenizer.json", "text/train-00000.bin", "text/heldout-00000.bin"}


def test_places_that_overlap(source: Path, tmp_path: Path) -> None:
    for out in (source, source / "out", source / "sub" / "deeper" / "out"):
        with pytest.raises(ValueError, match="lies inside the source"):
            made(source, out)
    with pytest.raises(ValueError, match="lies inside the source"):
        made(source.as_uri(), source / "out")
    with pytest.raises(ValueError, match="lies inside the output"):
        made(source, tmp_path)
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(ValueError, match="lies inside the source"):
        made(source, tmp_path / "link" / "out")


def test_an_empty_folder_and_missing_parents_are_taken(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    first = made(source, tmp_path / "empty")
    assert made(source, tmp_path / "a" / "b" / "c").digest == first.digest
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["c"]


def test_a_folder_that_appears_meanwhile_is_left_alone(source: Path, tmp_path: Path) -> None:
    """A file in its place: neither replaced nor removed."""
    building = tmp_path / ".x" / "result"
    building.mkdir(parents=True)
    (building / "manifest.json").write_text("{}")
    (tmp_path / "out").mkdir()
    publish(building, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_text() == "{}"
    assert not building.exists()
    assert list((tmp_path / ".x").iterdir()) == []


def test_everything_is_durable_before_the_name_says_that_it_is_complete(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, synced = tmp_path / "out", []

    def sync(path: Path) -> None:
        synced.append((path.name, path.is_file(), out.exists()))

    monkeypatch.setattr(model.corpus.output, "make_durable", sync)
    made(source, out)
    files = {path.name for path in out.rglob("*")}
    assert {name for name, _, there in synced if not there} == files | {"result"}
    assert synced[-1] == (tmp_path.name, False, True)


def test_what_an_interrupted_replacement_has_left_is_no_obstacle(source: Path, tmp_path: Path) -> None:
    """Killed while the replaced dataset was being removed."""
    made(source, tmp_path / "out")
    left = tmp_path / ".out.preparing" / "result.old"
    left.mkdir(parents=True)
    (left / "manifest.json").write_text("{}")
    again = made(source, tmp_path / "out", vocab_size=310, force=True)
    assert read_manifest(tmp_path / "out") == again
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}
