"""`fathom` as a user runs it: a folder with a job and its data, real Ray, and what is found there afterwards."""

from __future__ import annotations

import base64
import collections
import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from orchestrator.launch import local
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import CheckpointCommitted, Ended, Event, MachineLoad, Progress, read

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
INJECTION = ROOT / "tests" / "support" / "injection"
FATHOM = [sys.executable, "-c", "from orchestrator.cli.main import main; main()"]
CORPUS = (base64, collections, csv, functools, json, shutil, subprocess)
"""Modules whose source is the text to train on: real, and on every machine."""
STEPS, TOKENS_OF_STEP = 120, 256
PATIENCE, LONG_PATIENCE = 900.0, 1800.0
"""Seconds; the second for runs that are long by intention."""
LONGEST_LOOK = 5.0
"""The most that one look counts for."""
JOB = """
metadata: {name: tiny}
spec:
  model:
    preset: mini
    overrides:
      {vocabSize: 512, hiddenSize: 32, layers: 2, heads: 2, queryRank: 16, kvRank: 16, nopeHeadDim: 8,
       ropeHeadDim: 8, valueHeadDim: 8, denseHiddenSize: 64, expertHiddenSize: 16, experts: 4,
       expertsPerToken: 2, groups: 2, groupsPerToken: 1, maxPositions: 64}
  data: {source: data, sequenceLength: 32}
  training:
    tokens: 30_720
    globalBatchTokens: 256
    sampleTokens: 16
    schedule: {learningRate: 0.01}
    evaluation: {everySteps: 30, tokens: 2048}
    anomalies: {window: 24, threshold: 6.0}
  parallelism: {expert: 2}
  compute: {accelerator: cpu, workers: 2}
  checkpoint: {intervalMinutes: 0.02}
  tracking: {tags: {purpose: test}}
"""


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@dataclass(frozen=True)
class Home:
    """A folder to work in: a job, its data, and what `fathom` makes of them."""

    root: Path

    @classmethod
    def make(cls, root: Path, data: Path, steps: int = STEPS) -> Home:
        """With the job above, of so many steps, and a copy of prepared data."""
        home = cls(root)
        shutil.copytree(data, root / "data")
        (root / "job.yaml").write_text(JOB.replace("tokens: 30_720", f"tokens: {steps * TOKENS_OF_STEP}"))
        return home

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def faults(self) -> Path:
        return self.root / "faults.json"

    @property
    def prices(self) -> Path:
        """A price file of its own, where a test has written one."""
        return self.root / "prices.yaml"

    def inject(self, *faults: dict[str, Any]) -> None:
        """Faults for the processes that are started from now on; see tests/support/injection."""
        self.faults.write_text(json.dumps(faults))

    def happened(self) -> int:
        """How many of the faults that happen once have happened."""
        return len(list(self.root.glob("faults.json.done-*")))

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join(map(str, (INJECTION, ROOT)))
        own = {"FATHOM_HOME": str(self.runs), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        if self.faults.exists():
            own["TEST_FAULTS"] = str(self.faults)
        if self.prices.exists():
            own["FATHOM_PRICES"] = str(self.prices)
        foreign = ("FATHOM_", "MLFLOW_", "RAY_", "TEST_FAULTS")
        return {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | own

    def start_logged(self, *arguments: object) -> subprocess.Popen[bytes]:
        """With its words in a file: nobody reads a pipe while it runs for long."""
        with (self.root / "launcher.log").open("ab") as log:
            command = [*FATHOM, *map(str, arguments)]
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.root, env=self.environment())

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        command = [*FATHOM, *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=self.root, env=self.environment())

    def fathom(self, *arguments: object, patience: float = PATIENCE) -> Done:
        return finish(self.start(*arguments), patience, lambda: evidence(self.runs))

    def run_folder(self) -> RunFolder:
        """Of the only run, as soon as it is there."""
        return RunFolder(wait_for(lambda: next(self.runs.glob("tiny-*/job.json"), None)).parent)

    def client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=f"sqlite:///{self.runs / 'mlflow.db'}")

    def end_all(self) -> None:
        """No driver may outlive the tests, whatever failed."""
        for lock in self.runs.glob("*/driver.lock"):
            if (driver := local.running(RunFolder(lock.parent))) is not None:
                driver.kill()


