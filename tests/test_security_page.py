"""docs/security.md has every check of the list once, and the tests that it names are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
CHECKS = 27
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if re.match(r"\| \d+ \|", line)
]


def test_every_check_is_there_once_and_in_order() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, CHECKS + 1))
    assert {len(row) for row in ROWS} == {4}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_is_held_by_tests_that_there_are(row: list[str]) -> None:
    named = re.findall(r"`([^`]+)`", row[3])
    assert named
    for file, _, function in (name.partition("::") for name in named):
        found = ast.parse((ROOT / file).read_text())
        assert function in {node.name for node in found.body if isinstance(node, ast.FunctionDef)}, (
            f"{file}::{function}"
        )


def test_the_threat_model_names_who_attacks_and_what_remains() -> None:
    start = PAGE.index("## Threat model")
    table = [line for line in PAGE[start : PAGE.index("## The list")].splitlines() if line.startswith("| ")]
    assert "what remains" in table[0]
    for who in ("a tenant", "a training pod that was taken over", "a stranger in the network", "a stolen token"):
        assert any(who in line.split(" | ")[0] for line in table), who
    assert all(len(line.strip("|").split(" | ")) == 5 for line in table)
