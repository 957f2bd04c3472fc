"""The pod of Ray's head, as far as a driver sees it: what is mounted, what the environment says, how it went."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import Ended
from orchestrator.launch.rayjob import agreed
from orchestrator.launch.resolve import Resolved
from orchestrator.spec import TrainingJob
from support.ear import Ear
from support.home import ROOT

INCARNATION = "tiny-a1-abcde"
PATIENCE = 900.0


@dataclass
class HeadPod:
    """Below a folder of the test's own; the environment is what `rayjob.pods` sets."""

    root: Path
    job: TrainingJob
    resolved: Resolved
    ear: Ear
    command: Sequence[str]
    more: dict[str, str] = field(default_factory=dict)
    """Of the environment."""
    token: str = "a-token"
    key: bytes = bytes(range(32))
    """By which its checkpoints are signed."""

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.root / "tmp" / "fathom")

    @property
    def said(self) -> str:
        """Where Ray shows what its driver prints."""
        return (self.root / "stdout").read_text(errors="replace")

    @property
    def done(self) -> bool:
        """Whether the pod knows that the driver has nothing left to do."""
        return (self.run.root / "driver.done").exists()

    def environment(self) -> dict[str, str]:
        foreign = ("FATHOM_", "MLFLOW_", "RAY_")
        given = {
            "FATHOM_CONTROLLER_URL": self.ear.url,
            "FATHOM_HOME": str(self.run.root),
            "FATHOM_INCARNATION": INCARNATION,
            "FATHOM_NODE": "node-1",
            "FATHOM_POD": "tiny-a1-abcde-head-xyz",
            "FATHOM_SIGNING_KEY_FILE": str(self.root / "etc" / agreed.SIGNING_KEY),
            "FATHOM_STOP_SECONDS": "60",
            "FATHOM_TOKEN_FILE": str(self.root / "token"),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
            "PYTHONUNBUFFERED": "1",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return kept | given | self.more

    def mount(self) -> None:
        etc = self.root / "etc"
        etc.mkdir(exist_ok=True)
        (etc / agreed.JOB_DOCUMENT).write_text(json.dumps(self.job.document()))
        (etc / agreed.RESOLVED).write_text(self.resolved.model_dump_json())
        (etc / agreed.SIGNING_KEY).write_bytes(self.key)
        (self.root / "token").write_text(f"{self.token}\n")

    @contextmanager
    def driver(self) -> Iterator[subprocess.Popen[bytes]]:
        """Started as Ray does, in a session of its own; it does not outlive the block."""
        self.mount()
        command = [*self.command, "--cluster", str(self.root / "etc")]
        with (self.root / "stdout").open("wb") as out:
            process = subprocess.Popen(
                command, env=self.environment(), stdout=out, stderr=out, start_new_session=True, cwd="/"
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def go(self) -> int:
        """To the end; -> exit status."""
        with self.driver() as process:
            return process.wait(PATIENCE)

    def ended(self) -> Ended:
        """The only end that the controller knows."""
        [ended] = [event for event in self.ear.events if isinstance(event, Ended)]
        return ended
