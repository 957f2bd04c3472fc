"""Folders of `datasets` whose description lies."""

import json
import os
from pathlib import Path

import pytest
from corpora import everything, made, texts


def describe(folder: Path, state: object) -> Path:
    folder.mkdir()
    (folder / "state.json").write_text(state if isinstance(state, str) else json.dumps(state))
    return folder


def arrow(path: Path, documents: list[str]) -> None:
    import pyarrow

    batch = pyarrow.record_batch({"text": documents})
    with pyarrow.ipc.new_stream(str(path), batch.schema) as stream:
        stream.write_batch(batch)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a\\b", "a\0b", "sub/x.arrow"])
def test_files_outside_are_refused(tmp_path: Path, name: str) -> None:
    folder = describe(tmp_path / "source", {"_data_files": [{"filename": name}]})
    with pytest.raises(ValueError, match="names a file outside of itself"):
        made(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["../other", "/etc", ".."])
def test_splits_outside_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(ValueError, match="names a file outside of itself"):
        made(folder, tmp_path / "out", split=name)


@pytest.mark.parametrize("state", [{"_data_files": 3}, {"_data_files": [{}]}, {"_data_files": ["x"]}])
def test_a_description_of_another_shape(tmp_path: Path, state: object) -> None:
    with pytest.raises(ValueError, match=r"state\.json does not name the dataset's files"):
        made(describe(tmp_path / "source", state), tmp_path / "out")


@pytest.mark.parametrize("splits", [None, 3, {}])
def test_splits_of_another_shape(tmp_path: Path, splits: object) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(ValueError, match=r"1 usable document\(s\)"):  # a text file of that name
        made(folder, tmp_path / "out")


@pytest.mark.parametrize("state", ["{", "[]", "[" * 100_000, '{"a": 1}', "\0"])
def test_another_file_of_that_name_is_text(tmp_path: Path, state: str) -> None:
    """Only `--format datasets` insists."""
    folder = describe(tmp_path / "source", state)
    (folder / "a.txt").write_text("first")
    (folder / "b.txt").write_text("second")
    found = everything(tmp_path / "out", made(folder, tmp_path / "out", vocab_size=260))
    assert {"first", "second"} <= set(found)
    with pytest.raises(ValueError, match=r"is no dataset of the `datasets` library: it has no state\.json"):
        made(folder, tmp_path / "two", format="datasets")


def test_links_and_pipes_are_left_out(tmp_path: Path) -> None:
    """As files of the dataset and in place of its description."""
    arrow(tmp_path / "secret.arrow", ["outside of the source"])
    names = ["good.arrow", "link.arrow", "pipe.arrow", "absent.arrow"]
    folder = describe(tmp_path / "source", {"_data_files": [{"filename": name} for name in names]})
    arrow(folder / "good.arrow", texts(4))
    (folder / "link.arrow").symlink_to(tmp_path / "secret.arrow")
    os.mkfifo(folder / "pipe.arrow")
    manifest = made(folder, tmp_path / "out")
    assert everything(tmp_path / "out", manifest) == sorted(texts(4))
    assert manifest.sources[0].skipped.symlink.examples == ("link.arrow",)
    assert manifest.sources[0].skipped.unreadable.examples == ("pipe.arrow", "absent.arrow")
    (folder / "state.json").unlink()
    os.mkfifo(folder / "state.json")
    assert "state.json" in made(folder, tmp_path / "two").sources[0].skipped.unreadable.examples


def test_a_split_that_is_a_link_is_left_out(tmp_path: Path) -> None:
    outside = describe(tmp_path / "outside", {"_data_files": [{"filename": "x.arrow"}]})
    arrow(outside / "x.arrow", texts(4))
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "train").symlink_to(outside)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    with pytest.raises(ValueError, match="skipped: 1 symlink"):
        made(folder, tmp_path / "out")
