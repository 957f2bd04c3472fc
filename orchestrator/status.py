"""What Fathom says about a TrainingJob: the `status` half of the resource.

Written by the controller or the local launcher only, read by everybody. Invariant: numbers are integers or
decimal strings, every list and string is bounded, so that a status always fits into one Kubernetes object.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from orchestrator.schema import Currency, DecimalString, Money, Part
from orchestrator.spec_words import REASON

Message = Annotated[str, Field(max_length=1024)]
Url = Annotated[str, Field(max_length=2048)]
Count = Annotated[int, Field(ge=0, le=10**18)]


class Phase(StrEnum):
    """Where a job stands, in one word."""

    PENDING = "Pending"
    PLANNED = "Planned"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the job will never run again."""
        return self in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)


class ConditionType(StrEnum):
    """The questions that conditions answer."""

    ACCEPTED = "Accepted"
    PRICED = "Priced"
    ADMITTED = "Admitted"
    RUNNING = "Running"
    BUDGET_OK = "BudgetOK"
    TRACKING = "Tracking"
    COMPLETE = "Complete"


class Reason(StrEnum):
    """The closed list of reasons; `REASONS` says which condition may carry which."""

    VALID = "Valid"
    INVALID = "Invalid"
    DATA_MISSING = "DataMissing"
    PRICE_FOUND = "PriceFound"
    PRICE_MISSING = "PriceMissing"
    WAITING_FOR_QUEUE = "WaitingForQueue"
    WAITING_FOR_QUOTA = "WaitingForQuota"
    WAITING_FOR_SLOTS = "WaitingForSlots"
    WAITING_FOR_TEAM_BUDGET = "WaitingForTeamBudget"
    QUEUE_ADMITTED = "QueueAdmitted"
    NO_QUEUE = "NoQueue"
    QUEUE_MISSING = "QueueMissing"
    KUBERAY_MISSING = "KubeRayMissing"
    DEACTIVATED = "Deactivated"
    PREEMPTED = "Preempted"
    SUSPENDED = "Suspended"
    STARTING = "Starting"
    PODS_NOT_READY = "PodsNotReady"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    PODS_REFUSED = "PodsRefused"
    CRASH_LOOPING = "CrashLooping"
    MAKING_PROGRESS = "MakingProgress"
    RETRYING = "Retrying"
    STALLED = "Stalled"
    STOPPING = "Stopping"
    ENDED = "Ended"
    WITHIN_BUDGET = "WithinBudget"
    NEAR_LIMIT = "NearLimit"
    LIMIT_REACHED = "LimitReached"
    NO_BUDGET = "NoBudget"
    LOGGED = "Logged"
    SERVER_UNREACHABLE = "ServerUnreachable"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    NOT_ENDED = "NotEnded"
    CONTROLLER_ERROR = "ControllerError"


REASONS: dict[ConditionType, frozenset[Reason]] = {
    ConditionType.ACCEPTED: frozenset({Reason.VALID, Reason.INVALID, Reason.DATA_MISSING}),
    ConditionType.PRICED: frozenset({Reason.PRICE_FOUND, Reason.PRICE_MISSING}),
    ConditionType.ADMITTED: frozenset(
        {
            Reason.WAITING_FOR_QUEUE,
            Reason.WAITING_FOR_QUOTA,
            Reason.WAITING_FOR_SLOTS,
            Reason.WAITING_FOR_TEAM_BUDGET,
            Reason.QUEUE_ADMITTED,
            Reason.NO_QUEUE,
            Reason.QUEUE_MISSING,
            Reason.KUBERAY_MISSING,
            Reason.DEACTIVATED,
            Reason.PREEMPTED,
            Reason.SUSPENDED,
        }
    ),
    ConditionType.RUNNING: frozenset(
        {
            Reason.STARTING,
            Reason.PODS_NOT_READY,
            Reason.IMAGE_PULL_FAILED,
            Reason.UNSCHEDULABLE,
            Reason.QUOTA_EXCEEDED,
            Reason.PODS_REFUSED,
            Reason.CRASH_LOOPING,
            Reason.MAKING_PROGRESS,
            Reason.RETRYING,
            Reason.STALLED,
            Reason.STOPPING,
            Reason.PREEMPTED,
            Reason.SUSPENDED,
            Reason.ENDED,
            Reason.CONTROLLER_ERROR,
        }
    ),
    ConditionType.BUDGET_OK: frozenset(
        {Reason.WITHIN_BUDGET, Reason.NEAR_LIMIT, Reason.LIMIT_REACHED, Reason.NO_BUDGET}
    ),
    ConditionType.TRACKING: frozenset({Reason.LOGGED, Reason.SERVER_UNREACHABLE}),
    ConditionType.COMPLETE: frozenset(
        {Reason.SUCCEEDED, Reason.FAILED, Reason.CANCELLED, Reason.LIMIT_REACHED, Reason.NOT_ENDED}
    ),
}


