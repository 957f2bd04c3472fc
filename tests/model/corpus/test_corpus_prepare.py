import hashlib
import json
import lzma
import math
from collections import Counter
from pathlib import Path

import pytest
from corpora import PREPARE, documents, everything, made, shards, skipped, text

import model.corpus.baselines
import model.corpus.steps
from model.corpus.baselines import baselines
from model.data import TokenSplit
from model.dataset import read_manifest
from model.tokenizer import Tokenizer


def test_every_document_is_on_one_side_and_comes_back_exactly(source: Path, tmp_path: Path) -> None:
    (source / "special.txt").write_bytes("a <|endoftext|> <|fim_hole|> b\r\n\ufeffend".encode())
    out = tmp_path / "out"
    manifest = made(
        source, out, heldout_share=0.2, shard_tokens=500, license="CC0-1.0", provenance="drawn", fim_rate=0.3
    )
    train, heldout = documents(out, manifest, "train"), documents(out, manifest, "heldout")
    assert sorted(train + heldout) == sorted(path.read_bytes().decode() for path in source.rglob("*.txt"))
    assert not set(train) & set(heldout)
    assert 2 <= len(heldout) <= 20
    (own,) = manifest.sources
    for split, found in ((own.train, train), (own.heldout, heldout)):
        assert split.documents == len(found)
        assert split.bytes == sum(len(part.encode()) for part in found)
        assert [shard.tokens for shard in split.shards[:-1]] == [500] * (len(split.shards) - 1)
        assert 1 <= split.shards[-1].tokens <= 500
    assert len(own.train.shards) > 1
    assert (own.license, own.provenance, own.uri, own.weight) == ("CC0-1.0", "drawn", str(source), None)
    assert manifest == read_manifest(out)
    assert manifest.tokenizer.vocab_size == 300
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_hashes_of_the_manifest_are_those_of_the_files(source: Path, tmp_path: Path) -> None:
    manifest = made(source, tmp_path / "out", shard_tokens=500)
    found = {name: hashlib.sha256(raw).hexdigest() for name, raw in shards(tmp_path / "out").items()}
    expected = {shard.name: shard.sha256 for shard in manifest.shards()}
    assert found == expected | {"tokenizer.json": manifest.tokenizer.sha256}


def test_baselines_are_those_of_the_heldout_text(source: Path, tmp_path: Path) -> None:
    manifest = made(source, tmp_path / "out", heldout_share=0.2)
    raw = "".join(documents(tmp_path / "out", manifest, "heldout")).encode()
    entropy = -sum(n / len(raw) * math.log2(n / len(raw)) for n in Counter(raw).values())
    packed = lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)
    assert manifest.baselines.order0_bits_per_byte == pytest.approx(entropy, abs=1e-9)
    assert manifest.baselines.xz_bits_per_byte == pytest.approx(8 * len(packed) / len(raw))
    assert manifest.baselines.xz_bytes == len(raw)


def test_xz_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.corpus.baselines, "XZ_BYTES", 10)
    found = baselines([b"abcdef", b"ghijkl", b"mnop"])
    assert found.xz_bytes == 10
    assert found.xz_bits_per_byte == 8 * len(lzma.compress(b"abcdefghij", preset=9 | lzma.PRESET_EXTREME)) / 10
    assert found.order0_bits_per_byte == pytest.approx(4.0)


def test_the_result_does_not_depend_on_names_or_on_the_run(source: Path, tmp_path: Path) -> None:
    first = made(source, tmp_path / "a")
    for path in list(source.rglob("*.txt")):
        path.rename(source / ("z" + hashlib.sha256(path.name.encode()).hexdigest()))
    second = made(source, tmp_path / "b")
    assert first.digest == second.digest
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    (source / "one more").write_text("something new")
    assert made(source, tmp_path / "c").digest != first.digest


def test_a_document_keeps_its_side_when_others_come(source: Path, tmp_path: Path) -> None:
    before = made(source, tmp_path / "a", heldout_share=0.3)
    for number in range(100, 140):
        (source / f"{number}.txt").write_text(text(number), encoding="utf-8")
    after = made(source, tmp_path / "b", heldout_share=0.3)
    assert set(documents(tmp_path / "a", before, "train")) < set(documents(tmp_path / "b", after, "train"))
    assert set(documents(tmp_path / "a", before, "heldout")) < set(documents(tmp_path / "b", after, "heldout"))


def test_the_vocabulary_is_learned_from_training_text_only(source: Path, tmp_path: Path) -> None:
    manifest = made(source, tmp_path / "a", vocab_size=400, heldout_share=0.2, fim_rate=0)
    train = documents(tmp_path / "a", manifest, "train")
    assert Tokenizer.train(train, 400).to_json() == (tmp_path / "a/tokenizer.json").read_text(encoding="utf-8")


