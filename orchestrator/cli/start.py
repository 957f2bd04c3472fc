"""Where the console script begins: Ctrl-C is no error while the commands are being imported, either."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `fathom`. Exit 130 if it is stopped before there is a command that could say so."""
    try:
        from orchestrator.cli.main import main as run
    except KeyboardInterrupt:
        print("error: stopped", file=sys.stderr)
        sys.exit(130)
    run()