class Condition(Part):
    """One answer, as Kubernetes writes conditions; their order means nothing."""

    type: ConditionType
    """The question, unique in the list."""
    status: Literal["True", "False", "Unknown"]
    """The answer."""
    reason: Reason
    """Why, for programs."""
    message: Message = ""
    """Why, for people: what is wrong, the numbers, what to do."""
    last_transition_time: AwareDatetime
    """When `status` last changed."""
    observed_generation: Count = 0
    """The generation of the spec that this was said about."""

    @model_validator(mode="after")
    def _reason_belongs(self) -> Self:
        if self.reason not in REASONS[self.type]:
            allowed = ", ".join(sorted(REASONS[self.type]))
            raise ValueError(REASON.format(reason=self.reason, kind=self.type, allowed=allowed))
        return self


class Choice(Part):
    """A field that was absent in the spec, and what was chosen for it."""

    path: str = Field(max_length=200)
    """The field, e.g. spec.parallelism.expert."""
    value: str = Field(max_length=1024)
    """The chosen value, as it would be written in the job."""
    reason: Message
    """The rule that chose it."""


class Plan(Part):
    """What will run and what it should take."""

    choices: list[Choice] = Field(default=[], max_length=100)
    """Everything that the spec left open."""
    price_per_hour: Money | None = None
    """Price of the whole job while it holds its machines."""
    price_source: str | None = Field(None, max_length=512)
    """Where the price comes from, with its date."""
    hours_low: DecimalString | None = None
    """Forecast of the running time in hours: the lower end."""
    hours_high: DecimalString | None = None
    """The upper end."""
    cost_low: Money | None = None
    """Forecast of the whole cost: the lower end."""
    cost_high: Money | None = None
    """The upper end."""
    currency: Currency | None = None
    """Currency of all amounts here."""


class Progress(Part):
    """The newest sign of life."""

    step: Count
    """Optimizer steps that are done."""
    steps: Count
    """Optimizer steps of the whole run."""
    tokens: Count
    """Tokens that are trained on."""
    loss: DecimalString | None = None
    """Training loss of the last step, in nats per token."""
    tokens_per_second: DecimalString | None = None
    """Throughput of the whole job."""
    eta_seconds: Count | None = None
    """Seconds to the end at this pace."""
    observed_at: AwareDatetime
    """When this was true."""


class Cost(Part):
    """The money, by the clock of whoever holds the machines; never by the word of a worker."""

    spent: Money
    """Paid so far, all attempts together."""
    forecast_low: Money | None = None
    """Expected in the end: the lower end."""
    forecast_high: Money | None = None
    """The upper end."""
    burn_per_hour: Money
    """What an hour costs now; 0 while nothing is held."""
    wasted: Money
    """The part of `spent` that trained nothing: starting, repeated work, idling."""
    currency: Currency
    """Currency of all amounts here."""


class Attempt(Part):
    """One RayJob, or one local driver."""

    number: int = Field(ge=1, le=10_000)
    """Counted from 1."""
    incarnations: int = Field(1, ge=0, le=10_000)
    """Ray clusters that this attempt has had (a queue may evict and re-admit it)."""
    ray_job: str | None = Field(None, max_length=253)
    """Name of the RayJob; absent on one machine."""
    started_at: AwareDatetime
    """When it first held a machine."""
    ended_at: AwareDatetime | None = None
    """When it let go of the last one; absent while it runs."""
    outcome: Literal["succeeded", "stopped", "failed"] | None = None
    """How it ended; absent while it runs."""
    reason: Message | None = None
    """Class of the failure and its message."""
    gpu_hours: DecimalString | None = None
    """Machine hours held: of GPUs, or of CPUs where there is none."""
    cost: Money | None = None
    """What it cost."""
    from_step: Count | None = None
    """The step it went on from."""
    to_step: Count | None = None
    """The last step it completed."""


class MlflowRun(Part):
    """Where the history is."""

    experiment_id: str = Field(max_length=64)
    """Experiment in MLflow."""
    run_id: str = Field(max_length=64)
    """The parent run; attempts are its children."""
    url: Url | None = None
    """Page of the run, where the server has one."""


class JobStatus(Part):
    """What Fathom says about a TrainingJob."""

    observed_generation: Count = 0
    """The generation of the spec that this status is about."""
    observed_wishes: Count | None = None
    """Wishes in annotations (to cancel, to resume) that this status knows of; in resources only."""
    phase: Phase = Phase.PENDING
    """Where the job stands, in one word."""
    conditions: list[Condition] = Field(default=[], max_length=16)
    """The same in detail: one entry per question."""
    plan: Plan | None = None
    """What was chosen for absent fields, and the forecast."""
    progress: Progress | None = None
    """The newest sign of life."""
    cost: Cost | None = None
    """Money spent and expected."""
    attempts: list[Attempt] = Field(default=[], max_length=20)
    """The last 20 attempts, oldest first."""
    attempt_count: Count = 0
    """All attempts ever made, also those no longer listed."""
    mlflow: MlflowRun | None = None
    """Where the history is."""

    @model_validator(mode="after")
    def _one_per_type(self) -> Self:
        types = [condition.type for condition in self.conditions]
        if len(set(types)) != len(types):
            raise ValueError(f"{len(types)} conditions answer only {len(set(types))} questions: one each")
        return self

    def condition(self, type: ConditionType) -> Condition | None:
        """The answer to one question, if it was given."""
        return next((condition for condition in self.conditions if condition.type is type), None)
