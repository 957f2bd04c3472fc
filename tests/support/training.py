"""`fathom train` whose drivers train nothing: `python -m support.training JOB ...`."""

from __future__ import annotations

import sys
from functools import partial

from orchestrator.cli.main import main
from orchestrator.launch import local
from orchestrator.launch.local import LocalLauncher
from support.stand_in import COMMAND

if __name__ == "__main__":
    local.LocalLauncher = partial(LocalLauncher, command=COMMAND)  # type: ignore[misc, assignment]
    sys.argv = ["fathom", "train", *sys.argv[1:]]
    main()
