"""A `KubeStage` with nothing left out: jobs are TrainingJobs of the API server, and MLflow is a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.controller.mirror_main import Mirrors
from orchestrator.controller.service import Controller
from orchestrator.kube.again import Anybody
from orchestrator.kube.client import Kube
from orchestrator.kube.resources import TRAINING_JOBS, Json
from orchestrator.kube.watch import Rhythm
from orchestrator.kube.writes import Writer
from orchestrator.launch.cluster import KubeLauncher
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob
from orchestrator.status import JobStatus
from orchestrator.store.base import JobStore
from orchestrator.store.kube import KubeStore
from orchestrator.store.resource import stored_of
from orchestrator.tracking.client import connect
from support.kube_mortal import MortalKube
from support.kube_stage import QUICK, KubeStage, wait
from support.kuberay_player import Player
from support.mirrored import runs_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

PRICES = """
- {accelerator: cpu, priceClass: on-demand, amount: "0.05", currency: USD,
   unit: cpu-hour, source: test, date: 2026-01-01}
"""
_MONEY = ("cost/", "ledger/")
_RHYTHM = Rhythm(first_wait=0.05, longest_wait=0.3)


def leave_a_table(folder: Path, *_: object, **__: object) -> None:
    """For `write_artifacts`: the file by whose age it is known that there is nothing newer to be drawn."""
    folder.mkdir(exist_ok=True)
    (folder / "metrics.csv").write_text("step\n")


class InPlace:
    """`MirrorProcess` without the process, which adds a pipe and an interpreter: what that would do when it comes up or
    hears of a run is done at once, by the same code. It knows nothing of earlier ones, as a new process does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._mirrors: Mirrors | None = None
        self._waiting: dict[str, None] = {}

    def start(self) -> None:
        if self._mirrors is None:
            self._mirrors = Mirrors(self._settings)
            self._waiting |= dict.fromkeys(self._mirrors.leftovers())
        for one in list(self._waiting):
            if self._mirrors.sync(one):
                del self._waiting[one]

    def tell(self, name: str) -> None:
        self._waiting[name] = None
        self.start()

    def finish(self, done: Callable[[], bool], seconds: float, give_up: Callable[[], bool]) -> bool:
        return done()

    def close(self) -> None: ...


class WholeStage(KubeStage):
    """One job at a time. People and the player have their own way to the server, that never fails."""

    def __init__(
        self, home: Path, direct: Kube, store: JobStore, player: Player, way: Callable[[], MortalKube], tracking: str
    ) -> None:
        """`store`: that of people; `way`: of the next controller; `tracking`: URI of MLflow."""
        super().__init__(home, direct, player, store=store)
        prices = self.settings.home / "prices.yaml"
        prices.parent.mkdir(parents=True, exist_ok=True)
        prices.write_text(PRICES)
        found = {"FATHOM_HOME": str(home), "FATHOM_PRICES": str(prices), "MLFLOW_TRACKING_URI": tracking}
        self.settings = Settings.load(found)
        self.way, self.tracking = way, tracking
        self.mortal: MortalKube

    @contextmanager
    def service(self, holder: Any = None) -> Iterator[Controller]:  # noqa: ANN401 - who says whether we may write
        """As `cli.leading` puts one together. `Killed`, if it dies."""
        kube = self.mortal = self.way()
        writer, namespaces = Writer(kube, holder or Anybody(), patience=QUICK), [self.player.namespace]
        store = KubeStore(kube, writer, namespaces=namespaces, rhythm=_RHYTHM)

        def job_of(uid: str) -> TrainingJob | None:
            found = store.by_uid(uid)
            return None if found is None else found.wish.job

        self.launcher = KubeLauncher(
            kube, writer, self.settings, self.cluster, job_of,
            namespaces=namespaces, say=self.said.append, rhythm=_RHYTHM,
        )  # fmt: skip
        with ExitStack() as held:
            held.callback(kube.close)
            for part in (store, self.launcher):
                held.callback(part.stop)
            self.launcher.lead()
            self.launcher.follow()
            store.start()
            mirror: Any = InPlace(self.settings)
            self.controller = Controller(store, self.launcher, self.settings, self.said.append, mirror=mirror)
            held.callback(self.controller.close)
            wait(lambda: kube.dead or (store.synced and self.launcher.synced), lambda: self.launcher.problem)
            kube.live()
            self.launcher.sweep()
            yield self.controller

    @property
    def resource(self) -> Json:
        """The TrainingJob, as the server has it now."""
        return self.kube.get(TRAINING_JOBS.at(self.job.namespace, self.job.name))

    @property
    def status(self) -> JobStatus:
        return stored_of(self.resource).status

    # ------------------------------------------------------------------ what must be the same each time
    def kept(self) -> tuple[object, ...]:
        """Of the TrainingJob, without times, addresses and words."""
        found = self.resource
        metadata, status = found["metadata"], found["status"]
        return (
            status["phase"],
            [(one["type"], one["status"], one["reason"], one["observedGeneration"]) for one in status["conditions"]],
            status["attemptCount"],
            [
                (one["number"], one.get("outcome"), one["rayJob"].replace(self.job.name, "JOB"))
                for one in status["attempts"]
            ],
            status.get("cost"),
            status["observedGeneration"] - metadata["generation"],
            status.get("observedWishes"),
            metadata.get("finalizers"),
            sorted(metadata.get("annotations") or {}),
            "runId" in (status.get("mlflow") or {}),
        )

    def tracked(self) -> list[tuple[object, ...]]:
        """All runs that MLflow has of the job, the parent first, with their money."""
        client: MlflowClient = connect(self.tracking)
        found = []
        for run in runs_of(client, self.job.name):
            money = {name: value for name, value in run.data.metrics.items() if name.startswith(_MONEY)}
            found.append((self._blank(run.info.run_name), run.info.status, run.info.end_time is not None, money))
        return found

    def _blank(self, name: str) -> str:
        """The same, whatever the job is called."""
        return name.replace(self.job.name, "JOB")
