from pathlib import Path

from orchestrator.reference import job_reference


def test_the_committed_reference_is_the_generated_one() -> None:
    committed = Path(__file__).parents[2] / "docs" / "job.md"
    assert committed.read_text() == job_reference(), "run `make docs`"


def test_each_field_is_explained() -> None:
    rows = [line.split(" | ") for line in job_reference().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 60
    for row in rows:
        assert row[-1].rstrip(" |"), f"{row[0]} has no docstring"
