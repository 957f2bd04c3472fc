import hashlib
import json
import lzma
import math
import os
import random
from collections import Counter
from pathlib import Path

import model.prepare
import pytest
from model.prepare import prepare, wanted

from model.data import TokenSplit
from model.dataset import DatasetManifest, read_manifest
from model.tokenizer import Tokenizer

WORDS = ["stone", "river", "cloud", "ember", "north", "hollow", "quiet", "copper", "größe", "漢字"]


def text(seed: int, words: int = 60) -> str:
    """Some words, different for each seed."""
    rng = random.Random(seed)
    return f"{seed}: " + " ".join(rng.choice(WORDS) for _ in range(words)) + "\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """40 documents in two folders."""
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    for number in range(40):
        place = folder / "sub" if number % 2 else folder
        (place / f"{number}.txt").write_text(text(number), encoding="utf-8")
    return folder


def documents(out: Path, manifest: DatasetManifest, side: str) -> list[str]:
    """The documents of one side, decoded from the shards."""
    tokenizer = Tokenizer.load(out)
    split = TokenSplit(out, manifest, side)  # type: ignore[arg-type]
    split.verify()
    found: list[str] = []
    current: list[int] = []
    for token in split.read(0, len(split)).tolist():
        if token == tokenizer.end_of_text:
            found.append(tokenizer.decode_bytes(current).decode())
            current = []
        else:
            current.append(token)
    assert not current, "the last document must end with end-of-text"
    return found


def test_every_document_is_on_one_side_and_comes_back_exactly(source: Path, tmp_path: Path) -> None:
    (source / "special.txt").write_text("a <|endoftext|> b\r\n\ufeffend", encoding="utf-8", newline="")
    out = tmp_path / "out"
    manifest = prepare(
        source,
        out,
        vocab_size=300,
        heldout_share=0.2,
        shard_tokens=500,
        license="CC0-1.0",
        provenance="drawn",
    )
    train, heldout = documents(out, manifest, "train"), documents(out, manifest, "heldout")
    expected = [path.read_bytes().decode() for path in source.rglob("*.txt")]
    assert sorted(train + heldout) == sorted(expected)
    assert not set(train) & set(heldout)
    assert 2 <= len(heldout) <= 20
    for side, texts in (("train", train), ("heldout", heldout)):
        split = manifest.split(side)  # type: ignore[arg-type]
        assert split.documents == len(texts)
        assert split.bytes == sum(len(part.encode()) for part in texts)
        assert all(shard.tokens <= 500 for shard in split.shards)
    assert len(manifest.splits.train.shards) > 1
    assert (manifest.license, manifest.provenance) == ("CC0-1.0", "drawn")
    assert manifest.source == str(source)
    assert manifest == read_manifest(out)
    assert manifest.tokenizer.vocab_size == 300
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_baselines_are_those_of_the_heldout_text(source: Path, tmp_path: Path) -> None:
    manifest = prepare(source, tmp_path / "out", vocab_size=300, heldout_share=0.2)
    raw = "".join(documents(tmp_path / "out", manifest, "heldout")).encode()
    entropy = -sum(n / len(raw) * math.log2(n / len(raw)) for n in Counter(raw).values())
    packed = lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)
    assert manifest.baselines.order0_bits_per_byte == pytest.approx(entropy, abs=1e-9)
    assert manifest.baselines.xz_bits_per_byte == pytest.approx(8 * len(packed) / len(raw))
    assert manifest.baselines.xz_bytes == len(raw)


def test_xz_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.prepare, "XZ_BYTES", 10)
    found = model.prepare.baselines([b"abcdef", b"ghijkl", b"mnop"])
    assert found.xz_bytes == 10
    assert found.xz_bits_per_byte == 8 * len(lzma.compress(b"abcdefghij", preset=9 | lzma.PRESET_EXTREME)) / 10
    assert found.order0_bits_per_byte == pytest.approx(4.0)


def test_the_result_does_not_depend_on_names_or_on_the_run(source: Path, tmp_path: Path) -> None:
    first = prepare(source, tmp_path / "a", vocab_size=320)
    for path in list(source.rglob("*.txt")):
        path.rename(source / ("z" + hashlib.sha256(path.name.encode()).hexdigest()))
    second = prepare(source, tmp_path / "b", vocab_size=320)
    assert first.digest == second.digest
    (source / "one more").write_text("something new")
    assert prepare(source, tmp_path / "c", vocab_size=320).digest != first.digest


def test_a_document_keeps_its_side_when_others_come(source: Path, tmp_path: Path) -> None:
    before = prepare(source, tmp_path / "a", vocab_size=300, heldout_share=0.3)
    for number in range(100, 140):
        (source / f"{number}.txt").write_text(text(number), encoding="utf-8")
    after = prepare(source, tmp_path / "b", vocab_size=300, heldout_share=0.3)
    for side in ("train", "heldout"):
        assert set(documents(tmp_path / "a", before, side)) <= set(documents(tmp_path / "b", after, side))


def test_the_vocabulary_is_learned_from_training_text_only(source: Path, tmp_path: Path) -> None:
    manifest = prepare(source, tmp_path / "a", vocab_size=400, heldout_share=0.2)
    train = documents(tmp_path / "a", manifest, "train")
    assert Tokenizer.train(train, 400).to_json() == (tmp_path / "a/tokenizer.json").read_text(encoding="utf-8")


def test_unusable_files_are_counted_with_examples(source: Path, tmp_path: Path) -> None:
    (source / "zero.bin").write_bytes(b"abc\0def")
    (source / "latin.txt").write_bytes(b"gr\xfc\xdfe")
    (source / "nothing.txt").write_bytes(b"")
    (source / "blank.txt").write_bytes(b" \n\t\n")
    (source / "big.txt").write_bytes(b"x" * 5000)
    for number in range(7):
        (source / f"copy{number}.txt").write_bytes((source / "0.txt").read_bytes())
    outside = tmp_path / "secret.txt"
    outside.write_text("outside of the source")
    (source / "out.txt").symlink_to(outside)
    (source / "loop").symlink_to(source)
    (source / "self").symlink_to("self")
    (source / "broken").symlink_to("nowhere")
    (source / "inside.txt").symlink_to("sub/1.txt")
    os.mkfifo(source / "pipe")
    manifest = prepare(source, tmp_path / "out", vocab_size=300, max_file_bytes=4000)
    skipped = {kind: value["count"] for kind, value in manifest.skipped.model_dump().items()}
    assert skipped == {
        "binary": 1,
        "undecodable": 1,
        "empty": 2,
        "too_large": 1,
        "duplicate": 8,
        "symlink": 2,
        "unreadable": 3,
    }
    assert len(manifest.skipped.duplicate.examples) == 5
    assert manifest.skipped.binary.examples == ("zero.bin",)
    assert set(manifest.skipped.symlink.examples) == {"out.txt", "loop"}
    assert manifest.splits.train.documents + manifest.splits.heldout.documents == 40


def test_names_that_are_not_utf8(source: Path, tmp_path: Path) -> None:
    (source / os.fsdecode(b"\xff\xfe.txt")).write_bytes(b"\0")
    manifest = prepare(source, tmp_path / "out", vocab_size=300)
    assert manifest.skipped.binary.examples == ("\ufffd\ufffd.txt",)
    assert read_manifest(tmp_path / "out") == manifest


@pytest.mark.parametrize(
    ("name", "include", "exclude", "result"),
    [
        ("a/b/c.py", [], [], True),
        ("a/b/c.py", ["*.py"], [], True),
        ("a/b/c.txt", ["*.py"], [], False),
        ("test/x/y.py", ["*.py"], ["test/*"], False),
        ("test/x/y.py", ["*.py"], ["test"], False),
        ("test/x/y.py", ["*.py"], ["test/"], False),
        ("json/test/y.py", ["*.py"], ["test/*"], True),
        ("json/test/y.py", ["*.py"], ["*/test"], False),
        ("tester.py", ["*.py"], ["test"], True),
        ("a/b/c.py", ["a"], [], True),
        ("A/b.py", ["a"], [], False),
    ],
)
def test_globs(name: str, include: list[str], exclude: list[str], result: bool) -> None:
    assert wanted(name, include, exclude) is result


def test_globs_choose_files_and_folders(source: Path, tmp_path: Path) -> None:
    (source / "sub" / "deep").mkdir()
    (source / "sub" / "deep" / "x.txt").write_text("deep")
    (source / "note.md").write_text("note")
    found = prepare(source, tmp_path / "out", vocab_size=300, include=["*.txt"], exclude=["sub/*"])
    assert found.splits.train.documents + found.splits.heldout.documents == 20


def test_a_single_file_is_cut_into_documents(tmp_path: Path) -> None:
    whole = "\n".join(text(number, 40) for number in range(100))
    (tmp_path / "book.txt").write_text(whole, encoding="utf-8")
    manifest = prepare(tmp_path / "book.txt", tmp_path / "out", vocab_size=300, heldout_share=0.2)
    parts = [part for side in ("train", "heldout") for part in documents(tmp_path / "out", manifest, side)]
    assert len(parts) > 10
    assert sum(map(len, parts)) == len(whole)
    assert all(part in whole for part in parts)


def test_long_documents_are_encoded_in_pieces(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.prepare, "ENCODE_BYTES", 100)
    manifest = prepare(source, tmp_path / "out", vocab_size=300)
    assert sorted(
        documents(tmp_path / "out", manifest, "train") + documents(tmp_path / "out", manifest, "heldout")
    ) == sorted(path.read_text(encoding="utf-8") for path in source.rglob("*.txt"))


def test_both_sides_get_a_document_or_the_error_says_why(tmp_path: Path) -> None:
    source = tmp_path / "two"
    source.mkdir()
    (source / "a").write_text("first")
    with pytest.raises(ValueError, match=r"has 1 usable document\(s\), at least 2 are needed"):
        prepare(source, tmp_path / "out", vocab_size=300)
    (source / "b").write_bytes(b"\0")
    with pytest.raises(ValueError, match="skipped: 1 binary"):
        prepare(source, tmp_path / "out", vocab_size=300)
    (source / "c").write_text("second")
    manifest = prepare(source, tmp_path / "out", vocab_size=300, heldout_share=1e-9)
    assert (manifest.splits.train.documents, manifest.splits.heldout.documents) == (1, 1)


def test_the_second_time_nothing_is_done(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare(source, out, vocab_size=300)
    stamps = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    phases: list[str] = []
    assert prepare(source, out, vocab_size=300, progress=lambda p, d, t: phases.append(p)) == first
    assert phases[-1] == "reused"
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == stamps
    (out / "train-00000.bin").write_bytes(b"")
    assert prepare(source, out, vocab_size=300) == first
    TokenSplit(out, first, "train").verify()


def test_other_inputs_need_force(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare(source, out, vocab_size=300)
    for change in ({"vocab_size": 301}, {"license": "MIT"}, {"heldout_share": 0.4}):
        with pytest.raises(FileExistsError, match="--force"):
            prepare(source, out, **{"vocab_size": 300, **change})  # type: ignore[arg-type]
    assert read_manifest(out) == first
    second = prepare(source, out, vocab_size=310, force=True)
    assert second.digest != first.digest
    assert read_manifest(out) == second
    (out / "manifest.json").write_text("{")
    with pytest.raises(FileExistsError, match="--force"):
        prepare(source, out, vocab_size=310)
    assert prepare(source, out, vocab_size=310, force=True) == second
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


@pytest.mark.parametrize("with_manifest", [False, True])
def test_force_never_removes_other_files(source: Path, tmp_path: Path, with_manifest: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.doc").write_text("years of work")
    if with_manifest:
        (out / "manifest.json").write_text("{}")
    with pytest.raises(FileExistsError, match="not a prepared dataset"):
        prepare(source, out, vocab_size=300, force=True)
    assert (out / "thesis.doc").read_text() == "years of work"
    with pytest.raises(FileExistsError, match="is not a folder"):
        prepare(source, out / "thesis.doc", vocab_size=300, force=True)


def test_places_that_overlap(source: Path, tmp_path: Path) -> None:
    for out in (source, source / "out", source / "sub" / "deeper" / "out"):
        with pytest.raises(ValueError, match="lies inside the source"):
            prepare(source, out)
    with pytest.raises(ValueError, match="lies inside the output"):
        prepare(source, tmp_path)
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(ValueError, match="lies inside the source"):
        prepare(source, tmp_path / "link" / "out")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        prepare(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        prepare("/dev/null", tmp_path / "out")


@pytest.mark.parametrize("share", [0, -0.1, 0.51, math.nan])
def test_shares_out_of_range(source: Path, tmp_path: Path, share: float) -> None:
    with pytest.raises(ValueError, match="heldout_share must be above 0"):
        prepare(source, tmp_path / "out", heldout_share=share)


def test_a_failure_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    def fail(phase: str, done: int, total: int) -> None:
        if phase == "encoding":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", vocab_size=300, progress=fail)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_file_that_changes_meanwhile_is_noticed(source: Path, tmp_path: Path) -> None:
    def change(phase: str, done: int, total: int) -> None:
        if phase == "tokenizer" and done == 0:
            for path in source.rglob("*.txt"):
                path.write_text("replaced")

    with pytest.raises(ValueError, match="changed while it was being prepared"):
        prepare(source, tmp_path / "out", vocab_size=300, progress=change)


def test_an_existing_tokenizer_is_used_as_it_is(source: Path, tmp_path: Path) -> None:
    prepare(source, tmp_path / "a", vocab_size=350)
    again = prepare(source, tmp_path / "b", vocab_size=1, tokenizer=tmp_path / "a" / "tokenizer.json")
    assert again.digest == read_manifest(tmp_path / "a").digest
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        prepare(source, tmp_path / "c", tokenizer=tmp_path / "none.json")


def test_a_tokenizer_that_loses_text_is_noticed(source: Path, tmp_path: Path) -> None:
    """An added token that swallows the space before it passes all static checks."""
    prepare(source, tmp_path / "a", vocab_size=300)
    value = json.loads((tmp_path / "a/tokenizer.json").read_text(encoding="utf-8"))
    value["added_tokens"].append(
        value["added_tokens"][0] | {"id": 300, "content": "river", "special": False, "lstrip": True}
    )
    (tmp_path / "lossy.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(ValueError, match="does not come back exactly"):
        prepare(source, tmp_path / "b", tokenizer=tmp_path / "lossy.json")
    assert not (tmp_path / "b").exists()
