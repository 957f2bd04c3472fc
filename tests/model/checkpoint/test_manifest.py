"""The values in a checkpoint's manifest: names that are no paths, a signature over everything."""

import json

import pytest
from pydantic import ValidationError
from support.checkpoints import KEY, TOPOLOGY, identity

from model.checkpoint.manifest import (
    CheckpointError,
    Manifest,
    StoredFile,
    folder_tag,
    parse_json,
    parse_manifest,
    tag_epoch,
)

MANIFEST = Manifest(
    identity=identity(),
    epoch=3,
    step=5,
    tokens=500,
    data_digest="d",
    recipe_digest="r",
    topology=TOPOLOGY,
    code_version="0",
    created=1.5,
    files=(StoredFile(name="a.pt", size=3, sha256="00"),),
)


def test_a_signature_covers_every_field() -> None:
    signed = MANIFEST.signed(KEY)
    other = {
        "version": 3,
        "identity": identity(2),
        "epoch": 4,
        "step": 6,
        "tokens": 1,
        "data_digest": "x",
        "recipe_digest": "x",
        "topology": TOPOLOGY.model_copy(update={"world_size": 4}),
        "code_version": "x",
        "created": 2.0,
        "skipped": (7,),
        "files": (),
    }
    assert other.keys() == Manifest.model_fields.keys() - {"signature"}
    signed.verify_signature(KEY)
    for name, value in other.items():
        with pytest.raises(CheckpointError, match="signature"):
            signed.model_copy(update={name: value}).verify_signature(KEY)


def test_it_comes_back_from_its_own_json() -> None:
    signed = MANIFEST.model_copy(update={"skipped": (3, 4)}).signed(KEY)
    assert parse_manifest(signed.model_dump_json(indent=1).encode(), KEY) == signed


def test_the_moment_of_writing_makes_no_difference() -> None:
    later = MANIFEST.model_copy(update={"created": 9.0}).signed(KEY)
    assert later.says_the_same(MANIFEST)
    assert not later.model_copy(update={"tokens": 1}).says_the_same(MANIFEST)


@pytest.mark.parametrize("name", ["../evil", "a/b", "/etc/passwd", "..", ".hidden", "", "a\\b", "a\n", "a\x00b", "é"])
def test_file_names_that_are_paths_are_no_file_names(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        StoredFile(name=name, size=0, sha256="")


@pytest.mark.parametrize("incarnation", ["a/b", "", "x" * 65, "a b", "a\n"])
def test_incarnations_are_names(incarnation: str) -> None:
    with pytest.raises(ValidationError, match="incarnation"):
        identity(incarnation=incarnation)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"files": []}, "files"),
        ({"epoch": 0}, "epoch"),
        ({"version": 1}, "version"),
        ({"step": -1}, "step"),
        ({"created": None}, "created"),
        ({"more": 1}, "more"),
    ],
)
def test_the_first_problem_is_one_line(change: dict[str, object], words: str) -> None:
    body = MANIFEST.signed(KEY).model_dump(mode="json") | change
    with pytest.raises(CheckpointError, match=f"its manifest is not valid: {words}.*: ") as caught:
        parse_manifest(json.dumps(body).encode(), KEY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b'"x"', b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"1" * 9999]
)
def test_anything_else_is_no_manifest(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        parse_manifest(data, KEY)


def test_deep_json_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="deeply"):
        parse_json(b"[" * 100_000)


def test_the_epoch_is_read_back_from_a_folders_name() -> None:
    assert tag_epoch(folder_tag(identity(2, "b-1.x"), 17)) == 17
    for name in ("manifest.json", "notes", "7", "a-7", "1-a-x", "1-a-", "1-a-١", "1-a-" + "9" * 99):
        assert tag_epoch(name) is None
