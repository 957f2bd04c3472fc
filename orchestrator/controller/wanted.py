"""What MLflow shall show of a run, from the files of its folder and nothing else."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache

from model.dataset import DatasetDamaged, DatasetManifest, DatasetMissing, read_manifest
from model.files import local_path
from orchestrator.controller.expected import expected
from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.controller.report import data_tags, dataset_refs, run_parameters, training_flops
from orchestrator.launch.resolve import Resolved, read_resolved
from orchestrator.spec import Data
from orchestrator.tracking.desired import Attempt, DatasetRef, Desired


class Wanted:
    """Of one run; keeps what never changes."""

    def __init__(self, record: Record, history: History) -> None:
        self._record, self._history = record, history
        self._resolved: dict[int, Resolved] = {}
        self._plain: dict[int, Attempt] = {}
        """Attempts as they were decided."""

    def now(self, *, live: bool) -> Desired:
        """All of it; `live`: somebody goes on with the job, so that it has no outcome yet."""
        record, history, last = self._record, self._history, self._read_resolved()
        newest = self._resolved[last]
        attempts = tuple(self._attempt(n, live=live and n == last) for n in sorted(self._resolved))
        tags, datasets = _data(record.job.spec.data, newest.recipe.data)
        return Desired(
            name=record.job.metadata.name,
            namespace=record.job.metadata.namespace,
            uid=record.uid,
            experiment=newest.tracking.experiment,
            currency=newest.rate.currency,
            attempts=attempts,
            events=history.events,
            spent_at=history.spent_at,
            artifacts=record.folder.artifacts,
            tags=tags | newest.tracking.tags,
            datasets=datasets,
            budget="" if history.limit is None else f"{history.limit} {newest.rate.currency}",
            outcome=None if live else attempts[-1].outcome,
            ledger=history.ledger(newest) if not live and history.has_ended(last) else None,
        )

    def flops_per_token(self, attempt: int) -> float | None:
        """Of an attempt's model; None if nothing was written of such an attempt."""
        return self._plain[attempt].flops_per_token if attempt in self._plain else None

    def _read_resolved(self) -> int:
        """-> the newest attempt."""
        last = self._record.folder.last_attempt()
        for number in range(1, last + 1):
            path = self._record.folder.resolved(number)
            if number not in self._resolved and path.exists():
                found = self._resolved[number] = read_resolved(path)
                flops = training_flops(found.recipe)
                accelerator = self._record.job.spec.compute.accelerator
                parameters = run_parameters(found, accelerator, expected(self._record.folder))
                self._plain[number] = Attempt(number, parameters, flops, self._began(number))
        return last

    def _began(self, number: int) -> float:
        held = [one.start for one in self._history.held if one.attempt == number]
        said = [event.time for event in self._history.events if event.attempt == number][:1]
        return min([*held, *said], default=time.time())

    def _attempt(self, number: int, *, live: bool) -> Attempt:
        """One that is over without a word failed when it was last heard of."""
        plain, end = self._plain[number], self._history.end_of(number)
        if end is not None:
            failure = f"{end.failure_class}: {end.message}" if end.failure_class else None
            ended = max(end.time, plain.started)
            return replace(plain, outcome=end.outcome, ended=ended, failure=failure)
        if live:
            return plain
        ended = self._history.last_word(number) or plain.started
        return replace(plain, outcome="failed", ended=ended, failure="driver-lost: it ended without a word")


def _data(data: Data, uri: str) -> tuple[dict[str, str], tuple[DatasetRef, ...]]:
    """Tags and inputs; none where the data has been removed since: the rest of the run is shown all the same."""
    manifest = _manifest(uri)
    return ({}, ()) if manifest is None else (data_tags(data, manifest), dataset_refs(uri, manifest))


@lru_cache(maxsize=16)
def _manifest(uri: str) -> DatasetManifest | None:
    if local_path(uri) is None:
        return None  # a claim, say: only the pods can read it
    try:
        return read_manifest(uri)
    except (DatasetMissing, DatasetDamaged, OSError):
        return None
