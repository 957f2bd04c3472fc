"""A mailbox on a real Ray of its own, and workers in other processes: `python -m support.mailbox_trial FOLDER`.

The last line is what happened, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import ray

from model.reporting import Stop
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import CheckpointAndStop, Progress, read, write_control
from orchestrator.launch.pods.mailbox import kill_mailbox, open_mailbox
from orchestrator.launch.pods.reporter import PodReporter
from orchestrator.launch.reporter import FileReporter

PATIENCE = 240.0


def work(told: PodReporter, first: int, number: int) -> tuple[float, bool]:
    """-> seconds that speaking took, whether the attempt has failed."""
    began = time.monotonic()
    for step in range(first, first + number):
        told.progress(step=step, tokens=step, metrics={}, samples=0)
        told.stop_requested()
    spent = time.monotonic() - began
    told.arrive()
    return spent, told.has_failed()


def ask(told: PodReporter) -> Stop | None:
    """As long as there is no answer."""
    end = time.monotonic() + PATIENCE
    while (stop := told.stop_requested()) is None and time.monotonic() < end:
        time.sleep(0.01)
    return stop


def steps(folder: RunFolder) -> list[int]:
    return [event.step for event in read(folder.events)[0] if isinstance(event, Progress)]


def main(root: Path) -> None:
    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80_000_000)
    folder = RunFolder(root / "run")
    reporter = FileReporter(folder.root, "u", 1, "i1")
    mailbox = open_mailbox(reporter)
    told, run = PodReporter(mailbox, root), ray.remote(work)
    found: dict[str, object] = {}
    spent, before = ray.get(run.remote(told, 1, 200), timeout=PATIENCE)
    found |= {"seconds of 200 steps": spent, "first": steps(folder)}

    holder = folder.root / "mailbox.pid"
    first = holder.read_text()
    kill_mailbox(folder)
    ray.get(run.remote(told, 201, 50), timeout=PATIENCE)
    found |= {"after its death": steps(folder), "another process": holder.read_text() != first}

    write_control(folder.control, CheckpointAndStop(deadline=50.0, reason="cancelled"))
    stop = ray.get(ray.remote(ask).remote(told), timeout=2 * PATIENCE)
    told.failed("not-finite", "the loss is nan")
    after = ray.get(run.remote(told, 251, 1), timeout=PATIENCE)[1]
    found |= {"stop": [stop.deadline, stop.reason], "failed before, after": [before, after]}
    found["failure"] = reporter.failure()

    ray.kill(mailbox, no_restart=True)
    began = time.monotonic()
    told.progress(step=999, tokens=1, metrics={}, samples=0)
    found |= {"gone": told.has_failed(), "seconds without a mailbox": time.monotonic() - began}
    ray.shutdown()
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
