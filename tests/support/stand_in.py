"""A driver that trains nothing: a real process with the run's lock, events, and an ear for orders.

`python stand_in.py RUN_FOLDER ATTEMPT LOCK`. What it does stands in `story.json` beside the run's folder: seconds until
it ends, and what with. It starts a child that outlives it, as Ray's agents do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import CheckpointAndStop, EventLog, read_control
from orchestrator.launch.local import keep_lock
from orchestrator.launch.resolve import read_resolved

COMMAND = (sys.executable, str(Path(__file__).absolute()))


def main() -> None:
    folder, attempt, descriptor = RunFolder(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    story = json.loads((folder.root.parent / "story.json").read_text())
    resolved = read_resolved(folder.resolved(attempt))
    log = EventLog(folder.events)

    def say(kind: str, **fields: object) -> None:
        log.append(kind, job=resolved.job.uid, attempt=attempt, incarnation=resolved.incarnation, **fields)

    with keep_lock(descriptor, folder.lock, attempt):
        (folder.root.parent / "births.log").open("a").write(f"{folder.root.name} {attempt}\n")
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], process_group=0)
        say("started", step=0, tokens=0, world_size=1)
        until, step = time.monotonic() + story["seconds"], 0
        while time.monotonic() < until:
            step += 1
            say("progress", step=step, tokens=step)
            answer = read_control(folder.control)
            if isinstance(answer, CheckpointAndStop):
                say("checkpoint-committed", step=step, uri="x", size_bytes=1, seconds=0.0)
                failure = "over-budget" if answer.reason == "over-budget" else "interrupted"
                say("ended", outcome="stopped", failure_class=failure, message=answer.reason, step=step)
                return
            time.sleep(0.05)
        say("checkpoint-committed", step=step, uri="x", size_bytes=1, seconds=0.0)
        say("ended", outcome=story["outcome"], failure_class=story.get("failure"), message="", step=step)


if __name__ == "__main__":
    main()
