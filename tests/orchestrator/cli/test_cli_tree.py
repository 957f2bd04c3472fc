"""Commands and options are a promise: whoever changes them changes the committed list too, on purpose.

After a change that is meant: `PYTHONPATH=.:tests python tests/orchestrator/cli/test_cli_tree.py` writes it anew.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from orchestrator.cli.groups import group_of
from orchestrator.cli.main import app

TREE = Path(__file__).parent / "data" / "tree.txt"


def lines(command: Any, path: str = "fathom") -> Iterator[str]:  # noqa: ANN401 - a command of typer's
    """One for each command: its arguments, its options with all their names, and what they may be."""
    words = [word for parameter in command.params for word in [_said(parameter)] if word]
    yield " ".join([path, *words])
    for name, below in getattr(command, "commands", {}).items():
        yield from lines(below, f"{path} {name}")


def _said(parameter: Any) -> str:  # noqa: ANN401
    if parameter.param_type_name == "argument":
        words = parameter.metavar or parameter.name.upper()
        return words if words.startswith("[") or parameter.required else f"[{words}]"
    names = "|".join([*parameter.opts, *parameter.secondary_opts])
    kind = parameter.type_descriptor.annotation
    choices = ",".join(kind) if isinstance(kind, type) and issubclass(kind, StrEnum) else "..."
    return f"[{names}]" if parameter.is_flag else f"[{names}={choices}]"


ROOT: Any = typer.main.get_command(app)


def tree() -> str:
    return "".join(f"{line}\n" for line in lines(ROOT))


def test_the_commands_are_those_that_were_promised() -> None:
    assert tree() == TREE.read_text(), "if it is meant, write the list anew: see the top of this file"


def test_every_command_stands_in_a_group_of_the_help() -> None:
    assert [name for name, command in ROOT.commands.items() if group_of(command) == "Other"] == []


NO_READS = {"fathom train", "fathom generate", "fathom data prepare"}
"""They make something, and print what it was."""


def test_every_read_has_the_same_forms() -> None:
    said = [line.split(" ") for line in tree().splitlines() if "--output|-o=" in line]
    assert len(said) > 20
    for words in said:
        name = " ".join(word for word in words if word.islower() and word[0].isalpha())
        [forms] = [word for word in words if word.startswith("[--output|-o=")]
        missing = {"table", "wide", "json", "yaml", "name"} - set(forms[len("[--output|-o=") : -1].split(","))
        assert name in NO_READS or not missing, f"{name}: {missing}"


def test_help_imports_nothing_of_the_service() -> None:
    code = "import sys, orchestrator.cli.main\nprint(*sorted({'httpx2', 'fastapi', 'sqlalchemy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


if __name__ == "__main__":
    TREE.write_text(tree())
