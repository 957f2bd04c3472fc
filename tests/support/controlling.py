"""A controller as a process of its own, with drivers that train nothing: `python controlling.py HOME`."""

from __future__ import annotations

import sys
from pathlib import Path

from orchestrator.controller.service import Controller
from orchestrator.launch.local import LocalLauncher
from orchestrator.settings import Settings
from orchestrator.store.database import NAME
from orchestrator.store.sqlite import SqliteStore
from support.stand_in import COMMAND


class NoMirror:
    """MLflow is another test's."""

    def tell(self, name: str) -> None: ...

    def close(self) -> None: ...


def main() -> None:
    home = Path(sys.argv[1])
    settings = Settings.load({"FATHOM_HOME": str(home), "FATHOM_CPUS": "4"})
    store = SqliteStore(home / NAME)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    controller = Controller(store, LocalLauncher(settings, COMMAND), settings, say, mirror=NoMirror())  # type: ignore[arg-type]
    say("up")
    controller.run()


if __name__ == "__main__":
    main()
