"""The API asked what its OpenAPI document promises: cases that schemathesis makes, of which most name what is there.

A random name names nothing, and a random job trains on nothing: nearly all answers would be 404 and 422, and say
little. So most cases are led to jobs, tokens and documents that there are; the others stay as they were made.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.python import asgi
from schemathesis.specs.openapi.checks import positive_data_acceptance
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
EXCLUDED = [positive_data_acceptance]
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
            self._lead_body(operation, case.body)

    def _known(self, operation: str) -> dict[str, Any]:
        if operation == "compareJobs":
            return {"job": ["default/done", "default/other"], "metric": "train/loss"}
        return {"cursor": "", "after": "", "attempt": 1, "namespace": "default"}

    def _lead_body(self, operation: str, body: dict[str, Any]) -> None:
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

    # ------------------------------------------------------------------ asking

    def ask(self, label: str, *, examples: int, mode: GenerationMode = GenerationMode.POSITIVE) -> None:
        """An operation so many times; AssertionError (a FailureGroup) for what it does not keep to."""
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
                answer = case.call_and_validate(session=session, headers=self.headers, excluded_checks=EXCLUDED)
                counted[answer.status_code] += 1

            probe()

    def kept(self, label: str) -> float:
        """The share of answers of success."""
        counted = self.answers[label]
        return sum(number for status, number in counted.items() if status < 300) / counted.total()


def _id(operation: Any) -> str:  # noqa: ANN401 - schemathesis' own
    found: str = operation.definition.raw["operationId"]
    return found


def operations(world: World) -> list[str]:
    return [_id(found.ok()) for found in world.schema().get_all_operations()]
