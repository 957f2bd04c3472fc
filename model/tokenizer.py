"""Byte-level BPE tokenizers whose every text round-trips exactly, in the format of the `tokenizers` library.

Used by `model.corpus` (training, encoding), evaluation (bytes per token) and generation (decoding).
Invariant: each token stands for a fixed string of bytes, so `decode_bytes(encode(text)) == text.encode()`;
special tokens stand for no bytes and are never made from text, whatever the text says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from model.dataset import MAX_TOKENIZER_BYTES, TOKENIZER
from model.files import read_file

END_OF_TEXT = "<|endoftext|>"
KNOWN_END_OF_TEXT = (END_OF_TEXT, "<｜end▁of▁sentence｜>", "<|end_of_text|>", "</s>")
"""Names of end-of-text tokens in released byte-level tokenizers, tried in this order."""
FIM = ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>")
"""Stand before the prefix, the suffix and the middle of a rearranged document."""
KNOWN_FIM = (
    FIM,
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
)
"""The same in released tokenizers."""
MIN_VOCAB = 257
"""All 256 bytes and end-of-text."""
MAX_VOCAB = 1_000_000


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary (the table of GPT-2).

    Printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 onwards in their order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


class Tokenizer:
    """A byte-level tokenizer; see the module for what it promises."""

    def __init__(self, backend: Any, name: str = "tokenizer") -> None:  # noqa: ANN401 - the library is untyped
        """`name` appears in errors. Raises ValueError if `backend` cannot keep the promise."""
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # "<|endoftext|>" in a text is ordinary text
        self.name = name
        self.token_bytes: tuple[bytes, ...] = _token_bytes(backend, name)
        """The bytes of each token, by number."""
        self.end_of_text = _end_of_text(backend, name)
        self.fim = _fim(backend)
        """Numbers of the tokens before prefix, suffix and middle, where it has such."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest token number."""
        return len(self.token_bytes)

    @property
    def end_of_text_name(self) -> str:
        """The end-of-text token as it is written in the vocabulary."""
        return str(self._backend.id_to_token(self.end_of_text))

    @classmethod
    def from_json(cls, text: str, name: str = "tokenizer") -> Tokenizer:
        """From the text of a `tokenizer.json`; ValueError if it is none."""
        try:
            largest = _largest(json.loads(text))
            if largest >= MAX_VOCAB:  # before the library makes room for all numbers below
                raise ValueError(f"a token has number {largest}, but numbers must be below {MAX_VOCAB}")
            backend = Backend.from_str(text)
        except Exception as error:  # the library raises bare Exception for whatever it dislikes
            raise ValueError(f"{name} is not a tokenizer of the `tokenizers` library: {error}") from error
        return cls(backend, name)

    @classmethod
    def load(cls, uri: str | Path) -> Tokenizer:
        """From a `tokenizer.json` or a prepared dataset with one: a path or any URL of fsspec."""
        where = str(uri)
        if not where.endswith(".json"):
            where = f"{where.rstrip('/')}/{TOKENIZER}"
        try:
            text = read_file(where, MAX_TOKENIZER_BYTES).decode()
        except FileNotFoundError:
            raise FileNotFoundError(f"no tokenizer at {where}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not a tokenizer: {error}") from error
        return cls.from_json(text, where)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, fim: bool = False) -> Tokenizer:
        """Learn a vocabulary of at most `vocab_size` tokens (fewer if no pairs are left to merge), with the tokens of
        fill-in-the-middle if `fim`."""
        check_vocab_size(vocab_size, fim=fim)
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT, *(FIM if fim else ())],
            initial_alphabet=sorted(BYTE_OF),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend, "the trained tokenizer")

    def to_json(self) -> str:
        """The text of a `tokenizer.json`."""
        return str(self._backend.to_str())

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text, without end-of-text."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_lists(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """`encode` of several texts, in parallel."""
        for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False):
            yield encoding.ids

    def join(self, tokens: Iterable[int]) -> bytes:
        """As `decode_bytes`, for tokens that this tokenizer has just made."""
        return b"".join(map(self.token_bytes.__getitem__, tokens))

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The exact bytes of some tokens; ValueError for a number outside the vocabulary."""
        table = self.token_bytes
        numbers = [int(token) for token in tokens]
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(table):
            wrong = next(n for n in numbers if not 0 <= n < len(table))
            raise ValueError(f"token {wrong} is outside the vocabulary of {len(table)} ({self.name})")
        return b"".join([table[number] for number in numbers])

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of some tokens; an incomplete UTF-8 sequence at an edge becomes U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def token_byte_lengths(self) -> NDArray[np.int64]:
        """[vocab_size] bytes that each token stands for; 0 for end-of-text and other special tokens."""
        return np.array([len(piece) for piece in self.token_bytes], dtype=np.int64)


