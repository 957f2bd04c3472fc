"""The form of requests and answers about jobs, for FastAPI and the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, ConfigDict, Field, GetJsonSchemaHandler, RootModel, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from orchestrator.api.rights import Principal
from orchestrator.jobfile import make_job
from orchestrator.schema import Money, Part
from orchestrator.spec import JobSpec, Metadata, TrainingJob
from orchestrator.spec_model import SpecPart
from orchestrator.status import Choice, JobStatus

EXAMPLE: dict[str, Any] = {
    "apiVersion": "fathom.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {"name": "mini"},
    "spec": {
        "model": {"preset": "mini"},
        "data": {"source": "runs/demo-data", "sequenceLength": 256},
        "training": {"tokens": 450_000, "globalBatchTokens": 4096},
        "compute": {"accelerator": "cpu", "workers": 2},
        "budget": {"limit": "1.00"},
    },
}


class JobInput(SpecPart):
    """A TrainingJob as a person writes it; what is absent is chosen before launch."""

    api_version: Literal["fathom.dev/v1alpha1"] = "fathom.dev/v1alpha1"
    """Version of this form."""
    kind: Literal["TrainingJob"] = "TrainingJob"
    """What this document is."""
    metadata: Metadata
    """What the job is called, and whose it is; a team's token fills in its own namespace."""
    spec: JobSpec
    """What to train, on what, for how much."""

    @model_validator(mode="before")
    @classmethod
    def _in_words(cls, value: Any) -> Any:  # noqa: ANN401 - any JSON value
        """InvalidJob, in the same words as for a job file, rather than pydantic's."""
        if isinstance(value, dict):
            make_job(dict(value))
        return value

    def job(self, caller: Principal) -> TrainingJob:
        """Of the caller's team where it names none."""
        metadata = self.metadata
        if caller.team is not None and "namespace" not in metadata.model_fields_set:
            metadata = metadata.model_copy(update={"namespace": caller.team})
        return TrainingJob(metadata=metadata, spec=self.spec)


class PlanRequest(SpecPart):
    """What is to be planned."""

    job: JobInput = Field(examples=[EXAMPLE])


class JobRequest(SpecPart):
    """What is to be run."""

    job: JobInput = Field(examples=[EXAMPLE])
    plan: str | None = Field(None, max_length=2000)
    """Id of a plan of this job: it is refused if what was planned has changed."""


class PriceDocument(Part):
    """What an hour of the whole job costs."""

    per_hour: Money
    currency: str
    source: str
    """Where the price comes from, with its date."""


class PlanDocument(Part):
    """A plan, signed."""

    id: str
    """To submit the job with; counts until `expiresAt`."""
    expires_at: AwareDatetime
    job: dict[str, Any]
    """The document with what was given."""
    plan: dict[str, Any] | None
    """The forecast, as `fathom plan -o json` prints it; absent where none can be made."""
    choices: list[Choice]
    """Everything that the job leaves open, and what is chosen for it."""
    price: PriceDocument
    fits: bool
    """Whether this machine could ever run it."""
    messages: list[str]
    """What a person should know before submitting."""


class JobMetadata(Part):
    """Who the job is."""

    name: str
    namespace: str
    """The team."""
    uid: str
    """No other job ever has it."""
    generation: int = Field(ge=1)
    """Changes of what is wished, from 1."""
    version: int = Field(ge=1)
    """Changes of anything, from 1."""
    created_at: AwareDatetime
    created_by: str
    """Name of the token that submitted it."""
    folder: str
    """Name of the run's folder in the home of the service."""
    cancelled_at: AwareDatetime | None = None
    """Since when it is ordered to end."""
    deleted_at: AwareDatetime | None = None
    """Since when it is to be forgotten."""


class JobDocument(Part):
    """A job as the service has it."""

    api_version: Literal["fathom.dev/v1alpha1"]
    kind: Literal["TrainingJob"]
    metadata: JobMetadata
    spec: JobSpec
    status: JobStatus


class JobList(Part):
    """Newest first."""

    items: list[JobDocument]
    next: str
    """Cursor of the next page; empty at the end."""


class PatchPart(Part):
    """A piece of a merge patch: what it does not say stays as it is."""

    model_config = ConfigDict(extra="allow")


class PatchedBudget(PatchPart):
    """The money."""

    limit: Money | None = None
    """Not below what is spent."""


class PatchedQueue(PatchPart):
    """Admission."""

    priority_class: str | None = None
    """Until the job is admitted."""


class PatchedTracking(PatchPart):
    """MLflow."""

    tags: dict[str, str | None] | None = None
    """Tags of the run; null removes one."""


class PatchedRetry(PatchPart):
    """What happens when something breaks."""

    max_attempts: int | None = Field(None, ge=1, le=1000)
    """Attempts at most."""
    stop_after_attempts_without_progress: int | None = Field(None, ge=1, le=1000)
    """Attempts that may follow each other without a new checkpoint."""
    stall_minutes: float | None = Field(None, ge=0.05, le=1440)
    """Least time without a step that counts as a stall."""


class PatchedSpec(PatchPart):
    """The fields that may change once a job is accepted; null stands for the default."""

    budget: PatchedBudget | None = None
    """The money."""
    suspend: bool | None = None
    """Whether the job shall let go of its machines and wait."""
    retry: PatchedRetry | None = None
    """What happens when something breaks."""
    tracking: PatchedTracking | None = None
    """MLflow."""
    queue: PatchedQueue | None = None
    """Admission."""


class PatchForm(PatchPart):
    """A merge patch (RFC 7396). Other fields may stand here, too, if they say what the job says already."""

    spec: PatchedSpec = Field(PatchedSpec(), examples=[{"budget": {"limit": "2.00"}}])


class JobPatch(RootModel[dict[str, Any]]):
    """As it was sent; `orchestrator.api.patch` applies it."""

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(PatchForm.__pydantic_core_schema__)
