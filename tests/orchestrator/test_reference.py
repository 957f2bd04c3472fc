from pathlib import Path

import pytest

from orchestrator.reference import DOCUMENTS, job_reference


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_committed_reference_is_the_generated_one(name: str) -> None:
    committed = Path(__file__).parents[2] / "docs" / f"{name}.md"
    assert committed.read_text() == DOCUMENTS[name](), "run `make docs`"


def test_each_field_is_explained() -> None:
    rows = [line.split(" | ") for line in job_reference().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 60
    for row in rows:
        assert row[-1].rstrip(" |"), f"{row[0]} has no docstring"
