"""Text as it comes: whole characters, and nothing of a stop string."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.generate.text import TextStream
from model.tokenizer import MIN_VOCAB, Tokenizer

TOKENIZER = Tokenizer.train(["a stop, a stop, and a stop"], MIN_VOCAB + 4)
BYTE = {piece[0]: number for number, piece in enumerate(TOKENIZER.token_bytes) if len(piece) == 1}


def bytewise(raw: bytes) -> list[int]:
    return [BYTE[byte] for byte in raw]


def streamed(pieces: list[list[int]], stops: list[str]) -> tuple[list[str], str | None]:
    stream = TextStream(TOKENIZER, stops)
    out = [stream.add(piece) for piece in pieces]
    return [*out, stream.finish()], stream.stopped


def test_a_character_appears_when_its_last_byte_has_come() -> None:
    text = "é→𝄞!"
    out, _ = streamed([[token] for token in bytewise(text.encode())], [])
    assert out == ["", "é", "", "", "→", "", "", "", "𝄞", "!", ""]


def test_bytes_that_are_no_characters() -> None:
    raw = b"a\xff\xe2\x86b\xe2\x86"
    out, _ = streamed([[token] for token in bytewise(raw)], [])
    assert "".join(out) == raw.decode(errors="replace") == TOKENIZER.decode(bytewise(raw))


def test_what_may_become_a_stop_string_is_held_back() -> None:
    out, stopped = streamed([bytewise(piece) for piece in (b"ab", b"cST", b"O", b"P!")], ["STOP"])
    assert out == ["ab", "c", "", "", ""]
    assert stopped == "STOP"
    out, stopped = streamed([bytewise(piece) for piece in (b"abST", b"O", b"STO")], ["STOP"])
    assert out == ["ab", "", "STO", "STO"]
    assert stopped is None


def test_a_stop_string_of_split_characters() -> None:
    out, stopped = streamed([[token] for token in bytewise("x→→y".encode())], ["→y"])
    assert ("".join(out), stopped) == ("x→", "→y")


def test_nothing_comes_after_the_stop() -> None:
    stream = TextStream(TOKENIZER, ["."])
    assert stream.add(bytewise(b"a.b")) == "a"
    assert stream.add(bytewise(b"cd")) == stream.finish() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        TextStream(TOKENIZER, ["x", ""])


def first_complete(text: str, stops: list[str]) -> str:
    """The text before the stop string that is complete first, by looking at ever longer beginnings."""
    for end in range(len(text) + 1):
        done = [text[:end].removesuffix(stop) for stop in stops if text[:end].endswith(stop)]
        if done:
            return min(done, key=len)
    return text


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet="ab→", max_size=14),
    stops=st.lists(st.text(alphabet="ab→", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
def test_however_it_is_cut_it_is_the_text_before_the_first_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    tokens = bytewise(text.encode())
    edges = sorted({0, len(tokens), *(min(cut, len(tokens)) for cut in cuts)})
    pieces = [tokens[a:b] for a, b in itertools.pairwise(edges)]
    out, stopped = streamed(pieces, stops)
    assert "".join(out) == first_complete(text, stops)
    assert (stopped is None) == ("".join(out) == text and not any(stop in text for stop in stops))
