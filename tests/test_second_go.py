"""A test of real processes that fails once is run again and named; all other failures count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.second_go import MOST, PASSED

# other plugins take seconds to load
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
CONFTEST = (Path(__file__).parent / "conftest.py").read_text()
TESTS = """
from pathlib import Path
import pytest

def falls(name, times):
    count = Path(name)
    count.write_text(count.read_text() + "." if count.exists() else ".")
    assert len(count.read_text()) > times, f"the first words of {name}"

@pytest.mark.kube
def test_slow_once(): falls("slow", 1)

@pytest.mark.processes
def test_always(): falls("always", 9)

def test_pure(): falls("pure", 1)

@pytest.mark.ray
def test_fine(): falls("fine", 0)

@pytest.fixture
def bad_end():
    yield
    falls("end", 1)

@pytest.mark.ray
def test_bad_end(bad_end): ...

@pytest.mark.ray
def test_left_out_later():
    falls("skipped", 1) if not Path("skipped").exists() else pytest.skip("nothing there")

@pytest.fixture(scope="module")
def whole():
    falls("whole", 1)

@pytest.mark.processes
@pytest.mark.parametrize("number", range(9))
def test_by_fixture(whole, number): ...

@pytest.mark.kube
@pytest.mark.parametrize("number", range(MOST_AND_ONE))
def test_all_broken(number): falls(f"broken{number}", 1)
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "kube").mkdir()  # which makes no test one of a server
    (tmp_path / "kube" / "test_it.py").write_text(TESTS.replace("MOST_AND_ONE", str(MOST + 1)))
    markers = "\n".join(f"  {name}: x" for name in ("kube", "processes", "ray"))
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nmarkers =\n{markers}\n")
    return tmp_path


def go(suite: Path, names: str, *options: str) -> tuple[int, str, str]:
    """-> exit code, what was said, what stands in the file."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", names, "--second-go", "flakes", *options]
    done = subprocess.run(command, cwd=suite, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    flakes = suite / "flakes"
    return done.returncode, done.stdout + done.stderr, flakes.read_text() if flakes.exists() else ""


WORKERS = ("-p", "xdist.plugin", "-n", "2", "--dist", "loadfile")


@pytest.mark.parametrize("options", [(), WORKERS], ids=["alone", "workers"])
def test_what_passes_then_lets_the_run_pass_and_is_named(suite: Path, options: tuple[str, ...]) -> None:
    code, said, flakes = go(suite, "slow_once or fine", *options)
    assert code == 0, said
    assert f", 1 {PASSED} in " in said
    assert "failed" not in said.splitlines()[-1]
    assert f"{PASSED} (a flake to be mended)" in said
    assert "the first words of slow" in said
    assert [len((suite / name).read_text()) for name in ("slow", "fine")] == [2, 1]
    [line] = flakes.splitlines()
    assert line.startswith(f"{PASSED} (a flake to be mended): kube/test_it.py::test_slow_once: ")
    assert "the first words of slow" in line


def test_an_end_that_fails_once_counts_alike(suite: Path) -> None:
    code, said, flakes = go(suite, "bad_end")
    assert code == 0, said
    assert "(teardown)" in said
    assert "the first words of end" in flakes


def test_a_fixture_that_fails_once_is_one_accident(suite: Path) -> None:
    code, said, flakes = go(suite, "by_fixture")
    assert code == 0, said
    assert f", 9 {PASSED} in " in said
    assert len(flakes.splitlines()) == 9
    assert (suite / "whole").read_text() == "..", "made once for all of them"


def test_what_always_fails_fails(suite: Path) -> None:
    code, said, flakes = go(suite, "always")
    assert (code, flakes) == (1, "")
    assert said.splitlines()[-1].startswith("1 failed, ")
    assert "FAILED kube/test_it.py::test_always" in said
    assert (suite / "always").read_text() == ".."


def test_a_pure_test_has_one_go_and_so_has_all_beside_it(suite: Path) -> None:
    code, said, flakes = go(suite, "pure or slow_once")
    assert (code, flakes) == (1, "")
    assert "2 failed" in said
    assert [len((suite / name).read_text()) for name in ("pure", "slow")] == [1, 1]


def test_a_test_that_is_left_out_at_the_second_go_has_not_passed(suite: Path) -> None:
    code, said, flakes = go(suite, "left_out")
    assert (code, flakes) == (1, "")
    assert "1 failed" in said


def test_many_failures_are_no_accident(suite: Path) -> None:
    code, said, flakes = go(suite, "all_broken")
    assert (code, flakes) == (1, "")
    assert f"{MOST + 1} failed" in said


def test_without_the_option_nothing_is_repeated(suite: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-k", "slow_once"]
    assert subprocess.run(command, cwd=suite, env=ENVIRONMENT, check=False, capture_output=True).returncode == 1
    assert (suite / "slow").read_text() == "."


def test_make_names_the_file_in_the_same_word() -> None:
    """In a word of its own it is taken for a folder of tests, as soon as it is there, and the option is not known."""
    text = (Path(__file__).parents[1] / "Makefile").read_text()
    assert text.count("--second-go") == text.count("--second-go=$(FLAKES)") == 2