def check_vocab_size(vocab_size: int, *, fim: bool = False) -> None:
    """ValueError unless all bytes and special tokens fit and the number is sane."""
    smallest, also = (MIN_VOCAB + len(FIM), f" and {', '.join(FIM)}") if fim else (MIN_VOCAB, "")
    if not smallest <= vocab_size <= MAX_VOCAB:
        raise ValueError(
            f"a vocabulary of {vocab_size} is not possible: byte-level BPE needs at least {smallest} tokens "
            f"(256 bytes and {END_OF_TEXT}{also}) and at most {MAX_VOCAB}"
        )


def pieces(raw: bytes, aim: int) -> Iterator[tuple[int, int]]:
    """Cut UTF-8 text into [start, stop) of `aim` bytes to twice as many; the last may be shorter.

    Cuts are after a blank line if there is one in reach, else after a line, else between characters.
    """
    start = 0
    while len(raw) - start > 2 * aim:
        stop = start + 2 * aim
        for mark in (b"\n\n", b"\n"):
            found = raw.find(mark, start + aim, stop)
            if found >= 0:
                stop = found + len(mark)
                break
        else:
            back = next((n for n in range(4) if raw[stop - n] & 0xC0 != 0x80), 0)  # not within a character
            stop -= back if back < 2 * aim else 0
        yield start, stop
        start = stop
    yield start, len(raw)


def _token_bytes(backend: Any, name: str) -> tuple[bytes, ...]:  # noqa: ANN401
    """The bytes of every token; ValueError if the vocabulary is not byte-level and complete."""
    _refuse_inexact(json.loads(backend.to_str()), name)
    added = backend.get_added_tokens_decoder()
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, number in vocabulary.items():
        if number in added:
            table[number] = b"" if added[number].special else added[number].content.encode()
            continue
        try:
            table[number] = bytes(BYTE_OF[character] for character in token)
        except KeyError:
            raise ValueError(f"{name} is not byte-level: its token {number} is {token!r}") from None
    missing = [byte for character, byte in BYTE_OF.items() if character not in vocabulary]
    if missing:
        raise ValueError(
            f"{name} knows {256 - len(missing)} of the 256 bytes, so some texts cannot be written with it; "
            f"missing is e.g. {missing[0]:#04x}"
        )
    return tuple(table)


def _largest(content: dict[str, Any]) -> int:
    """The largest number of a token in the text of a tokenizer; -1 where it is of a form without any."""
    vocabulary = (content.get("model") or {}).get("vocab")
    numbers = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    numbers += [token.get("id") for token in content.get("added_tokens") or []]
    return max((number for number in numbers if isinstance(number, int)), default=-1)


def _refuse_inexact(content: dict[str, Any], name: str) -> None:
    """ValueError for parts of a tokenizer that change the text."""
    normalizer = content.get("normalizer")
    if normalizer is not None and normalizer.get("normalizers") != []:
        raise ValueError(f"{name} normalises text ({normalizer.get('type')}), so texts do not round-trip exactly")
    if (content.get("model") or {}).get("dropout"):
        raise ValueError(f"{name} drops merges at random (dropout), so the same text would give different tokens")
    steps = content.get("pre_tokenizer") or {}
    for step in [steps, *steps.get("pretokenizers", [])]:
        if step.get("add_prefix_space"):
            raise ValueError(f"{name} adds a space before each text, so texts do not round-trip exactly")


def _end_of_text(backend: Any, name: str) -> int:  # noqa: ANN401
    """Number of the end-of-text token."""
    special = {token.content: number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    for known in KNOWN_END_OF_TEXT:
        if known in special:
            return int(special[known])
    raise ValueError(f"{name} has none of the special tokens {', '.join(KNOWN_END_OF_TEXT)} to end a document with")


def _fim(backend: Any) -> tuple[int, int, int] | None:  # noqa: ANN401
    """Numbers of the tokens of fill-in-the-middle, if all three are there as special tokens."""
    special = {
        token.content: int(number) for number, token in backend.get_added_tokens_decoder().items() if token.special
    }
    for begin, hole, end in KNOWN_FIM:
        if {begin, hole, end} <= special.keys():
            return special[begin], special[hole], special[end]
    return None
