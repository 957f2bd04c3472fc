import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.dataset import DatasetDamaged, DatasetMissing, Shard, content_digest, is_whole, read_manifest

SHA = "ab" * 32


def source(name: str, /, **changes: object) -> dict[str, Any]:
    """A valid source as plain data."""
    return {
        "name": name,
        "uri": "/texts",
        "train": {
            "documents": 2,
            "tokens": 7,
            "bytes": 20,
            "shards": [
                {"name": f"{name}/train-00000.bin", "tokens": 4, "sha256": SHA},
                {"name": f"{name}/train-00001.bin", "tokens": 3, "sha256": SHA},
            ],
        },
        "heldout": {
            "documents": 1,
            "tokens": 2,
            "bytes": 5,
            "shards": [{"name": f"{name}/heldout-00000.bin", "tokens": 2, "sha256": SHA}],
        },
    } | changes


def manifest(**changes: object) -> dict[str, Any]:
    """A valid manifest as plain data, with some keys changed and the digest made to fit."""
    value: dict[str, Any] = {
        "version": 2,
        "inputs_digest": SHA,
        "tokenizer": {"file": "tokenizer.json", "sha256": SHA, "vocab_size": 300, "end_of_text": 0},
        "dtype": "uint16",
        "sources": [source("text", weight=None)],
        "baselines": {"order0_bits_per_byte": 4.5, "xz_bits_per_byte": 2.0, "xz_bytes": 5},
    }
    value |= changes
    shards = [
        Shard(**shard) for one in value["sources"] for side in ("train", "heldout") for shard in one[side]["shards"]
    ]
    value.setdefault("digest", content_digest(value["tokenizer"]["sha256"], shards))
    return value


def write(folder: Path, value: object) -> Path:
    (folder / "manifest.json").write_text(json.dumps(value))
    return folder


def test_reads_a_manifest_by_path_file_url_and_remote_url(tmp_path: Path) -> None:
    import fsspec

    write(tmp_path, manifest())
    found = read_manifest(tmp_path)
    assert (found.tokens("train"), found.documents("train"), found.bytes("heldout")) == (7, 2, 5)
    assert found.bytes_per_token == pytest.approx(20 / 7)
    assert read_manifest(f"file://{tmp_path}") == found
    with fsspec.open("memory://corpus/manifest.json", "w") as file:
        file.write(json.dumps(manifest()))
    assert read_manifest("memory://corpus/") == found


def test_a_missing_dataset_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing, match=r"fathom data prepare SOURCE .*nothing") as caught:
        read_manifest(tmp_path / "nothing")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(DatasetMissing, match="memory://nowhere"):
        read_manifest("memory://nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatasetMissing):
        read_manifest(tmp_path / "file")


@pytest.mark.parametrize(
    "raw", ["", "{", "[1, 2", "\udcff", "[" * 100_000], ids=["empty", "cut", "list", "bytes", "deep"]
)
def test_corrupt_json_names_the_file(tmp_path: Path, raw: str) -> None:
    (tmp_path / "manifest.json").write_bytes(raw.encode("utf-8", "surrogateescape"))
    with pytest.raises(DatasetDamaged, match=r"manifest\.json is not JSON"):
        read_manifest(tmp_path)


def test_a_newer_version_is_not_guessed_at(tmp_path: Path) -> None:
    with pytest.raises(DatasetDamaged, match=r"version 3, this program reads up to 2"):
        read_manifest(write(tmp_path, {"version": 3, "what": "ever"}))
    with pytest.raises(DatasetDamaged, match=r"version 1, this program reads 2: prepare it again with --force"):
        read_manifest(write(tmp_path, {"version": 1, "what": "ever"}))


def test_unknown_urls_are_explained() -> None:
    with pytest.raises(DatasetDamaged, match="nosuchprotocol"):
        read_manifest("nosuchprotocol://bucket/data")


def with_train(**changes: object) -> dict[str, Any]:
    one = source("text")
    return manifest(sources=[one | {"train": one["train"] | changes}])


NOTHING = {"documents": 0, "tokens": 0, "bytes": 0, "shards": []}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "manifest: "),
        (manifest(extra=1), "extra: "),
        (with_train(tokens=8), "7 tokens together, but the split says 8"),
        (manifest(digest="cd" * 32), "digest is cdcd"),
        (manifest(sources=[source("a"), source("a")]), "sources must have different names, got a, a"),
        (manifest(sources=[source("a", weight=1.0), source("b")]), "either all sources have a weight or none has"),
        (manifest(sources=[source("a", weight=0)]), "greater than 0"),
        (manifest(sources=[source("a", weight="inf")]), "weight"),
        (manifest(sources=[source("a", train=NOTHING)]), "a has nothing to train on"),
        (manifest(sources=[source("a", heldout=NOTHING)]), "no document is held out"),
        (manifest(sources=[source("text", name="../a")]), "name"),
        (manifest(sources=[]), "sources"),
        (
            manifest(tokenizer={"sha256": SHA, "vocab_size": 300, "end_of_text": 0, "fim": [1, 2, 300]}),
            r"fim \(300\) is not below",
        ),
        (
            manifest(tokenizer={"sha256": SHA, "vocab_size": 300, "end_of_text": 300}),
            r"end_of_text \(300\) is not below",
        ),
        (
            manifest(tokenizer={"sha256": SHA, "vocab_size": 70_000, "end_of_text": 0}),
            "uint16 cannot hold a vocabulary of 70000",
        ),
        (
            manifest(tokenizer={"file": "../x.json", "sha256": SHA, "vocab_size": 300, "end_of_text": 0}),
            r"tokenizer\.file",
        ),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(DatasetDamaged, match=message):
        read_manifest(write(tmp_path, value))


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "text/train-00000.bin\n",
        "text/train-1.bin",
        "text/../train-00000.bin",
        "other/train-00000.bin",
        "text/heldout-00000.bin",
        "text/train-00001.bin",
    ],
)
def test_shards_cannot_point_elsewhere(tmp_path: Path, name: str) -> None:
    value = manifest()
    value["sources"][0]["train"]["shards"][0]["name"] = name
    with pytest.raises(DatasetDamaged, match=r"sources\.0\.train|in order"):
        read_manifest(write(tmp_path, value))


def test_whole_means_all_files_in_their_sizes(tmp_path: Path) -> None:
    tokenizer = b"{}"
    value = manifest(tokenizer={"sha256": hashlib.sha256(tokenizer).hexdigest(), "vocab_size": 300, "end_of_text": 0})
    found = read_manifest(write(tmp_path, value))
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)
    (tmp_path / "text").mkdir()
    for shard in found.shards():
        assert not is_whole(tmp_path, found)
        (tmp_path / shard.name).write_bytes(bytes(2 * shard.tokens))
    assert is_whole(tmp_path, found)
    (tmp_path / "tokenizer.json").write_bytes(b"[]")
    assert not is_whole(tmp_path, found)


def test_importing_it_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, model.dataset; print(sorted({'torch', 'numpy', 'fsspec'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
