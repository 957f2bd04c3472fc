"""The API asked what its OpenAPI document promises: cases that schemathesis makes, of which most name what is there.

A random name names nothing, and a random job trains on nothing: nearly all answers would be 404 and 422, and say
little. So most cases are led to jobs, tokens and documents that there are; the others stay as they were made.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.python import asgi
from starlette.types import ASGIApp

from orchestrator.api.streams import Streams
from orchestrator.cost.timeline import Held
from orchestrator.status import JobStatus
from orchestrator.status import Phase as JobPhase
from orchestrator.store.access import Role
from support.service import Runs, story

T = 1_750_000_000.0
_LED_OF_TEN = 8
_WORKED_ON = {"patchJob", "deleteJob", "cancelJob", "suspendJob", "resumeJob"}
_EXCLUDED = ["positive_data_acceptance"]
"""A form can be right and the job wrong: no data, too dear, a name that is taken."""
_SETTINGS = settings(
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@dataclass
class World:
    """A service with two finished jobs to read, and one to work on that is made anew when it is used up."""

    runs: Runs
    app: ASGIApp
    """That of `runs`, or what a test has put before it."""
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    answers: dict[str, Counter[int]] = field(default_factory=dict)
    """Statuses by operation."""

    @classmethod
    def make(cls, home: Path, wrapped: Callable[[ASGIApp], ASGIApp] = lambda app: app) -> World:
        runs = Runs(home, streams=Streams(longest=0.0))
        world = cls(runs, wrapped(runs.app))
        for name in ("done", "other"):
            stored = runs.job(name)
            events = story(1, T, 6, "failed") + story(2, T + 20, 9)
            runs.run(stored, events, [Held(1, T, T + 9), Held(2, T + 20, T + 31)], log="one\ntwo\nthree\n")
            runs.end(stored)
        return world

    def schema(self) -> Any:  # noqa: ANN401 - schemathesis' own class is not exported
        found = schemathesis.openapi.from_dict(self.runs.app.openapi())
        found.app = self.app
        found.config.checks.update(excluded_check_names=_EXCLUDED)
        found.config.generation.update(with_security_parameters=False)  # the headers of the call have the token
        return found

    @property
    def headers(self) -> dict[str, str]:
        return {"Host": "localhost", "Authorization": f"Bearer {self.runs.secrets[Role.ADMIN]}"}

    def name(self, prefix: str) -> str:
        return f"{prefix}-{next(self.numbers)}"

    # ------------------------------------------------------------------ leading cases

    def lead(self, case: Case) -> None:
        """To what is there."""
        operation = case.operation.definition.raw["operationId"]
        if "namespace" in case.path_parameters:
            name = self._job() if operation in _WORKED_ON else "done"
            case.path_parameters.update(namespace="default", name=name)
        if operation == "revokeToken":
            case.path_parameters["name"] = self._token()
        for header in ("if-match", "idempotency-key", "last-event-id"):
            case.headers.pop(header, None)
        for parameter, values in self._known(operation).items():
            if parameter in case.query:
                case.query[parameter] = values
        if isinstance(case.body, dict):
            self.lead_body(operation, case.body)

    def _known(self, operation: str) -> dict[str, Any]:
        if operation == "compareJobs":
            return {"job": ["default/done", "default/other"], "metric": "train/loss"}
        return {"cursor": "", "after": "", "attempt": 1, "namespace": "default"}

    def lead_body(self, operation: str, body: dict[str, Any]) -> None:
        if operation in ("createJob", "createPlan"):
            given = body.get("job", {}).get("spec", {})
            kept = {name: given[name] for name in ("budget", "retry", "suspend") if given.get(name)}
            body["job"] = self.runs.document(self.name("job"), **kept)
            body.pop("plan", None)
        elif operation == "createToken":
            body["name"] = self.name("token")
            if body.get("role") == "admin":
                body.pop("team", None)
        elif operation == "patchJob":
            spec = body["spec"] if isinstance(body.get("spec"), dict) else {}
            known = {"suspend", "retry"} & set(spec)
            body.clear()
            body["spec"] = {name: spec[name] for name in known} | {"budget": {"limit": "7.50"}}

    def _job(self) -> str:
        """One that goes on."""
        stored = self.runs.job(self.name("live"))
        self.runs.store.set_status(stored.uid, JobStatus(phase=JobPhase.RUNNING, observed_generation=1))
        return stored.name

    def _token(self) -> str:
        return self.runs.access.make(self.name("one"), Role.READER, by="test")[0].name

    # ------------------------------------------------------------------ the same world again

    def snapshot(self) -> sqlite3.Connection:
        """The database as it is now."""
        copy = sqlite3.connect(":memory:", check_same_thread=False)
        with closing(sqlite3.connect(self.runs.home / "fathom.db")) as source:
            source.backup(copy)
        return copy

    def restore(self, snapshot: sqlite3.Connection) -> None:
        """All that was made since is gone, and names are given anew."""
        with closing(sqlite3.connect(self.runs.home / "fathom.db")) as target:
            snapshot.backup(target)
        self.numbers = itertools.count()

    # ------------------------------------------------------------------ asking

    def ask(self, label: str, *, examples: int, mode: GenerationMode = GenerationMode.POSITIVE) -> None:
        """An operation so many times; a FailureGroup for what it does not keep to."""
        operation = next(
            one for one in (found.ok() for found in self.schema().get_all_operations()) if _id(one) == label
        )
        counted = self.answers.setdefault(label, Counter())
        with asgi.get_client(self.app, max_stream_events=100) as session:

            @settings(_SETTINGS, max_examples=examples)
            @given(case=operation.as_strategy(generation_mode=mode), led=st.integers(0, 10**6))
            def probe(case: Case, led: int) -> None:
                if mode is GenerationMode.POSITIVE and led % 10 < _LED_OF_TEN:
                    self.lead(case)
                answer = case.call_and_validate(session=session, headers=self.headers)
                counted[answer.status_code] += 1

            probe()

    def kept(self, label: str) -> float:
        """The share of answers of success."""
        counted = self.answers[label]
        return sum(number for status, number in counted.items() if status < 300) / counted.total()


def _id(operation: Any) -> str:  # noqa: ANN401 - schemathesis' own
    found: str = operation.definition.raw["operationId"]
    return found


def operations(world: World) -> dict[str, bool]:
    """All of them, and whether there is anything in a request that could be wrong."""
    found = [one.ok() for one in world.schema().get_all_operations()]
    return {_id(one): bool(one.body or one.query or one.path_parameters or one.headers) for one in found}


def stories(world: World, *, examples: int, steps: int, forgets: bool = True) -> Counter[tuple[str, int]]:
    """Operations one after the other, on what those before have made; -> how often each was answered how.

    A FailureGroup for what the API does not keep to. `forgets`: whether a controller forgets what is deleted.
    """
    machine: Any = world.schema().as_state_machine()
    counted: Counter[tuple[str, int]] = Counter()

    beginning = world.snapshot()

    class Story(machine):  # type: ignore[misc]
        def setup(self) -> None:
            world.restore(beginning)  # hypothesis tells a story again, and wants the same answers

        def get_call_kwargs(self, case: Case) -> dict[str, Any]:
            return {"headers": world.headers}

        def before_call(self, case: Case) -> None:
            operation = _id(case.operation)
            if case.meta is not None and case.meta.generation.mode is GenerationMode.NEGATIVE:
                return  # it shall be wrong
            if operation in ("createJob", "createPlan", "createToken") and isinstance(case.body, dict):
                world.lead_body(operation, case.body)
            case.query.pop("dryRun", None)  # it makes nothing, and schemathesis would look for it
            case.headers.pop("if-match", None)

        def after_call(self, response: Any, case: Case) -> None:  # noqa: ANN401
            super().after_call(response, case)
            for stored in world.runs.store.open_jobs() if forgets else ():
                if stored.wish.deleted_at is not None:
                    world.runs.store.remove(stored.uid)

        def validate_response(self, response: Any, case: Case, **kwargs: Any) -> None:  # noqa: ANN401
            counted[_id(case.operation), response.status_code] += 1
            super().validate_response(response, case, **kwargs)

    with closing(beginning):
        Story.run(settings=settings(_SETTINGS, max_examples=examples, stateful_step_count=steps))
    return counted
