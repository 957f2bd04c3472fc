"""Content that is broken or means harm: counted and named, in bounded memory, without an end of the command."""

import gzip
import json
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from corpora import PREPARE, everything, json_lines, made, skipped, texts, write_folder

from model.dataset import Baselines

DOCUMENTS = texts(10)
MIB = 1024 * 1024


def rows(tmp_path: Path, lines: list[bytes], **more: object) -> tuple[list[str], dict[str, int]]:
    """Documents and skips of a JSONL with some good lines around the given ones."""
    good = json_lines(DOCUMENTS).splitlines()
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join([*good[:5], *lines, *good[5:]]) + b"\n")
    manifest = made(path, tmp_path / "out", **more)
    return everything(tmp_path / "out", manifest), skipped(manifest)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[" * 100_000, "damaged"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "damaged"),
        (b'{"text": "\\ud800"}', "undecodable"),
        (b'{"text": "\\udfff\\ud800 reversed"}', "undecodable"),
        (b'{"text": "gr\xfc\xdfe"}', "undecodable"),
        (b'{"text": "a\\u0000b"}', "binary"),
        (b'{"text": "a\0b"}', "damaged"),
        (b'{"text": "  \\n"}', "empty"),
        (b'{"text": ""}', "empty"),
        (b'{"text": null}', "no_text"),
        (b'{"text": 3.5}', "no_text"),
        (b'{"text": ["a"]}', "no_text"),
        (b'{"body": "text"}', "no_text"),
        (b"{}", "no_text"),
        (b'"text"', "damaged"),
        (b"[1, 2]", "damaged"),
        (b"NaN", "damaged"),
        (b"1" * 10_000, "damaged"),
        (b'{"text": "cut', "damaged"),
        (b'{"text": "two"} {"text": "three"}', "damaged"),
        (b'{"text": "' + b"x" * 3000 + b'"}', "too_large"),
        (b'{"text": "' + b"x" * (2 * MIB) + b'"}', "too_large"),
        ('{"text": "sixteen"}'.encode("utf-16"), "undecodable"),
    ],
)
def test_a_line_that_is_no_document(tmp_path: Path, line: bytes, reason: str) -> None:
    found, reasons = rows(tmp_path, [line], max_document_bytes=2000)
    assert found == sorted(DOCUMENTS)
    assert reasons == {reason: 1}


def test_the_place_of_a_bad_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "b"}\nnonsense\n')
    (own,) = made(path, tmp_path / "out", vocab_size=260).sources
    assert own.skipped.damaged.examples == ("x.jsonl[28]",)


