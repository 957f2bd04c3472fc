"""What holds for every file."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted((ROOT / "model").rglob("*.py")) + sorted((ROOT / "orchestrator").rglob("*.py"))
PYTHON = [*PACKAGES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]


def test_every_module_says_what_it_is() -> None:
    assert [p for p in PACKAGES if not ast.get_docstring(ast.parse(p.read_text()))] == []


def test_no_file_has_more_than_500_lines() -> None:
    assert [p for p in PYTHON if len(p.read_text().splitlines()) > 500] == []


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.fail("git ls-files failed: run the tests in a clone")
    places = ["/" + "work/", "/" + "home/"]
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt"} or path.name == "Makefile":
            text = path.read_text()
            assert not [p for p in places if p in text], name
