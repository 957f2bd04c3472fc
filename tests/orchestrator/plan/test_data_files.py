"""Whatever the user's data files hold, the planner says what is wrong, and soon."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import Field

from model.config import Frozen
from orchestrator.errors import UsageError
from orchestrator.plan.efficiency import efficiencies
from orchestrator.plan.failures import find_failures
from orchestrator.plan.files import read_rows
from orchestrator.plan.hardware import accelerators
from orchestrator.plan.observed import read_observations
from orchestrator.plan.prices import PriceBook


class Row(Frozen):
    name: str
    value: float = Field(gt=0)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


@pytest.mark.parametrize("read", [accelerators, efficiencies, PriceBook.load, read_observations, find_failures])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "a device or pipe, not a file"),
        (Path.mkdir, "a folder, not a file"),
        (sparse, "larger than 1000000 bytes"),
        (lambda path: path.symlink_to("/dev/zero"), "a device or pipe, not a file"),
        (lambda path: path.symlink_to(path), "a link that leads to itself"),
        (lambda path: path.symlink_to(path.parent / "nothing"), "No such file"),
    ],
)
def test_what_is_no_file_is_not_read(
    tmp_path: Path, read: Callable[[Path | str], object], make: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / "own.yaml"
    make(path)
    with pytest.raises(UsageError, match=f"own.yaml.*{says}"):
        read(str(path) if read is find_failures else path)


BOMB = "- &a {name: x, value: 1}\n" + "\n".join(
    f"- &{chr(98 + i)} {{<<: [{', '.join(['*' + chr(97 + i)] * 9)}]}}" for i in range(12)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "row 2: name: Field required"),
        ("- &a {name: *a, value: 1}", "row 1: name"),
        ("- {name: x, value: 1, value: 2}", "not valid YAML: 'value' is given twice"),
        ("- {name: x, value: true}", "row 1: value: must not be true"),
        ("- {name: no, value: 1}", "row 1: name: must not be false; a text that reads so needs quotes"),
        ("- {name: x, value: .nan}", "row 1: value: Input should be a finite number"),
        ("- {name: x, value: 1.0e+400}", "row 1: value: Input should be a finite number"),
        ("- {name: x, value: -1}", "row 1: value: Input should be greater than 0"),
        (f"- {{name: x, value: {'9' * 6000}}}", "not valid YAML: Exceeds the limit"),
        ("- {name: x, value: 1, colour: red}", "row 1: colour: Extra inputs"),
        ("- [x, 1]", "row 1: must be fields with values, got list"),
        ("- ? [a, b]\n  : 3", "not valid YAML"),
        ("- {name: x, value: 1}\n--- \n- {name: y, value: 1}", "not valid YAML"),
    ],
)
def test_what_a_file_may_not_hold(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"file of tests {path}: {says}"):
        read_rows(path, "file of tests", "check it", Row)


def test_aliases_and_a_byte_order_mark_are_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("\ufeff- {name: &n x, value: 1.5}\n- {name: *n, value: 2}\n")
    assert [row.value for row in read_rows(path, "file", "", Row)] == [1.5, 2.0]
