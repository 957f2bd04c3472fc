"""Long files are read in units and sorted in buckets: no byte and no line is lost or doubled where they meet."""

import itertools
import json
from pathlib import Path

import pytest
from corpora import PREPARE, everything, json_lines, made, skipped, texts, write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import model.corpus.records
import model.corpus.runs
import model.corpus.steps
import model.corpus.units
from model.corpus.listing import Member
from model.corpus.records import Record, read_part
from model.corpus.units import Part, Unit, make_units

QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
LIMIT = 1 << 24


def member(path: Path, format: str = "jsonl") -> Member:
    """A file as it is listed."""
    return Member(0, path.name, str(path), path.stat().st_size, "", format, None, alone=True)


def units(path: Path, format: str) -> list[Unit]:
    skips: dict[int, object] = {}
    return make_units([member(path, format)], LIMIT, skips)  # type: ignore[arg-type]


def records(path: Path, format: str, limit: int = LIMIT) -> list[Record]:
    """Of all units of a file."""
    parts = [part for unit in units(path, format) for part in unit.parts]
    return [record for part in parts for record in read_part(member(path, format), part, "text", limit)]


@pytest.mark.parametrize(
    ("unit", "run", "bucket", "encode"),
    [(200, 300, 500, 100), (60, 1, 1000, 90), (977, 100, 10_000, 128), (10_000, 10_000, 150, 10_000)],
)
def test_the_result_does_not_depend_on_sizes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: int, run: int, bucket: int, encode: int
) -> None:
    (tmp_path / "x.jsonl").write_bytes(json_lines(texts(40)))
    whole = [made(source, tmp_path / "a"), made(tmp_path / "x.jsonl", tmp_path / "b")]
    monkeypatch.setattr(model.corpus.units, "UNIT_BYTES", unit)
    monkeypatch.setattr(model.corpus.runs, "RUN_BYTES", run)
    monkeypatch.setattr(PREPARE, "BUCKET_BYTES", (bucket, bucket))
    monkeypatch.setattr(model.corpus.steps, "ENCODE_BYTES", encode)
    divided = [made(source, tmp_path / "c"), made(tmp_path / "x.jsonl", tmp_path / "d")]
    assert len({one.digest for one in whole + divided}) == 1
    assert [one.baselines for one in whole] == [one.baselines for one in divided]


@pytest.mark.parametrize("name", ["FILES", "RUN_DOCUMENTS", "BUCKET_DOCUMENTS"])
def test_the_result_does_not_depend_on_numbers(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = made(source, tmp_path / "a")
    place = {"FILES": model.corpus.units, "RUN_DOCUMENTS": model.corpus.runs}.get(name, PREPARE)
    monkeypatch.setattr(place, name, 3)
    seen: list[tuple[str, int, int]] = []
    assert made(source, tmp_path / "b", progress=lambda *step: seen.append(step)).digest == before.digest
    assert len([step for step in seen if step[0] == "reading"]) == (15 if name == "FILES" else 2)
    assert len([step for step in seen if step[0] == "encoding"]) == (17 if name == "BUCKET_DOCUMENTS" else 2)


def test_duplicates_meet_across_units_and_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.corpus.units, "UNIT_BYTES", 150)
    monkeypatch.setattr(model.corpus.runs, "RUN_DOCUMENTS", 2)
    monkeypatch.setattr(PREPARE, "BUCKET_DOCUMENTS", 4)
    (tmp_path / "x.jsonl").write_bytes(json_lines(texts(20) * 3))
    manifest = made(tmp_path / "x.jsonl", tmp_path / "out")
    assert everything(tmp_path / "out", manifest) == sorted(texts(20))
    assert skipped(manifest) == {"duplicate": 40}
    assert len(manifest.sources[0].skipped.duplicate.examples) == 5


LINES = st.lists(
    st.tuples(
        st.text(alphabet="ab \u00fc漢😀", min_size=1, max_size=12), st.sampled_from(["\n", "\r\n", "\n\n", " \n"])
    ),
    min_size=1,
    max_size=12,
)


