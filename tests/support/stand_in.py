"""A driver that trains nothing, and is the real one in all else: its lock, deadline, ears, guard and last word.

`python stand_in.py RUN_FOLDER ATTEMPT LOCK`. What it does stands in `story.json` beside the run's folder: `seconds` for
all steps of the job, `outcome`, and for single jobs, by name, the same otherwise. It goes on from the step that was
saved last, and starts a child that outlives it, as Ray's agents do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from orchestrator.launch import entry
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import CheckpointCommitted, read
from orchestrator.launch.reporter import FileReporter
from orchestrator.launch.resolve import Resolved

COMMAND = (sys.executable, str(Path(__file__).absolute()))
SAVE_EVERY = 10
BIRTHS = "births.log"
"""In the home: a line for each driver that had the lock, with run folder, attempt and process."""


def pretend(resolved: Resolved, reporter: FileReporter, _: object) -> None:
    """What Ray and the workers do, without them."""
    folder = RunFolder(reporter.root)
    told: dict[str, Any] = json.loads((folder.root.parent / "story.json").read_text())
    story = told | told.get(resolved.job.name, {})
    with (folder.root.parent / BIRTHS).open("a") as births:
        births.write(f"{folder.root.name} {resolved.attempt} {os.getpid()}\n")
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], process_group=0)
    steps = resolved.recipe.steps
    saved = [event.step for event in read(folder.events)[0] if isinstance(event, CheckpointCommitted)]
    step = newest = max(saved, default=0)
    _started(reporter, step)
    while step < steps and not _told_to_stop(reporter, story["seconds"] / steps):
        step += 1
        tokens, metrics = step * resolved.recipe.total_tokens // steps, {"train/loss": 5.0 / step}
        reporter.progress(step=step, tokens=tokens, metrics=metrics, samples=step)
        if step % SAVE_EVERY == 0:
            _save(reporter, step)
            newest = step
    if step != newest:
        _save(reporter, step)
    if story["outcome"] == "failed":
        reporter.failed(story["failure"], "as it was told")


def _started(reporter: FileReporter, step: int) -> None:
    resumed = f"step-{step}" if step else None
    reporter.started(step=step, tokens=step, world_size=1, resumed_from=resumed, arithmetic="")


def _save(reporter: FileReporter, step: int) -> None:
    reporter.checkpoint_committed(step=step, uri=f"step-{step}", size_bytes=1, seconds=0.0)


def _told_to_stop(reporter: FileReporter, seconds: float) -> bool:
    """Within so many seconds, which a step takes."""
    until = time.monotonic() + seconds
    while reporter.stop_requested() is None:
        if (left := until - time.monotonic()) <= 0:
            return False
        time.sleep(min(0.05, left))
    return True


if __name__ == "__main__":
    entry._train = pretend
    sys.exit(entry.main(sys.argv[1:]))
