"""A text as its tokens come: whole characters only, and an end at stop strings.

Invariant: what `add` and `finish` have returned, joined, is the tokens' text up to the stop string that is complete
first, however the text is cut into tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from model.tokenizer import Tokenizer


class TextStream:
    """Turns tokens into text piece by piece.

    Bytes of a character that is not whole yet are held back, and so is what may be the beginning of a stop string.
    Bytes that no continuation makes a character of become U+FFFD, as in `Tokenizer.decode`.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        """ValueError for an empty stop string."""
        if "" in stops:
            raise ValueError("a stop string is empty: every text would end before it begins")
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped: str | None = None
        """The stop string that was met."""

    def add(self, tokens: Iterable[int]) -> str:
        """-> what is certain by now and was not before."""
        return self._advance(self._decoder.decode(self._tokenizer.decode_bytes(tokens)))

    def finish(self) -> str:
        """After the last token: what was held back."""
        out = self._advance(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return out if self.stopped is not None else out + rest

    def _advance(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + text
        found = [(place + len(stop), place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            _, place, self.stopped = min(found)
            self._held = ""
            return text[:place]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, shorter than `stop` itself."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
