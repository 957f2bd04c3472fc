"""The same documents give the same dataset, whatever kind of source they come from."""

import bz2
import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from corpora import everything, json_lines, made, skipped, texts, write_folder

import model.corpus.records
import model.corpus.units
from model.corpus.listing import open_member

DOCUMENTS = [*texts(30), "a\r\nb\n\n c\u2028d \ufeff", "  spaces and \t tabs  ", '{"text": "quoted"} \\u0041 \x1b[0m']
OPTIONS = {"heldout_share": 0.2, "vocab_size": 300}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the documents as a folder of text."""
    folder = tmp_path_factory.mktemp("expected")
    manifest = made(write_folder(folder / "source", DOCUMENTS), folder / "out", **OPTIONS)
    assert everything(folder / "out", manifest) == sorted(DOCUMENTS)
    return manifest.digest


def test_a_glob(tmp_path: Path, expected: str) -> None:
    folder = write_folder(tmp_path / "a.source", DOCUMENTS)
    assert made(tmp_path / "*.source/**/*.txt", tmp_path / "out", **OPTIONS).digest == expected
    (folder / "0.txt").unlink()
    assert made(tmp_path / "a.sour?e/**/*.[st]xt", tmp_path / "two", **OPTIONS).digest != expected


def test_a_url_of_this_machine(tmp_path: Path, expected: str) -> None:
    folder = write_folder(tmp_path / "source", DOCUMENTS)
    assert made(f"file://{folder}", tmp_path / "out", **OPTIONS).digest == expected
    assert made(f"file://{folder}/**/*.txt", tmp_path / "two", **OPTIONS).digest == expected


def zstd(raw: bytes) -> bytes:
    """In two frames."""
    import pyarrow

    def frame(part: bytes) -> bytes:
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(part)
        return bytes(sink.getvalue().to_pybytes())

    return frame(raw[:1000]) + frame(raw[1000:])


def twice_gzip(raw: bytes) -> bytes:
    return gzip.compress(raw[:1000]) + gzip.compress(raw[1000:])


COMPRESSORS = {"": bytes, ".gz": twice_gzip, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("ending", COMPRESSORS)
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson"])
def test_json_lines(tmp_path: Path, expected: str, suffix: str, ending: str) -> None:
    path = tmp_path / f"x{suffix}{ending}"
    path.write_bytes(COMPRESSORS[ending](json_lines(DOCUMENTS)))
    assert made(path, tmp_path / "out", **OPTIONS).digest == expected


def test_forms_of_json_lines(tmp_path: Path, expected: str) -> None:
    """Two files, one with a byte-order mark, blank lines, CRLF and no end; the other says its format by an option."""
    folder = tmp_path / "source"
    folder.mkdir()
    lines = json_lines(DOCUMENTS).splitlines()
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n \t\n".join(lines[:10]))
    (folder / "b.txt").write_bytes(b"\n".join(lines[10:]))
    manifest = made(folder, tmp_path / "out", format="jsonl", **OPTIONS)
    assert manifest.digest == expected
    assert skipped(manifest) == {}


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_compressed_text(tmp_path: Path, expected: str, ending: str) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for number, document in enumerate(DOCUMENTS):
        (folder / f"{number}.txt{ending}").write_bytes(COMPRESSORS[ending](document.encode()))
    assert made(folder, tmp_path / "out", **OPTIONS).digest == expected


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_parquet(tmp_path: Path, expected: str, kind: str) -> None:
    """Several row groups, other columns beside, another name of the field."""
    import pyarrow
    import pyarrow.parquet as parquet

    types = {"string": pyarrow.string(), "large_string": pyarrow.large_string()}
    column = pyarrow.array(DOCUMENTS, types.get(kind, pyarrow.string()))
    column = column.dictionary_encode() if kind == "dictionary" else column
    table = pyarrow.table({"id": list(range(len(DOCUMENTS))), "body.text": column})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=7)
    assert made(tmp_path / "x.parquet", tmp_path / "out", text_field="body.text", **OPTIONS).digest == expected


def test_a_folder_of_datasets(tmp_path: Path, expected: str) -> None:
    import datasets

    folder = tmp_path / "source"
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"n": list(range(33)), "text": DOCUMENTS}).save_to_disk(str(folder), num_shards=3)
    assert made(folder, tmp_path / "out", **OPTIONS).digest == expected
    assert made(folder, tmp_path / "two", format="datasets", **OPTIONS).digest == expected
    assert made(f"file://{folder}", tmp_path / "three", **OPTIONS).digest == expected


def test_a_folder_of_datasets_with_splits(tmp_path: Path, expected: str) -> None:
    import datasets

    folder = tmp_path / "source"
    datasets.disable_progress_bars()
    parts = {"train": DOCUMENTS, "test": texts(5, first=900)}
    whole = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": part}) for name, part in parts.items()})
    whole.save_to_disk(str(folder))
    assert made(folder, tmp_path / "out", **OPTIONS).digest == expected
    other = made(folder, tmp_path / "two", split="test", **OPTIONS)
    assert everything(tmp_path / "two", other) == sorted(parts["test"])
    with pytest.raises(ValueError, match="has no split 'dev': choose one of train, test with `split`"):
        made(folder, tmp_path / "three", split="dev", **OPTIONS)


def test_a_selection_of_datasets_is_refused(tmp_path: Path) -> None:
    """A folder that the library has written without its rows in place; newer versions write none."""
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [{}]}')
    with pytest.raises(ValueError, match="holds a selection: write it with `flatten_indices"):
        made(tmp_path, tmp_path.with_name("out"))


@pytest.fixture
def memory() -> Iterator[str]:
    """A place in memory."""
    fs = fsspec.filesystem("memory")
    yield "memory://corpus"
    fs.rm("/corpus", recursive=True)


def test_any_file_system_of_fsspec(memory: str, tmp_path: Path, expected: str) -> None:
    for number, document in enumerate(DOCUMENTS):
        fsspec.filesystem("memory").pipe_file(f"/corpus/text/sub/{number}.txt", document.encode())
    fsspec.filesystem("memory").pipe_file("/corpus/jsonl/x.jsonl.gz", gzip.compress(json_lines(DOCUMENTS)))
    fsspec.filesystem("memory").pipe_file("/corpus/jsonl/x.zip", b"PK")
    for place in ("text", "text/sub/*.txt", "text/**", "jsonl", "jsonl/*.gz", "jsonl/x.jsonl.gz"):
        manifest = made(f"{memory}/{place}", tmp_path / place.replace("/", "-").replace("*", "+"), **OPTIONS)
        assert manifest.digest == expected, place
        assert skipped(manifest) == ({"archive": 1} if place == "jsonl" else {})
    some = made(f"{memory}/text", tmp_path / "some", include=["sub/1?.txt"], exclude=["sub/11.txt"], **OPTIONS)
    assert everything(tmp_path / "some", some) == sorted(DOCUMENTS[10:11] + DOCUMENTS[12:20])


class NoAnswer(Exception):
    """As the errors of client libraries: none of Python's."""


