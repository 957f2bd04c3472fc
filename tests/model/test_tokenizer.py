import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokenizer import BYTE_OF, END_OF_TEXT, MIN_VOCAB, Tokenizer, pieces

TEXT = (
    "def subtract(minuend, subtrahend):\n    return minuend - subtrahend  # größer als 😀 und 漢字\n\n"
    "class Multiplication:\n    def evaluate(self, something):\n        raise NotImplementedError\n"
) * 20
TRAINED = Tokenizer.train([TEXT], 340)
BYTES_ONLY = Tokenizer.train([TEXT], MIN_VOCAB)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.text(alphabet=" \n\t\r<|>endoftxé漢😀\x00\ufeff\u0301")))
def test_every_text_round_trips(text: str) -> None:
    for tokenizer in (TRAINED, BYTES_ONLY):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode_bytes(tokens) == text.encode()
        assert tokenizer.decode(tokens) == text
        assert tokenizer.token_byte_lengths()[tokens].sum() == len(text.encode())
        assert tokenizer.end_of_text not in tokens


def test_merges_are_learned() -> None:
    assert TRAINED.vocab_size == 340
    assert BYTES_ONLY.vocab_size == 257
    assert len(TRAINED.encode(TEXT)) < 0.6 * len(BYTES_ONLY.encode(TEXT)) == 0.6 * len(TEXT.encode())


def test_fewer_tokens_than_asked_for_when_the_text_has_no_more() -> None:
    assert Tokenizer.train(["ab"], 4096).vocab_size == 258


def test_end_of_text_in_a_text_is_text() -> None:
    tokens = TRAINED.encode(f"a{END_OF_TEXT}b")
    assert TRAINED.end_of_text not in tokens
    assert TRAINED.decode(tokens) == f"a{END_OF_TEXT}b"
    assert TRAINED.decode([*TRAINED.encode("a"), TRAINED.end_of_text, *TRAINED.encode("b")]) == "ab"
    assert TRAINED.token_byte_lengths()[TRAINED.end_of_text] == 0


def test_bytes_of_each_token_agree_with_the_library() -> None:
    """For tokens that are whole characters, against the library's own decoder."""
    import tokenizers

    library = tokenizers.Tokenizer.from_str(TRAINED.to_json())
    checked = 0
    for number, raw in enumerate(TRAINED.token_bytes):
        if number == TRAINED.end_of_text:
            continue
        text = library.decode([number])
        if "\ufffd" not in text:
            assert text.encode() == raw
            checked += 1
    assert checked > 150
    assert sorted(raw for raw in TRAINED.token_bytes if len(raw) == 1) == [bytes([b]) for b in range(256)]
    assert len(BYTE_OF) == len(set(BYTE_OF.values())) == 256


def test_parts_of_a_character() -> None:
    tokens = BYTES_ONLY.encode("😀")
    assert len(tokens) == 4
    assert BYTES_ONLY.decode_bytes(tokens[:2]) == "😀".encode()[:2]
    assert BYTES_ONLY.decode(tokens[:2]) == "\ufffd"
    assert BYTES_ONLY.token_byte_lengths().dtype == np.int64


def test_batches_equal_single_texts() -> None:
    texts = ["left + right", "", END_OF_TEXT, "漢字"]
    assert list(TRAINED.encode_lists(texts)) == [TRAINED.encode(text) for text in texts]


def test_loads_what_it_saved_from_file_folder_and_url(tmp_path: Path) -> None:
    import fsspec

    (tmp_path / "tokenizer.json").write_text(TRAINED.to_json(), encoding="utf-8")
    with fsspec.open("memory://tokens/tokenizer.json", "w", encoding="utf-8") as file:
        file.write(TRAINED.to_json())
    for place in (tmp_path, tmp_path / "tokenizer.json", f"file://{tmp_path}", "memory://tokens"):
        loaded = Tokenizer.load(place)
        assert loaded.token_bytes == TRAINED.token_bytes
        assert loaded.encode(TEXT) == TRAINED.encode(TEXT)


def test_outside_the_vocabulary() -> None:
    for wrong in (-1, 340):
        with pytest.raises(ValueError, match=f"token {wrong} is outside the vocabulary of 340"):
            TRAINED.decode([5, wrong])


@pytest.mark.parametrize("size", [0, 256, 1_000_001])
def test_impossible_sizes_name_both_numbers(size: int) -> None:
    with pytest.raises(ValueError, match=rf"vocabulary of {size} .* at least 257 .* at most 1000000"):
        Tokenizer.train([TEXT], size)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*tokenizer\.json"):
        Tokenizer.load(tmp_path)
    for raw in (b"{", b"[]", b'{"model": 3}', b"\xff\xfe"):
        (tmp_path / "tokenizer.json").write_bytes(raw)
        with pytest.raises(ValueError, match="is not a tokenizer"):
            Tokenizer.load(tmp_path)


def test_tokenizers_that_change_text_are_refused() -> None:
    value = json.loads(TRAINED.to_json())
    refused = {
        "normalises text": value | {"normalizer": {"type": "Lowercase"}},
        "adds a space": value | {"pre_tokenizer": value["pre_tokenizer"] | {"add_prefix_space": True}},
        "to end a document with": value | {"added_tokens": [value["added_tokens"][0] | {"content": "<pad>"}]},
        "knows 255 of the 256 bytes": value | {"model": value["model"] | {"merges": [], "vocab": without(value, "q")}},
        "is not byte-level": value | {"model": value["model"] | {"vocab": value["model"]["vocab"] | {"▁the": 340}}},
    }
    for message, changed in refused.items():
        with pytest.raises(ValueError, match=message):
            Tokenizer.from_json(json.dumps(changed))


def without(value: dict[str, dict[str, dict[str, int]]], byte: str) -> dict[str, int]:
    """The single bytes of a vocabulary, less one."""
    names = [END_OF_TEXT, *sorted(set(BYTE_OF) - {byte})]
    assert set(names) < set(value["model"]["vocab"])
    return {name: number for number, name in enumerate(names)}


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab\n漢😀", max_size=200), st.integers(8, 40))
def test_pieces_cover_the_text_and_keep_characters_whole(text: str, aim: int) -> None:
    raw = text.encode()
    cuts = list(pieces(raw, aim))
    assert b"".join(raw[a:b] for a, b in cuts) == raw
    assert all(b - a <= 2 * aim for a, b in cuts)
    assert all(b - a > aim - 4 for a, b in cuts[:-1])
    for a, b in cuts:
        raw[a:b].decode()


def test_pieces_prefer_blank_lines_then_lines() -> None:
    assert next(pieces(b"x" * 10 + b"\n" + b"y" * 3 + b"\n\n" + b"z" * 30, 8)) == (0, 16)
    assert next(pieces(b"x" * 10 + b"\n" + b"y" * 30, 8)) == (0, 11)
    assert next(pieces(b"x" * 40, 8)) == (0, 16)
