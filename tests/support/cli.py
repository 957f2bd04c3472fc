"""The command line in this process, by its entry point: what it prints, and the code it ends with."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from orchestrator.cli.main import main

Cli = Callable[..., tuple[int, str, str]]
"""Arguments -> exit code, stdout, stderr."""


def command(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Calls of `fathom NAME ...`."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fathom", name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), out, err

    return call


def commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Calls of `fathom ...`."""

    def call(name: object, *arguments: object) -> tuple[int, str, str]:
        return command(str(name), monkeypatch, capsys)(*arguments)

    return call