@pytest.mark.parametrize("error", [NoAnswer("later"), TimeoutError("later"), OSError(5, "later")])
def test_a_server_that_does_not_answer_costs_no_document(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    """The call ends, and the next one goes on."""
    fsspec.filesystem("memory").pipe_file("/corpus/a.jsonl", json_lines(DOCUMENTS[:20]))
    fsspec.filesystem("memory").pipe_file("/corpus/b.jsonl", json_lines(DOCUMENTS[20:]))
    monkeypatch.setattr(model.corpus.units, "UNIT_BYTES", 1000)

    def fail(url: str) -> object:
        if url.endswith("b.jsonl"):
            raise error
        return open_member(url)

    with monkeypatch.context() as patch:
        patch.setattr(model.corpus.records, "open_member", fail)
        with pytest.raises(OSError, match="later"):
            made(memory, tmp_path / "out", **OPTIONS)
    phases: list[str] = []
    assert made(memory, tmp_path / "out", progress=lambda *step: phases.append(step[0]), **OPTIONS).digest == expected
    assert phases[0] == "resumed"


def test_a_store_that_does_not_tell_sizes(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/corpus/x.txt", b"text")
    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "info", lambda self, path, **_: {"name": path, "type": "file", "size": None})
        with pytest.raises(ValueError, match="does not tell its size: copy it to this machine first"):
            made(f"{memory}/x.txt", tmp_path / "out")
