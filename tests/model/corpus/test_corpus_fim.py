"""Fill in the middle: some training documents are rearranged, and come back exactly."""

import hashlib
import json
from pathlib import Path

import pytest
from corpora import documents, everything, made, parts, texts, token_lists, write_folder
from hypothesis import given
from hypothesis import strategies as st

from model.corpus.fim import divide, is_rearranged
from model.tokenizer import Tokenizer


def sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@given(st.text(), st.binary(min_size=32, max_size=32))
def test_a_divided_text_is_the_text(text: str, sha256: bytes) -> None:
    divided = divide(text, sha256)
    assert (divided is None) is (len(text) < 3)
    assert divided is None or "".join(divided) == text


def test_every_place_is_as_likely() -> None:
    """Also before the first and after the last character."""
    cuts = [divide("abc", sha(str(number))) for number in range(3000)]
    counts = {cut: cuts.count(cut) for cut in set(cuts)}
    assert len(counts) == 10
    ends = [count for cut, count in counts.items() if cut is not None and not cut[1]]
    assert all(130 < count < 250 for count in ends), "1 of 16"
    assert sum(ends) == pytest.approx(3000 / 4, rel=0.15)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_about_the_share_is_rearranged(rate: float) -> None:
    found = sum(is_rearranged(sha(str(number)), rate) for number in range(4000))
    assert found == (0 if rate == 0 else 4000 if rate == 1 else pytest.approx(4000 * rate, rel=0.2))


@pytest.mark.parametrize("rate", [None, 0, 0.5, 1])
def test_training_documents_only_and_exactly(tmp_path: Path, rate: float | None) -> None:
    """The middle comes last; which documents and where follows from their hash."""
    source = write_folder(tmp_path / "source", [*texts(200), "ab", "<|fim_hole|>"])
    out = tmp_path / "out"
    manifest = made(source, out, fim_rate=rate, heldout_share=0.2)
    expected = 0.1 if rate is None else rate
    assert manifest.fim_rate == expected
    assert everything(out, manifest) == sorted([*texts(200), "ab", "<|fim_hole|>"])
    tokenizer = Tokenizer.load(out)
    assert tokenizer.fim == manifest.tokenizer.fim
    assert (tokenizer.fim is None) is (rate == 0)
    for side in ("train", "heldout"):
        lists = token_lists(out, manifest, side)  # type: ignore[arg-type]
        count = 0
        for tokens, document in zip(lists, documents(out, manifest, side), strict=True):  # type: ignore[arg-type]
            divided = parts(tokens, tokenizer.fim)
            rearranged = side == "train" and is_rearranged(sha(document), expected) and len(document) > 2
            assert (divided is not None) is rearranged
            count += rearranged
            if divided is not None:
                assert tuple(map(tokenizer.decode, divided)) == divide(document, sha(document))
        assert count == (0 if side == "heldout" or not expected else pytest.approx(expected * len(lists), rel=0.5))


def test_the_same_documents_whatever_else_there_is(tmp_path: Path) -> None:
    def rearranged(count: int, name: str, tokenizer: Path | None) -> dict[str, list[int]]:
        out = tmp_path / f"out-{name}"
        manifest = made(write_folder(tmp_path / name, texts(count)), out, fim_rate=0.3, tokenizer=tokenizer)
        lists = zip(documents(out, manifest, "train"), token_lists(out, manifest, "train"), strict=True)
        return dict(lists)

    few = rearranged(60, "few", None)
    many = rearranged(120, "many", tmp_path / "out-few" / "tokenizer.json")
    assert few.items() < many.items()


def test_a_tokenizer_without_the_tokens(source: Path, tmp_path: Path) -> None:
    made(source, tmp_path / "a", fim_rate=0)
    where = tmp_path / "a" / "tokenizer.json"
    assert made(source, tmp_path / "b", tokenizer=where).fim_rate == 0
    with pytest.raises(ValueError, match=r"has no special tokens for fill-in-the-middle .*so fim_rate must be 0"):
        made(source, tmp_path / "c", tokenizer=where, fim_rate=0.1)
    assert made(source, tmp_path / "d", tokenizer=where, fim_rate=0).fim_rate == 0


def test_tokens_of_other_names(source: Path, tmp_path: Path) -> None:
    made(source, tmp_path / "a")
    content = json.loads((tmp_path / "a" / "tokenizer.json").read_text(encoding="utf-8"))
    names = {"<|fim_begin|>": "<fim_prefix>", "<|fim_hole|>": "<fim_suffix>", "<|fim_end|>": "<fim_middle>"}
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {names.get(name, name): number for name, number in vocabulary.items()}
    (tmp_path / "other.json").write_text(json.dumps(content), encoding="utf-8")
    manifest = made(source, tmp_path / "b", tokenizer=tmp_path / "other.json", fim_rate=1)
    assert everything(tmp_path / "b", manifest) == sorted(path.read_text() for path in source.rglob("*.txt"))


def test_rates_and_vocabularies_out_of_range(source: Path, tmp_path: Path) -> None:
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="fim_rate must be a share between 0 and 1"):
            made(source, tmp_path / "out", fim_rate=rate)
    with pytest.raises(ValueError, match="at least 260 tokens"):
        made(source, tmp_path / "out", vocab_size=259, fim_rate=0.1)
    assert made(source, tmp_path / "out", vocab_size=259).fim_rate == 0
