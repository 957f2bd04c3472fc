"""Where everything of one run lies, and what a launcher does; for the controller, the driver and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestrator.launch.failure import Verdict
from orchestrator.status import Reason

if TYPE_CHECKING:
    from orchestrator.launch.resolve import Resolved
    from orchestrator.spec import TrainingJob


@dataclass(frozen=True)
class Capacity:
    """Of a machine, or of a part of it."""

    cpus: int
    gpus: int = 0


RECORDS = "[!.]*/job.json"
"""Of all runs, seen from a home; what is left of one that is being removed begins with a dot."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one job on this machine: its record, and by default its storage."""

    root: Path

    @property
    def job(self) -> Path:
        """The TrainingJob as submitted, with its uid."""
        return self.root / "job.json"

    @property
    def status(self) -> Path:
        """The job's status, kept up to date by the launcher."""
        return self.root / "status.json"

    @property
    def events(self) -> Path:
        """All events of all attempts."""
        return self.root / "events" / "events.jsonl"

    @property
    def control(self) -> Path:
        """The answer to the driver; see `events.read_control`."""
        return self.root / "control.json"

    @property
    def held(self) -> Path:
        """When attempts held their devices, by the launcher's clock: what is paid for."""
        return self.root / "held.json"

    @property
    def lock(self) -> Path:
        """Held by the driver as long as it lives."""
        return self.root / "driver.lock"

    @property
    def launcher_lock(self) -> Path:
        """Held by the process that follows the run: two would both write its record."""
        return self.root / "launcher.lock"

    @property
    def artifacts(self) -> Path:
        """Files to show beside the run; logged to MLflow."""
        return self.root / "artifacts"

    @property
    def forecast(self) -> Path:
        """What the run was expected to take, by `fathom plan` before it started."""
        return self.artifacts / "forecast.json"

    @property
    def tracking(self) -> Path:
        """What of all this has reached MLflow."""
        return self.root / "tracking.json"

    @property
    def tracking_trouble(self) -> Path:
        """Why MLflow lacks something of the run; there only while it cannot be told. See `tracking.trouble`."""
        return self.root / "tracking-trouble.json"

    @property
    def tracking_lock(self) -> Path:
        """Held by the process that is sending to MLflow."""
        return self.root / "tracking.lock"

    @property
    def ledger(self) -> Path:
        """Where each second and dollar went."""
        return self.root / "ledger" / "ledger.json"

    def resolved(self, attempt: int) -> Path:
        """The resolved configuration of an attempt."""
        return self.root / f"resolved-{attempt}.json"

    def tariff(self, attempt: int) -> Path:
        """What an attempt pays, where the price was changed while it ran."""
        return self.root / f"tariff-{attempt}.json"

    @property
    def job_lock(self) -> Path:
        """Held while the job's budget is changed, for a moment."""
        return self.root / "job.lock"

    @property
    def reserved(self) -> Path:
        """What of its team's budget is kept for the run while it goes on; see `controller.teams`."""
        return self.root / "reserved.json"

    def last_attempt(self) -> int:
        """Number of the newest attempt that was ever prepared; 0 if there is none."""
        numbers = (path.stem.removeprefix("resolved-") for path in self.root.glob("resolved-*.json"))
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def failure(self, attempt: int, incarnation: str) -> Path:
        """Left by a worker whose error trying again cannot cure; that of a zombie names its own attempt."""
        return self.root / f"failure-{attempt}-{incarnation}.json"

    def places(self, attempt: int, incarnation: str) -> Path:
        """On which node of a cluster each rank was, in the pod of its driver."""
        return self.root / f"places-{attempt}-{incarnation}.txt"

    def stacks(self, attempt: int, incarnation: str, rank: int) -> Path:
        """What a rank that stalled was doing."""
        return self.root / "logs" / f"stacks-attempt-{attempt}-{incarnation}-rank-{rank}.txt"

    def seen(self, attempt: int) -> Path:
        """How an attempt has ended by the word of those who watched it, where they know better than its driver."""
        return self.root / f"seen-{attempt}.json"

    def ray_job(self, attempt: int) -> Path:
        """What a cluster has made of an attempt; not there if it ran on this machine. See `launch.cluster.memory`."""
        return self.root / f"rayjob-{attempt}.json"

    def log(self, attempt: int) -> Path:
        """Everything that the driver and its workers print."""
        return self.root / "logs" / f"attempt-{attempt}.log"

    def delivered(self, attempt: int) -> Path:
        """In a cluster: which incarnation writes that log, and where it begins there."""
        return self.root / "logs" / f"delivered-{attempt}.json"