def test_the_vocabulary_is_learned_from_so_much_text(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first documents by hash, up to the one that reaches the limit."""
    monkeypatch.setattr(PREPARE, "TOKENIZER_TEXT_BYTES", 1000)
    manifest = made(source, tmp_path / "a", vocab_size=400, fim_rate=0)
    ordered = sorted(documents(tmp_path / "a", manifest, "train"), key=lambda d: hashlib.sha256(d.encode()).digest())
    enough = next(n for n in range(len(ordered)) if sum(len(d.encode()) for d in ordered[:n]) >= 1000)
    assert Tokenizer.train(ordered[:enough], 400).to_json() == (tmp_path / "a/tokenizer.json").read_text("utf-8")


def test_a_single_file_is_cut_into_documents(tmp_path: Path) -> None:
    whole = "\n".join(text(number, 40) for number in range(100))
    (tmp_path / "book.txt").write_text(whole, encoding="utf-8")
    manifest = made(tmp_path / "book.txt", tmp_path / "out", heldout_share=0.2)
    found = everything(tmp_path / "out", manifest)
    assert len(found) > 10
    assert sum(map(len, found)) == len(whole)
    assert all(part in whole for part in found)


def test_a_long_file_in_a_folder_is_cut_and_a_short_one_is_not(source: Path, tmp_path: Path) -> None:
    whole = "\n\n".join(text(number, 40) for number in range(100, 200))
    (source / "long.txt").write_text(whole, encoding="utf-8")
    manifest = made(source, tmp_path / "out", max_document_bytes=10_000)
    found = everything(tmp_path / "out", manifest)
    cut = sorted((part for part in found if part in whole), key=whole.find)
    assert "".join(cut) == whole
    assert len(cut) > 10
    assert len(found) == 40 + len(cut)
    assert skipped(manifest) == {}


def test_long_documents_are_encoded_in_pieces(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.corpus.steps, "ENCODE_BYTES", 40)
    manifest = made(source, tmp_path / "out")
    assert everything(tmp_path / "out", manifest) == sorted(
        path.read_text(encoding="utf-8") for path in source.rglob("*.txt")
    )


def test_both_sides_get_a_document_or_the_error_says_why(tmp_path: Path) -> None:
    source = tmp_path / "two"
    source.mkdir()
    with pytest.raises(ValueError, match=r"has 0 usable document\(s\), at least 2 are needed .*; skipped: none$"):
        made(source, tmp_path / "out")
    (source / "a").write_text("first")
    with pytest.raises(ValueError, match=r"has 1 usable document\(s\), at least 2 are needed"):
        made(source, tmp_path / "out")
    (source / "b").write_bytes(b"\0")
    with pytest.raises(ValueError, match="skipped: 1 binary"):
        made(source, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"two"}
    (source / "c").write_text("second")
    (own,) = made(source, tmp_path / "out", heldout_share=1e-9).sources
    assert (own.train.documents, own.heldout.documents) == (1, 1)


def test_no_side_stays_empty_where_all_hashes_are_low(tmp_path: Path) -> None:
    """At the largest share two documents are both held out for many texts; then one goes to training."""
    for seed in range(12):
        source = tmp_path / f"source{seed}"
        source.mkdir()
        for name in ("a", "b"):
            (source / name).write_text(f"{seed} {name}")
        (own,) = made(source, tmp_path / f"out{seed}", heldout_share=0.5, vocab_size=260).sources
        assert (own.train.documents, own.heldout.documents) == (1, 1)


@pytest.mark.parametrize("share", [0, -0.1, 0.51, math.nan])
def test_shares_out_of_range(source: Path, tmp_path: Path, share: float) -> None:
    with pytest.raises(ValueError, match="heldout_share must be above 0"):
        made(source, tmp_path / "out", heldout_share=share)
    with pytest.raises(ValueError, match="workers must be at least 1"):
        made(source, tmp_path / "out", workers=0)


def test_an_existing_tokenizer_is_used_as_it_is(source: Path, tmp_path: Path) -> None:
    made(source, tmp_path / "a", vocab_size=350)
    again = made(source, tmp_path / "b", vocab_size=1, tokenizer=tmp_path / "a" / "tokenizer.json")
    assert again.digest == read_manifest(tmp_path / "a").digest
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        made(source, tmp_path / "c", tokenizer=tmp_path / "none.json")


def test_a_tokenizer_that_loses_text_is_noticed(source: Path, tmp_path: Path) -> None:
    """An added token that swallows the space before it passes all static checks."""
    made(source, tmp_path / "a")
    value = json.loads((tmp_path / "a/tokenizer.json").read_text(encoding="utf-8"))
    value["added_tokens"].append(
        value["added_tokens"][0] | {"id": 300, "content": "river", "special": False, "lstrip": True}
    )
    (tmp_path / "lossy.json").write_text(json.dumps(value), encoding="utf-8")
    for rate in (0, 1):
        with pytest.raises(ValueError, match=r"the document that begins '.*' does not come back exactly from .*lossy"):
            made(source, tmp_path / "b", tokenizer=tmp_path / "lossy.json", fim_rate=rate)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "a", "lossy.json"}


def test_a_large_vocabulary_takes_four_bytes(source: Path, tmp_path: Path) -> None:
    made(source, tmp_path / "a")
    value = json.loads((tmp_path / "a/tokenizer.json").read_text(encoding="utf-8"))
    last = max(value["model"]["vocab"], key=value["model"]["vocab"].get)
    value["model"]["vocab"][last] = 70_000
    (tmp_path / "wide.json").write_text(json.dumps(value), encoding="utf-8")
    manifest = made(source, tmp_path / "b", tokenizer=tmp_path / "wide.json")
    assert (manifest.dtype, manifest.tokenizer.vocab_size) == ("uint32", 70_001)
    assert everything(tmp_path / "b", manifest) == everything(tmp_path / "a", read_manifest(tmp_path / "a"))
    TokenSplit(tmp_path / "b", manifest, manifest.sources[0], "train").verify()


def test_the_progress_of_each_phase_ends_at_its_total(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    made(source, tmp_path / "out", progress=lambda *step: seen.append(step))
    last = {phase: (done, total) for phase, done, total in seen}
    assert list(last) == ["reading", "tokenizer", "encoding", "assembling"]
    assert all(done == total > 0 for done, total in last.values()), last
