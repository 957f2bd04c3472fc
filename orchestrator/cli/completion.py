"""`fathom completion bash`: what makes the shell complete commands, options and names of jobs.

The script and the protocol are typer's. Invariant: while the shell asks, nothing is written to its terminal but
completions, whatever is wrong: `quietly` is the whole program then.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

VARIABLE = "_FATHOM_COMPLETE"


class Shell(StrEnum):
    """Those whose scripts typer makes and our tests run or read."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion_command(
    shell: Annotated[Shell, typer.Argument(help="The shell to complete in.", show_default=False)],
) -> None:
    """Print a script with which the shell completes commands, options and names of jobs.

    Examples: source <(fathom completion bash)  |  fathom completion fish > ~/.config/fish/completions/fathom.fish
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # as typer uses it itself

    print(hushed(get_completion_script(prog_name="fathom", complete_var=VARIABLE, shell=shell.value), shell))


def hushed(script: str, shell: Shell) -> str:
    """The script, with what a broken installation says kept from the shell, too."""
    call = {Shell.bash: "=complete_bash $1", Shell.zsh: "=complete_zsh fathom"}.get(shell, "(commandline -cp) fathom")
    return script.replace(call, f"{call} 2>/dev/null")


def is_completing() -> bool:
    """Whether the shell asks, and not a person."""
    return VARIABLE in os.environ


def quietly(app: typer.Typer) -> None:
    """Answer the shell, and end; what cannot be answered is no completion, and no message."""
    from typer.completion import completion_init  # type: ignore[attr-defined]

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    code = 0
    try:
        completion_init()
        app(prog_name="fathom", standalone_mode=False)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:  # noqa: BLE001 - Ctrl-C, too: the line that is being typed stays as it is
        code = 1
    try:
        sys.stdout.flush()
    except OSError:
        code = 1
    os._exit(code)  # without what Python says of a pipe that is closed
