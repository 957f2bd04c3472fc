"""Small corpora, and prepared datasets read back into documents."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.corpus import Mixture, Options, Source, prepare
from model.data import TokenSplit
from model.dataset import DatasetManifest, SplitName
from model.tokenizer import Tokenizer

WORDS = ["stone", "river", "cloud", "ember", "north", "hollow", "quiet", "copper", "größe", "漢字"]
SIDES: tuple[SplitName, SplitName] = ("train", "heldout")
PREPARE = sys.modules["model.corpus.prepare"]
"""The module; `model.corpus.prepare` is the function."""
_OPTIONS = set(Options.__dataclass_fields__)


def text(seed: int, words: int = 20) -> str:
    """Some words, different for each seed."""
    rng = random.Random(seed)
    return f"{seed}: " + " ".join(rng.choice(WORDS) for _ in range(words)) + "\n"


def texts(count: int, words: int = 20, first: int = 0) -> list[str]:
    return [text(first + number, words) for number in range(count)]


def write_folder(folder: Path, documents: Iterable[str]) -> Path:
    """One file each, in two folders."""
    (folder / "sub").mkdir(parents=True)
    for number, document in enumerate(documents):
        place = folder / "sub" if number % 2 else folder
        (place / f"{number}.txt").write_bytes(document.encode())
    return folder


def json_lines(documents: Iterable[object], field: str = "text") -> bytes:
    """One object for each document."""
    return b"".join(json.dumps({field: document}).encode() + b"\n" for document in documents)


def one(uri: object, **fields: Any) -> Mixture:  # noqa: ANN401 - fields of a source
    """A mixture of one source."""
    return Mixture(sources=(Source(**{"name": "text", "uri": str(uri), **fields}),))


def made(uri: object, out: Path, *, force: bool = False, progress: Any = None, **more: Any) -> DatasetManifest:  # noqa: ANN401
    """Prepare one source (or a mixture), in this process unless `workers` says more; options and fields by name."""
    options = Options(
        **{"vocab_size": 300, "workers": 1, **{name: value for name, value in more.items() if name in _OPTIONS}}
    )
    fields = {name: value for name, value in more.items() if name not in _OPTIONS}
    mixture = uri if isinstance(uri, Mixture) else one(uri, **fields)
    if progress is None:
        return prepare(mixture, out, options, force=force)
    return prepare(mixture, out, options, force=force, progress=progress)


def token_lists(out: Path, manifest: DatasetManifest, side: SplitName, source: int = 0) -> list[list[int]]:
    """Tokens of each document of a side of a source, without end-of-text."""
    split = TokenSplit(out, manifest, manifest.sources[source], side)
    split.verify()
    found: list[list[int]] = [[]]
    for token in split.read(0, len(split)).tolist():
        if token == manifest.tokenizer.end_of_text:
            found.append([])
        else:
            found[-1].append(token)
    assert found.pop() == [], "the last document must end with end-of-text"
    return found


def parts(tokens: list[int], fim: tuple[int, int, int] | None) -> tuple[list[int], list[int], list[int]] | None:
    """Prefix, middle and suffix of a rearranged document; None for another one."""
    if fim is None or not set(fim) & set(tokens):
        return None
    before, hole, end = fim
    assert [tokens.count(token) for token in fim] == [1, 1, 1]
    assert tokens[0] == before
    assert tokens.index(hole) < tokens.index(end)
    return tokens[1 : tokens.index(hole)], tokens[tokens.index(end) + 1 :], tokens[tokens.index(hole) + 1 :
        tokens.index(end)]  # fmt: skip


def documents(out: Path, manifest: DatasetManifest, side: SplitName, source: int = 0) -> list[str]:
    """The documents of one side of a source, whatever was rearranged put together again."""
    tokenizer = Tokenizer.load(out)
    found = []
    for tokens in token_lists(out, manifest, side, source):
        divided = parts(tokens, tokenizer.fim)
        raw = tokens if divided is None else [token for part in divided for token in part]
        found.append(tokenizer.decode_bytes(raw).decode())
    return found


def everything(out: Path, manifest: DatasetManifest) -> list[str]:
    """All documents of all sources and sides, sorted."""
    return sorted(
        document
        for source in range(len(manifest.sources))
        for side in SIDES
        for document in documents(out, manifest, side, source)
    )


def skipped(manifest: DatasetManifest, source: int = 0) -> dict[str, int]:
    """How many by reason."""
    content = manifest.sources[source].skipped.model_dump()
    return {kind: value["count"] for kind, value in content.items() if value["count"]}


def shards(out: Path) -> dict[str, bytes]:
    """All files of a dataset but the manifest."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
