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


def _listed() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.fail("git ls-files failed: run the tests in a clone")
    return listed.stdout.splitlines()


def test_the_top_level_holds_nothing_by_accident() -> None:
    """Somebody's note was committed there once: what is new at the top level is added here on purpose."""
    rooms = {"model", "orchestrator", "k8s", "helm", "tests", "benchmarks", "docs", ".ci"}
    files = {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "pyproject.toml"}
    assert {name.split("/")[0] for name in _listed()} - rooms - files - {".gitignore", ".gitattributes"} == set()


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    places = ["/" + "work/", "/" + "home/"]
    for name in _listed():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt"} or path.name == "Makefile":
            text = path.read_text()
            assert not [p for p in places if p in text], name