@dataclass(frozen=True)
class Told:
    """What a cluster says to one of the questions that conditions answer."""

    yes: bool
    reason: Reason
    message: str = ""


@dataclass(frozen=True)
class Sight:
    """What a launcher sees of an attempt that was written down."""

    alive: bool
    begun: bool = True
    """Whether its driver was ever started."""
    left: bool = False
    """The driver is gone, and something that it started is not."""
    began: float | None = None
    """Unix time at which the driver was started, or in a cluster at which its first pod had a node, where that is
    known."""
    ordered: str | None = None
    """Why it was told to stop."""
    deadline: float | None = None
    """Unix time by which it must have ended since it was told so."""
    verdict: Verdict | None = None
    """How it has ended if it left no last word, by what was seen of it."""

    # In a cluster only:
    holding: bool | None = None
    """Whether it has machines, which are paid for; None: as long as it is alive."""
    let_go: float | None = None
    """Unix time at which it let go of the last machine, where that is known."""
    incarnation: str | None = None
    """The Ray cluster that it became; None: the one that was written down."""
    up: bool = True
    """Whether its driver has all that it needs to begin: what comes late from now on, is late."""
    idle: bool = False
    """Whether its driver cannot have begun yet, so that nothing is lost if it is ended at once."""
    admitted: Told | None = None
    """Whether it may have machines."""
    running: Told | None = None
    """What is in the way of its workers, as long as they say nothing themselves."""

    @property
    def paid(self) -> bool:
        """Whether time passes that costs money."""
        return self.alive if self.holding is None else self.holding


class Launcher(Protocol):
    """Runs attempts; on this machine (`launch.local`), or in a cluster. No method waits for long.

    An attempt is written down in the run's folder (`RunFolder.resolved`) before it is started, with the GPUs that it is
    given. Invariant: at every
    moment, whoever is killed in between, at most one driver of a run lives, and `look` does not miss it.
    """

    def look(self, folder: RunFolder, attempt: int) -> Sight:
        """At the newest attempt."""
        ...

    def start(self, folder: RunFolder, attempt: int) -> None:
        """Conflict if a driver of the run lives."""
        ...

    def order_stop(self, folder: RunFolder, reason: str, grace_seconds: float) -> None:
        """Ask the driver to write a final checkpoint and end. OSError if it cannot be told now."""
        ...

    def kill(self, folder: RunFolder, attempt: int) -> None:
        """End the driver at once with everything that it started; nothing is saved. Call it until `look` says so."""
        ...

    def remove(self, folder: RunFolder) -> None:
        """All files of a run of which nothing lives: out of the way now, gone a while later. OSError if they stay."""
        ...

    def sweep(self) -> None:
        """Let go what is left of runs that an earlier process was removing when it ended."""
        ...

    def capacity(self) -> Capacity | None:
        """What there is to share out. None: that is somebody else's task, as a cluster's; attempts run on other
        machines then, and `look` tells when they hold these."""
        ...

    def check(self, job: TrainingJob, resolved: Resolved) -> None:
        """InvalidJob if attempts like that can never run here."""
        ...

    def obstacle(self, job: TrainingJob) -> Told | None:
        """What keeps any attempt of the job from being started now."""
        ...

    def gpus(self) -> tuple[str, ...]:
        """Names of the GPUs among that, the first to be given first; see `launch.devices`."""
        ...

    def describe(self, folder: RunFolder, attempt: int) -> str:
        """What the processes of a driver that hangs are doing, in a few words."""
        ...