@QUICK
@given(LINES, st.booleans(), st.booleans(), st.integers(1, 60))
def test_every_line_is_read_once(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[tuple[str, str]],
    ended: bool,
    escaped: bool,
    unit: int,
) -> None:
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    whole = "".join(
        json.dumps({"text": f"{i}{line}"}, ensure_ascii=escaped) + end for i, (line, end) in enumerate(lines)
    )
    path.write_bytes((whole if ended else whole.rstrip()).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.corpus.units, "UNIT_BYTES", unit)
        found = records(path, "jsonl")
    assert [record.text for record in found] == [f"{i}{line}".encode() for i, (line, _) in enumerate(lines)]
    starts = [record.place for record in found]
    assert all(path.read_bytes()[start:].startswith(b'{"text"') for start in starts)
    assert starts == sorted(set(starts))


TEXTS = st.text(alphabet="ab\n\r \u00fc漢😀", min_size=1, max_size=300).filter(str.strip)


@QUICK
@given(TEXTS, st.integers(1, 120), st.integers(4, 40), st.integers(1, 20))
def test_every_byte_of_a_text_is_in_one_document(
    tmp_path_factory: pytest.TempPathFactory, whole: str, unit: int, border: int, aim: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "x.txt"
    path.write_bytes(whole.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.corpus.units, "UNIT_BYTES", unit)
        patch.setattr(model.corpus.records, "BORDER", border)
        patch.setattr(model.corpus.records, "PIECE_BYTES", (max(aim, 4), 64))
        found = records(path, "text")
    assert {record.skip for record in found} <= {None, "empty"}, "no character is cut in two"
    raw, place = whole.encode(), 0
    for record in found:
        assert record.place == place
        following = min([other.place for other in found if other.place > place], default=len(raw))
        assert record.text is None or record.text == raw[place:following]
        place = following
    assert place == len(raw)


def test_a_long_text_ends_units_at_blank_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.corpus.units, "UNIT_BYTES", 5000)
    whole = "\n".join(texts(300))
    (tmp_path / "book.txt").write_text(whole, encoding="utf-8")
    seen: list[tuple[str, int, int]] = []
    manifest = made(tmp_path / "book.txt", tmp_path / "out", progress=lambda *step: seen.append(step))
    found = sorted(everything(tmp_path / "out", manifest), key=whole.find)
    assert "".join(found) == whole
    assert all(document.endswith("\n\n") for document in found[:-1])
    assert len([step for step in seen if step[0] == "reading"]) > 5


@pytest.mark.parametrize("stray", [b"\x80" * 9000, b"a" + b"\x80" * 9000, b"\xff" * 9000, b"\xf0\x9f" * 4000])
def test_a_long_text_that_is_not_utf8_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stray: bytes) -> None:
    """Where there is no border between two characters in reach."""
    monkeypatch.setattr(model.corpus.records, "BORDER", 64)
    good = "\n\n".join(texts(100)).encode()
    for unit in (2000, 1 << 20):
        monkeypatch.setattr(model.corpus.units, "UNIT_BYTES", unit)
        (tmp_path / "x.txt").write_bytes(good + b"\n\n" + stray + b"\n\n" + good[::-1].replace(b"\xff", b""))
        found = records(tmp_path / "x.txt", "text")
        assert {"undecodable"} <= {record.skip for record in found} <= {None, "undecodable", "empty"}
        kept = b"".join(record.text for record in found if record.text)
        assert kept.startswith(good[:4000])


def test_parts_of_parquet_are_whole_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    documents = texts(50)
    parquet.write_table(pyarrow.table({"text": documents}), tmp_path / "x.parquet", row_group_size=5)
    monkeypatch.setattr(model.corpus.units, "UNIT_BYTES", 1200)
    parts = [part for unit in units(tmp_path / "x.parquet", "parquet") for part in unit.parts]
    assert 3 < len(parts) < 10
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    found = records(tmp_path / "x.parquet", "parquet")
    assert [(record.place, record.text) for record in found] == [(i, t.encode()) for i, t in enumerate(documents)]


def test_small_files_share_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.corpus.units, "UNIT_BYTES", 1000)
    folder = write_folder(tmp_path / "source", ["x" * 300] * 10)
    members = [member(path, "text") for path in sorted(folder.rglob("*.txt"))]
    found = make_units([Member(0, m.name, m.url, m.size, "", "text", None) for m in members], LIMIT, {})
    assert [len(unit.parts) for unit in found] == [3, 3, 3, 1]
    assert [unit.size for unit in found] == [900, 900, 900, 300]
    assert list(itertools.chain(*(unit.parts for unit in found))) == [Part(i, 0, 300, False) for i in range(10)]
