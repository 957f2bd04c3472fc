"""What the client gives back: frozen values read from the service's JSON. What a newer service adds is ignored."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, Literal

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError

from orchestrator.errors import Unavailable, UsageError
from orchestrator.plan.forecast import Plan
from orchestrator.schema import Part
from orchestrator.spec import JobSpec, TrainingJob
from orchestrator.status import Choice, JobStatus, Phase

_NAME = re.compile(r"(?:([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)/)?([a-z](?:[-a-z0-9]{0,38}[a-z0-9])?)")


class Given(Part):
    """A piece of an answer."""

    model_config = ConfigDict(extra="ignore")


class JobMetadata(Given):
    """What the service knows of a job beside its wish."""

    name: str
    namespace: str
    """The team."""
    uid: str
    """No other job ever has it."""
    generation: int
    """Changes of the wish, from 1."""
    version: int
    """Changes of anything, from 1."""
    created_at: AwareDatetime
    created_by: str
    """Name of the token that submitted it."""
    folder: str | None = None
    """Name of the run's folder in the service's home."""
    cancelled_at: AwareDatetime | None = None
    deleted_at: AwareDatetime | None = None


class Job(Given):
    """One job as the service saw it when it answered."""

    api_version: str
    kind: str
    metadata: JobMetadata
    spec: JobSpec
    status: JobStatus

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def team(self) -> str:
        """Its namespace."""
        return self.metadata.namespace

    @property
    def key(self) -> str:
        """team/name, which every verb takes."""
        return f"{self.team}/{self.name}"

    @property
    def phase(self) -> Phase:
        return self.status.phase

    @property
    def etag(self) -> str:
        """What `If-Match` is compared with."""
        return f'"{self.metadata.uid}-{self.metadata.generation}"'

    def wish(self) -> TrainingJob:
        """As it could be submitted again."""
        named = {"name": self.name, "namespace": self.team}
        return TrainingJob.model_validate({"metadata": named, "spec": self.spec.document()}, by_alias=True)


class Price(Given):
    """What an hour of the whole job costs."""

    per_hour: str
    currency: str
    source: str = ""


class PlannedJob(Given):
    """A plan that the service made and signed; `apply` of it is refused if prices or capacity changed meanwhile."""

    id: str
    expires_at: AwareDatetime
    job: TrainingJob
    """With what was given only."""
    plan: dict[str, Any] | None = None
    """The forecast as JSON; None where there is none for these machines yet."""
    choices: list[Choice] = Field(default=[])
    """What was chosen for absent fields."""
    price: Price | None = None
    fits: bool = True
    """Whether the service has machines for it."""
    messages: list[str] = Field(default=[])
    """What a person should know before submitting."""

    @cached_property
    def forecast(self) -> Plan | None:
        """The forecast, typed; Unavailable where this client knows its form no more."""
        if self.plan is None:
            return None
        try:
            return Plan.model_validate(self.plan, by_alias=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise Unavailable(
                f"the service's forecast is not understood ({where}: {first['msg']}): are client and service of the "
                "same version?"
            ) from None


class Me(Given):
    """Who the token is."""

    name: str
    role: Literal["reader", "runner", "admin"] | None = None
    """None: in a cluster, where each namespace has its own rights."""
    team: str | None = None
    """None: of all teams."""


class Token(Given):
    """A token as the service lists it; its secret is known once only, when it was made."""

    name: str
    role: Literal["reader", "runner", "admin"]
    team: str | None = None
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    secret: str | None = Field(None, repr=False)
    """Only in the answer that makes the token."""


JobName = str | Job
"""`name`, `team/name`, or a job."""


def split_name(name: JobName) -> tuple[str | None, str]:
    """-> team (None where it is not said) and name; UsageError for what no job can be called."""
    if isinstance(name, Job):
        return name.team, name.name
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(
            f"{name!r} is not the name of a job: write NAME or TEAM/NAME in lower-case letters, digits and '-', "
            "e.g. mini or vision/mini"
        )
    return match[1], match[2]
