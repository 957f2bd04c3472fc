"""The driver of a cluster that trains nothing and asks no Ray, and is the real one in all else.

`python pod_stand_in.py --cluster FOLDER`: a step every hundredth of a second, a checkpoint at the end. With DEAF in the
environment nobody listens to an order to stop, with LATE workers never begin, with LOST they are gone
after the third step and do not come again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from orchestrator.launch import entry
from orchestrator.launch.pods import driver
from orchestrator.launch.reporter import FileReporter
from orchestrator.launch.resolve import Resolved

COMMAND = (sys.executable, str(Path(__file__).absolute()))


def pretend(_: Any, resolved: Resolved, reporter: FileReporter) -> None:  # noqa: ANN401
    """What Ray and the workers do, without them."""
    step = 0
    if "LATE" in os.environ:
        threading.Event().wait()
    reporter.started(step=0, tokens=0, world_size=2, resumed_from=None, arithmetic="")
    deaf = "DEAF" in os.environ
    while step < resolved.recipe.steps and (deaf or reporter.stop_requested() is None):
        step += 1
        reporter.progress(step=step, tokens=step, metrics={"train/loss": 5.0 / step}, samples=step)
        print(f"step {step}", flush=True)
        time.sleep(0.01)
        if "LOST" in os.environ and step == 3:
            reporter.workers_lost("rank 1: gone")
            threading.Event().wait()
    reporter.checkpoint_committed(step=step, uri=f"step-{step}", size_bytes=1, seconds=0.0)


if __name__ == "__main__":
    driver._Driver._train = pretend  # type: ignore[method-assign]
    sys.exit(entry.main(sys.argv[1:]))