@pytest.mark.parametrize("value", [None, 3, {"deep": "text"}, "absent"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_where_no_row_has_text_the_option_is_named(tmp_path: Path, kind: str, value: object) -> None:
    row = {"body": "x"} if value == "absent" else {"text": value}
    if kind == "jsonl":
        (tmp_path / "x.jsonl").write_text((json.dumps(row) + "\n") * 3)
    else:
        import pyarrow
        import pyarrow.parquet as parquet

        parquet.write_table(pyarrow.Table.from_pylist([row] * 3), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"0 usable document\(s\).*skipped: 3 no text; name the field.*--text-field"):
        made(tmp_path / f"x.{kind}", tmp_path / "out")


def test_one_bad_cell_of_parquet_costs_one_row(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    raw = [*(document.encode() for document in DOCUMENTS[:5]), b"gr\xfc\xdfe", *(d.encode() for d in DOCUMENTS[5:])]
    column = pyarrow.array(raw, pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "x.parquet")
    manifest = made(tmp_path / "x.parquet", tmp_path / "out")
    assert everything(tmp_path / "out", manifest) == sorted(DOCUMENTS)
    assert manifest.sources[0].skipped.undecodable.examples == ("x.parquet[5]",)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("größe".encode("utf-16"), "binary"),
        ("größe".encode("utf-16-be"), "binary"),
        ("größe".encode("latin-1"), "undecodable"),
        (b"\xed\xa0\x80", "undecodable"),
        (b"\xc0\xaf", "undecodable"),
        (b"a" * 5000 + b"\0", "binary"),
    ],
)
def test_a_text_in_another_encoding(source: Path, tmp_path: Path, raw: bytes, reason: str) -> None:
    (source / "other.txt").write_bytes(raw)
    manifest = made(source, tmp_path / "out")
    assert skipped(manifest) == {reason: 1}


def test_a_byte_order_mark_is_part_of_a_text(source: Path, tmp_path: Path) -> None:
    (source / "bom.txt").write_bytes(b"\xef\xbb\xbfwith a mark")
    assert "\ufeffwith a mark" in everything(tmp_path / "out", made(source, tmp_path / "out"))


@pytest.mark.parametrize("name", ["bomb.txt.gz", "bomb.jsonl.gz", "bomb.txt", "bomb.jsonl"])
def test_what_unpacks_to_very_much_is_not_held_in_memory(
    source: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MiB of zeros and of one letter, out of 64 KiB or a hole."""
    baselines = Baselines(order0_bits_per_byte=1, xz_bits_per_byte=1, xz_bytes=1)
    monkeypatch.setattr(PREPARE, "measure", lambda documents: baselines)  # xz takes most of the memory
    for number, letter in enumerate((b"\0", b"x")):
        path = source / f"{number}-{name}"
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(letter * (64 * MIB), 1))
        else:
            with path.open("wb") as file:
                file.truncate(64 * MIB)
    tracemalloc.start()
    manifest = made(source, tmp_path / "out", max_document_bytes=MIB, include=["*0.txt", f"0-{name}", f"1-{name}"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * MIB
    assert set(skipped(manifest)) <= {"binary", "duplicate", "too_large"}
    assert skipped(manifest)


def test_a_line_of_72_mib_and_rows_around_it(tmp_path: Path) -> None:
    """In a process of its own, whose peak is compared with that of the same work without the line."""
    code = """
import resource, sys
from pathlib import Path
from model.corpus import Mixture, Options, Source, prepare
from model.dataset import Baselines
source, out = sys.argv[1:]
one = Baselines(order0_bits_per_byte=1, xz_bits_per_byte=1, xz_bytes=1)
sys.modules["model.corpus.prepare"].measure = lambda documents: one
made = prepare(Mixture(sources=(Source(name="x", uri=source),)), out,
               Options(vocab_size=300, workers=1, max_document_bytes=1 << 20))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, made.documents("train") + made.documents("heldout"),
      made.sources[0].skipped.too_large.count)
"""
    peaks = []
    for name, size in (("small", 1), ("large", 72)):
        with (tmp_path / f"{name}.jsonl").open("wb") as file:
            file.write(json_lines(DOCUMENTS[:5]) + b'{"text": "')
            for _ in range(size):
                file.write(b"x" * MIB)
            file.write(b'xx"}\n' + json_lines(DOCUMENTS[5:]))
        command = [sys.executable, "-c", code, str(tmp_path / f"{name}.jsonl"), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, documents, large = map(int, done.stdout.split())
        assert (documents, large) == (10, 1)
        peaks.append(peak * 1024)
    assert peaks[1] - peaks[0] < 20 * MIB


def test_a_damaged_end_costs_what_comes_after_it(tmp_path: Path) -> None:
    import bz2
    import lzma

    import pyarrow

    sink = pyarrow.BufferOutputStream()
    many = texts(900)
    raw = json_lines(many)
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    forms = {"gz": gzip.compress(raw), "xz": lzma.compress(raw), "zst": sink.getvalue().to_pybytes()}
    for ending, whole in (forms | {"bz2": bz2.compress(raw, 1)}).items():
        path = tmp_path / f"x.jsonl.{ending}"
        path.write_bytes(whole[: len(whole) * 9 // 10])
        manifest = made(path, tmp_path / ending, vocab_size=260)
        found = everything(tmp_path / ending, manifest)
        assert skipped(manifest) == {"damaged": 1}, ending
        assert manifest.sources[0].skipped.damaged.examples == (path.name,)
        assert 100 < len(found) < 900, ending
        assert set(found) < set(many)
        path.write_bytes(b"this is not compressed at all")
        with pytest.raises(ValueError, match=r"0 usable document\(s\).*skipped: 1 damaged"):
            made(path, tmp_path / "none")


def test_a_damaged_file_among_others(source: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"text": texts(50, first=500)}), tmp_path / "x", row_group_size=10)
    raw = (tmp_path / "x").read_bytes()
    (source / "a.parquet").write_bytes(raw[:-100])
    (source / "b.parquet").write_bytes(b"")
    (source / "c.parquet").write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1")
    (source / "d.txt.gz").write_bytes(gzip.compress(b"text" * 100)[:-9])
    (source / "e.arrow").write_bytes(b"ARROW1" * 20)
    middle = len(raw) // 4
    (source / "f.parquet").write_bytes(raw[:middle] + b"\xff" * 300 + raw[middle + 300 :])
    manifest = made(source, tmp_path / "out")
    assert skipped(manifest) == {"damaged": 6}
    assert set(everything(tmp_path / "out", manifest)) >= set(texts(40))


def test_a_folder_of_datasets_that_is_cut_short(tmp_path: Path) -> None:
    import pyarrow

    batch = pyarrow.record_batch({"text": DOCUMENTS})
    with pyarrow.ipc.new_stream(str(tmp_path / "whole"), batch.schema) as stream:
        for _ in range(5):
            stream.write_batch(batch)
    folder = write_folder(tmp_path / "source", [])
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    raw = (tmp_path / "whole").read_bytes()
    (folder / "data.arrow").write_bytes(raw[: len(raw) // 2])
    manifest = made(folder, tmp_path / "out")
    assert everything(tmp_path / "out", manifest) == sorted(DOCUMENTS)
    assert skipped(manifest)["damaged"] == 1


def test_this_machine_counts_in_kib() -> None:
    """What the test of peaks relies on."""
    assert 10 * MIB < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 1 << 40