def prepare_data(root: Path) -> Path:
    """A small dataset; -> its folder."""
    home = Home(root)
    (root / "source").mkdir(parents=True)
    for module in CORPUS:
        assert module.__file__ is not None
        shutil.copy(module.__file__, root / "source" / f"{module.__name__}.py")
    done = home.fathom("data", "prepare", "source", "data", "--vocab-size", 512, "--heldout-share", 0.1)
    assert done.code == 0, done.err
    return root / "data"


class Patience:
    """Runs out after so many seconds in which somebody looked: a machine that stood still meanwhile costs nothing."""

    def __init__(self, seconds: float) -> None:
        self._left, self._looked = seconds, time.monotonic()

    def over(self) -> bool:
        now = time.monotonic()
        self._left -= min(now - self._looked, LONGEST_LOOK)
        self._looked = now
        return self._left <= 0


def finish(process: subprocess.Popen[str], patience: float = PATIENCE, seen: Callable[[], str] = lambda: "") -> Done:
    """Wait for the end of a command; if it does not come, its stacks and what else is `seen` are in the message."""
    left = Patience(patience)
    while True:
        try:
            out, err = process.communicate(timeout=1)
            return Done(process.returncode, out, err)
        except subprocess.TimeoutExpired:
            if left.over():
                break
    found = seen()
    process.send_signal(signal.SIGUSR1)  # it writes its stacks, see tests/support/injection
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=2)
    process.kill()
    out, err = process.communicate()
    raise AssertionError(f"no end in {patience} s:\n{err}\n{found}")


def evidence(runs: Path) -> str:
    """Where each run of a home stands: its last events, its processes, the end of its log with its driver's stacks."""
    return "\n".join(_evidence(RunFolder(lock.parent)) for lock in sorted(runs.glob("*/driver.lock")))


def _evidence(folder: RunFolder) -> str:
    now, lines = time.time(), [str(folder.root)]
    told = [one for one in events(folder) if not isinstance(one, MachineLoad)]
    lines += [f"  {now - one.time:.1f} s ago: {one.model_dump_json()[:300]}" for one in told[-8:]]
    driver = local.running(folder)
    if driver is not None:
        for process in driver.session():
            with suppress(psutil.Error):
                lines.append(f"  {process.pid} {process.status()} {' '.join(process.cmdline())[:120]}")
        with suppress(ProcessLookupError):
            os.kill(driver.process.pid, signal.SIGUSR1)
            time.sleep(1)
    if (log := folder.log(folder.last_attempt())).exists():
        lines += [f"  | {line}" for line in log.read_text(errors="replace").splitlines()[-60:]]
    return "\n".join(lines)


def wait_for(look: Callable[[], T | None]) -> T:
    left = Patience(PATIENCE)
    while not left.over():
        if (found := look()) is not None:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE} s in vain")


def events(folder: RunFolder) -> list[Event]:
    return read(folder.events)[0]


def wait_for_checkpoint(folder: RunFolder, attempt: int) -> CheckpointCommitted:
    def look() -> CheckpointCommitted | None:
        found = [e for e in events(folder) if e.attempt == attempt]
        assert not any(isinstance(e, Ended) for e in found), found[-1]
        return next((e for e in found if isinstance(e, CheckpointCommitted)), None)

    return wait_for(look)


# What a run was: equal to another one, or not


def history(folder: RunFolder) -> dict[int, tuple[float, int | None]]:
    """Loss and checksum of the samples by step, as training left it: of a step that was done again, the last."""
    found = [e for e in events(folder) if isinstance(e, Progress) and "train/loss" in e.metrics]
    return {e.step: (e.metrics["train/loss"], e.samples) for e in found}


def weights(folder: RunFolder) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (folder.root / "weights").iterdir()}
    assert found
    return found


# What MLflow holds of the only job


def runs(client: MlflowClient) -> tuple[Run, list[Run]]:
    """The parent, and its children in order of attempts."""
    (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
    found = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in found if run.data.tags["fathom.role"] == "job"]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) + 1 == len(found)
    return parent, sorted(children, key=lambda run: int(run.data.tags["fathom.attempt"]))


def points(client: MlflowClient, metric: str) -> dict[int, float]:
    """Value by step on the parent; each step must be there once."""
    history = client.get_metric_history(runs(client)[0].info.run_id, metric)
    found = {point.step: point.value for point in history}
    assert len(found) == len(history), f"{metric} has a step twice"
    return found
