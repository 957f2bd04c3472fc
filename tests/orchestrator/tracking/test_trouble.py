from __future__ import annotations

from pathlib import Path

from orchestrator.tracking import trouble

AWAY = "MLflow at http://m:1: ConnectionError: <urllib3.connection.HTTPConnection object at 0x7f3a12>: refused"


def test_it_is_kept_since_it_began_and_written_only_where_it_is_another(tmp_path: Path) -> None:
    path = tmp_path / "trouble.json"
    assert trouble.load(path, "http://m:1") is None
    trouble.note(path, "http://m:1", AWAY, 100.0)
    first, written = trouble.load(path, "http://m:1"), path.stat().st_mtime_ns
    assert first is not None
    assert (first.since, first.why) == (100.0, "MLflow at http://m:1: ConnectionError: refused")
    trouble.note(path, "http://m:1", AWAY.replace("7f3a12", "7f9999"), 200.0)
    assert path.stat().st_mtime_ns == written, "the same again"
    trouble.note(path, "http://m:1", "MLflow at http://m:1: 401: who are you", 300.0)
    found = trouble.load(path, "http://m:1")
    assert found is not None
    assert (found.since, found.why) == (100.0, "MLflow at http://m:1: 401: who are you")
    assert trouble.load(path, "http://other:1") is None, "that of another MLflow says nothing of this one"
    trouble.note(path, "http://other:1", "away", 400.0)
    moved = trouble.load(path, "http://other:1")
    assert moved is not None
    assert moved.since == 400.0
    trouble.forget(path)
    trouble.forget(path)
    assert not path.exists()


def test_what_is_too_long_or_damaged_or_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "trouble.json"
    trouble.note(path, "t", "x" * 5000, 1.0)
    found = trouble.load(path, "t")
    assert found is not None
    assert len(found.why) == 700
    path.write_text("{")
    assert trouble.load(path, "t") is None
    trouble.note(path, "t", "again", 2.0)
    assert trouble.load(path, "t") is not None
    (tmp_path / "file").touch()
    trouble.note(tmp_path / "file" / "trouble.json", "t", "x", 1.0)
