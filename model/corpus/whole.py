"""What is made of all selected documents at once: the vocabulary, and the figures to compare a model with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model.corpus.baselines import baselines
from model.corpus.runs import Texts
from model.corpus.steps import selected_rows, sides_of
from model.corpus.workspace import Workspace, write_whole
from model.dataset import Baselines
from model.tokenizer import Tokenizer

TRAIN, HELDOUT = 0, 1
_WORD = 1024
_LONG = re.compile(rf"\S{{{_WORD}}}|\s{{{_WORD}}}")


@dataclass(frozen=True)
class Documents:
    """All documents that were selected, in the order of their hash."""

    work: Workspace
    runs: tuple[str, ...]
    buckets: int
    limits: tuple[bytes, ...]
    """Hashes below are held out, by source."""

    def texts(self, side: int, limit: int | None = None) -> Iterator[bytes]:
        """Of one side of all sources, until `limit` bytes are reached."""
        done = 0
        with Texts(self.work.runs, list(self.runs)) as texts:
            for bucket in range(self.buckets):
                rows = selected_rows(self.work, bucket)
                for row in rows[sides_of(rows, self.limits) == side]:
                    if limit is not None and done >= limit:
                        return
                    text = texts.read(int(row["run"]), int(row["offset"]), int(row["length"]))
                    done += len(text)
                    yield text


@dataclass(frozen=True)
class Learning:
    """Learn a vocabulary from the first `limit` bytes of training text."""

    documents: Documents
    limit: int
    vocab_size: int
    fim: bool
    target: Path


def learn(job: Learning, told: Callable[[int], None] = lambda done: None) -> None:
    """Writes the tokenizer whole or not at all; `told` gets the bytes read so far."""

    def texts() -> Iterator[str]:
        done = 0
        for text in job.documents.texts(TRAIN, job.limit):
            yield from in_short_words(text.decode())
            done += len(text)
            told(done)

    tokenizer = Tokenizer.train(texts(), job.vocab_size, fim=job.fim)
    write_whole(job.target, tokenizer.to_json().encode())


def in_short_words(text: str) -> Iterator[str]:
    """The text in pieces without a longer word (or gap) than `_WORD`: learning takes time by the square of its length,
    and a document may be one word of many megabytes."""
    start = 0
    for word in _LONG.finditer(text):
        yield text[start : word.end()]
        start = word.end()
    if start < len(text):
        yield text[start:]


def measure(documents: Documents) -> Baselines:
    """Of the held-out text."""
    return baselines(documents.texts(HELDOUT))
