"""Brings MLflow to what it shall show: one run for a TrainingJob, a child for each attempt, every step once.

Called by `controller.sync`, in whatever process and thread; workers never come here. Each thing that is missing is
sent, and then written down in `Reached`. Any call may fail or be cut off at any point, and the next one goes on: what
was sent without being written down is sent again, and does no harm (see `client` and `points`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.tracking import client as requests
from orchestrator.tracking import names, view
from orchestrator.tracking.describe import run_tags
from orchestrator.tracking.desired import Attempt, Desired, Outcome
from orchestrator.tracking.points import final_points
from orchestrator.tracking.reached import Reached, without_credentials
from orchestrator.tracking.spool import Spool, source

if TYPE_CHECKING:
    from mlflow import MlflowClient

_STATUS: dict[Outcome, str] = {"succeeded": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MadeWay(Exception):
    """The caller has something better to do; the next call goes on."""


@dataclass(frozen=True)
class Reference:
    """Where the job is to be found in MLflow; `url` only where a server shows it."""

    experiment_id: str
    run_id: str
    url: str | None


def reference(reached: Reached) -> Reference | None:
    """The parent run, once it exists."""
    if reached.experiment_id is None or reached.parent is None:
        return None
    url = None
    if reached.target.startswith(("http://", "https://")):
        url = f"{reached.target.rstrip('/')}/#/experiments/{reached.experiment_id}/runs/{reached.parent}"
    return Reference(reached.experiment_id, reached.parent, url)


def target(uri: str) -> str:
    """An MLflow by its URI, as `Reached` names it."""
    return without_credentials(uri)


@dataclass
class Mirroring:
    """One call: a client, what is wanted, what is reached."""

    client: MlflowClient
    uri: str
    wanted: Desired
    reached: Reached
    spool: Spool
    save: Callable[[], None]
    give_way: Callable[[], bool]

    def reach(self) -> None:
        """Send all that is missing; raises whatever mlflow raises, and MadeWay."""
        self.spool.fill(self.wanted.events, self.reached)
        runs = self._runs()
        for run, attempt in runs.items():
            self._begin(run, attempt or self.wanted.attempts[0])
        self._send_events()
        parent = self.reached.parent
        assert parent is not None
        self._send_final(parent)
        for run, attempt in runs.items():
            self._send_tags(run, attempt)
        self._end(runs)
        self._send_artifacts(parent)  # last: a store of files that fails must not keep the run open

    # ------------------------------------------------------------------ runs
    def _identity(self, attempt: Attempt | None) -> dict[str, str]:
        """Tags by which a run is found again."""
        found = {names.TAG_UID: self.wanted.uid, names.TAG_ROLE: "job" if attempt is None else "attempt"}
        return found if attempt is None else found | {names.TAG_ATTEMPT: str(attempt.number)}

    def _runs(self) -> dict[str, Attempt | None]:
        """All runs by id, the parent first; those that are missing are made."""
        reached, wanted = self.reached, self.wanted
        if reached.experiment_id is None:
            tags = view.experiment_tags(wanted.currency)
            reached.experiment_id = requests.experiment(self.client, wanted.experiment, self.uri, tags)
            self.save()
        if reached.parent is None:
            reached.parent = self._run(None)
            self.save()
        runs: dict[str, Attempt | None] = {reached.parent: None}
        for attempt in wanted.attempts:
            if attempt.number not in reached.children:
                reached.children[attempt.number] = self._run(attempt)
                self.save()
            runs[reached.children[attempt.number]] = attempt
        return runs

    def _run(self, attempt: Attempt | None) -> str:
        reached, first = self.reached, self.wanted.attempts[0]
        assert reached.experiment_id is not None
        name = self.wanted.name if attempt is None else f"{self.wanted.name} #{attempt.number}"
        parent = None if attempt is None else reached.parent
        started = round((attempt or first).started * 1000)
        return requests.the_run(self.client, reached.experiment_id, self._identity(attempt), parent, name, started)

    def _begin(self, run: str, attempt: Attempt) -> None:
        """The parent has the parameters of its first attempt."""
        if run not in self.reached.described:
            requests.describe(self.client, run, attempt.params, self.wanted.datasets)
            self.reached.described.add(run)
            self.save()

    def _end(self, runs: dict[str, Attempt | None]) -> None:
        """Status and end of each run, children first: an ended parent has no running child."""
        reached, last = self.reached, self.wanted.attempts[-1]
        changed = False
        for run, attempt in reversed(runs.items()):
            outcome = self.wanted.outcome if attempt is None else attempt.outcome
            at = round(((attempt or last).ended or 0.0) * 1000)
            status = "RUNNING" if outcome is None else f"{_STATUS[outcome]} {at}"
            if reached.status.get(run) == status:
                continue
            if outcome is None:
                self.client.update_run(run, status="RUNNING")
            else:
                self.client.set_terminated(run, status=_STATUS[outcome], end_time=at)
            reached.status[run] = status
            changed = True
        if changed:
            if self.wanted.outcome is not None:
                self._remove_surplus(set(runs))
            self.save()

    def _remove_surplus(self, own: set[str]) -> None:
        """Runs that a server made after we had ceased to wait for its answer."""
        assert self.reached.experiment_id is not None
        for run in requests.find_runs(self.client, self.reached.experiment_id, {names.TAG_UID: self.wanted.uid}):
            if run.info.run_id not in own:
                self.client.delete_run(run.info.run_id)

    # ------------------------------------------------------------------ what they hold
    def _send_events(self) -> None:
        reached = self.reached
        while some := self.spool.next(reached):
            if self.give_way():
                raise MadeWay
            for number, run in [(None, reached.parent), *reached.children.items()]:
                points = [point for _, found in some for point in found.get(number, [])]
                if run is not None and points:
                    requests.log_points(self.client, run, points)
            for event, _ in some:
                reached.seen[source(event)] = max(event.seq, reached.seen.get(source(event), 0))
            self.save()

    def _send_artifacts(self, parent: str) -> None:
        """Files whose content is not there yet; MLflow replaces a file of the same name."""
        folder = self.wanted.artifacts
        for path in sorted(folder.rglob("*")) if folder.exists() else []:
            name = path.relative_to(folder).as_posix()
            if name.startswith(".") or "/." in name or not path.is_file():
                continue
            digest = _digest(path)
            if self.reached.artifacts.get(name) == digest:
                continue
            inside = path.parent.relative_to(folder).as_posix()
            self.client.log_artifact(parent, str(path), None if inside == "." else inside)
            self.reached.artifacts[name] = digest
            self.save()

    def _send_final(self, parent: str) -> None:
        last, ledger = self.wanted.attempts[-1].number, self.wanted.ledger
        if ledger is None or self.reached.final >= last:
            return
        requests.log_points(self.client, parent, final_points(ledger, self.spool.fold.best))
        self.reached.final = last
        self.save()

    def _send_tags(self, run: str, attempt: Attempt | None) -> None:
        fold = self.spool.fold
        wanted = run_tags(self.wanted, attempt, fold.newest, fold.best)
        there = self.reached.tags.get(run, {})
        missing = {key: value for key, value in wanted.items() if there.get(key) != value}
        if missing:
            requests.set_tags(self.client, run, missing)
            self.reached.tags[run] = there | missing
            self.save()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
