"""What each reason and each class of failure means, and what a person can do: the texts of `fathom why` and of
docs/reasons.md. Values only.

Invariant (held by tests): every reason that a condition may carry, and every class of failure, has a text of its own;
what an advice names in backticks is a command or a field that exists.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.launch.events import FailureClass
from orchestrator.status import ConditionType as C
from orchestrator.status import Reason as R


@dataclass(frozen=True)
class Text:
    """`says` follows the name of the job. Words in braces are fields of `Ways`."""

    says: str
    do: str
    urgency: int = 0
    """Of several conditions that hold at once, the one with the highest explains where the job is."""


@dataclass(frozen=True)
class Ways:
    """The commands by which one job is handled: those of the service, or of a run's folder."""

    job: str
    resume: str
    logs: str
    money: str
    apply: str
    look: str
    stop: str
    follow: str
    bundle: str

    @classmethod
    def by_name(cls, name: str) -> Ways:
        """Through the service."""
        return cls(
            job=name,
            resume=f"`fathom resume {name}`",
            logs=f"`fathom logs {name}`",
            money=f"`fathom budget {name} --limit AMOUNT`",
            apply="`fathom apply FILE`",
            look=f"`fathom get {name}`",
            stop=f"`fathom cancel {name}`",
            follow="`fathom serve`",
            bundle=f"`fathom doctor --bundle {name}`",
        )

    @classmethod
    def by_folder(cls, name: str, folder: str, attempt: int) -> Ways:
        """Of a run that no service knows."""
        return cls(
            job=name,
            resume=f"`fathom train --resume {folder}`",
            logs=f"{folder}/logs/attempt-{attempt}.log",
            money=f"`fathom budget {folder} --limit AMOUNT`",
            apply="`fathom train FILE`",
            look=f"`fathom metrics {folder}`",
            stop="Ctrl-C where it was started",
            follow=f"`fathom train --resume {folder}`",
            bundle=f"`fathom doctor --bundle {folder}`",
        )


ACCEPTED: dict[R, Text] = {
    R.VALID: Text("has been accepted and waits to be priced", "wait; {look} shows when that is done", 10),
    R.INVALID: Text(
        "cannot run as it is written",
        "mend the field that the message names (`fathom explain spec` describes each) and submit it again with {apply}",
        100,
    ),
    R.DATA_MISSING: Text(
        "cannot run because its data is not there",
        "make the dataset with `fathom data prepare`, or correct `spec.data.source`, and submit it again with {apply}",
        100,
    ),
}
PRICED: dict[R, Text] = {
    R.PRICE_FOUND: Text("is priced and waits to be admitted", "wait; {look} shows when it is admitted", 11),
    R.PRICE_MISSING: Text(
        "waits because nobody knows what its machines cost",
        "add a row for `spec.compute.accelerator` and `spec.compute.priceClass` to the file that FATHOM_PRICES names",
        75,
    ),
}
ADMITTED: dict[R, Text] = {
    R.WAITING_FOR_QUEUE: Text(
        "waits for its turn in the queue",
        "wait, or give it a higher `spec.queue.priorityClass`; `fathom list` shows who is before it",
        50,
    ),
    R.WAITING_FOR_QUOTA: Text(
        "waits for machines, since its queue may use no more at once",
        "wait, suspend another job of the queue with `fathom suspend`, or ask for fewer in `spec.compute`",
        51,
    ),
    R.WAITING_FOR_SLOTS: Text(
        "waits for a free place on this machine, since those that it needs are in use",
        "wait, suspend another job with `fathom suspend`, or ask for fewer in `spec.compute`; `fathom list` shows who "
        "has them",
        52,
    ),
    R.WAITING_FOR_TEAM_BUDGET: Text(
        "waits for money of its team, of which what is free does not cover its limit",
        "wait until another job of the team ends, lower `spec.budget.limit` with {money}, or raise the team's limit in "
        "the file that FATHOM_BUDGETS names; `fathom cost` shows who spends",
        53,
    ),
    R.QUEUE_ADMITTED: Text("is admitted and about to start", "wait; {look} shows when it starts", 12),
    R.NO_QUEUE: Text("stands in no queue and starts as soon as it can", "wait; {look} shows when it starts", 12),
    R.QUEUE_MISSING: Text(
        "waits in vain, since its queue or its priority class is not there",
        "ask whoever runs the cluster for a LocalQueue of that name in the job's namespace, or submit the job with "
        "another `spec.queue.name` or `spec.queue.priorityClass`, by {apply}",
        64,
    ),
    R.KUBERAY_MISSING: Text(
        "waits because nothing in the cluster starts Ray",
        "ask whoever runs the cluster to install KubeRay's operator, or to see why it does nothing; the job goes on by "
        "itself then, and {look} shows it",
        64,
    ),
    R.DEACTIVATED: Text(
        "was put aside by its queue and waits until somebody lets it in again",
        "ask whoever runs the queue, or end it with {stop} and submit it again with {apply}",
        64,
    ),
    R.PREEMPTED: Text(
        "gave its place in the queue to a job of higher priority",
        "wait: it goes on by itself from the last checkpoint; a higher `spec.queue.priorityClass` prevents it",
        67,  # above what is said of its machines: of a queue it knows better what helps
    ),
    R.SUSPENDED: Text("is suspended and stands in no queue", "let it queue again with {resume}", 70),
}
RUNNING: dict[R, Text] = {
    R.STARTING: Text(
        "is starting: Ray and the workers come up and load the model",
        "wait a minute or two; what it prints meanwhile is in {logs}",
        30,
    ),
    R.PODS_NOT_READY: Text(
        "waits for its pods, which have places but are not ready",
        "look at {logs}; if it stays so, check `spec.storage` and `spec.compute.serviceAccountName`",
        60,
    ),
    R.IMAGE_PULL_FAILED: Text(
        "cannot start because its image cannot be pulled",
        "correct `spec.compute.image`, or give `spec.compute.serviceAccountName` the right to pull it; then submit the "
        "job again with {apply}",
        61,
    ),
    R.UNSCHEDULABLE: Text(
        "waits for machines, since none that is free has what its pods ask for",
        "wait until others end (`fathom list` shows them), ask for fewer or other machines in `spec.compute`, or give "
        "the cluster more; {stop} ends the wait",
        61,
    ),
    R.QUOTA_EXCEEDED: Text(
        "cannot start its pods because the quota of its namespace is used up",
        "wait until others of the namespace end, ask for less in `spec.compute`, or ask whoever runs the cluster to "
        "raise its ResourceQuota",
        61,
    ),
    R.PODS_REFUSED: Text(
        "cannot start because the cluster refuses its pods",
        "show the message, which is in {look}, to whoever runs the cluster: a rule of the namespace (pod security, a "
        "policy) forbids what it names",
        61,
    ),
    R.CRASH_LOOPING: Text(
        "cannot start because its pods end as soon as they begin",
        "read {logs} and the message: mostly the image in `spec.compute.image` is not one for training",
        61,
    ),
    R.MAKING_PROGRESS: Text("is training", "nothing; {look} shows how far it is", 31),
    R.RETRYING: Text(
        "is being tried again, from the last checkpoint, after an attempt that failed",
        "nothing yet; why it failed is in {logs}, and `spec.retry.maxAttempts` says how often it is tried",
        55,
    ),
    R.STALLED: Text(
        "has made no step for much longer than usual",
        "look at the stacks of its ranks in {logs}; the attempt ends by itself and is tried once more; if steps really "
        "take that long, raise `spec.retry.stallMinutes`",
        62,
    ),
    R.STOPPING: Text(
        "is writing a last checkpoint and stops then",
        "wait; the checkpoint is lost if you force it; {look} shows when it has stopped",
        63,
    ),
    R.PREEMPTED: Text(
        "lost its machines to somebody else",
        "wait: it goes on by itself from the last checkpoint; `spec.compute.priceClass` on-demand prevents it",
        66,
    ),
    R.SUSPENDED: Text("is suspended and holds no machines", "go on from the last checkpoint with {resume}", 71),
    R.CONTROLLER_ERROR: Text(
        "is not looked after for now, because something fails in the service, which tries again",
        "mend what the message names, e.g. a full disk or a file that cannot be read (`fathom doctor` looks for both)",
        95,
    ),
    R.ENDED: Text("does not run any more", "go on from the last checkpoint with {resume}", 20),
}
BUDGET_OK: dict[R, Text] = {
    R.WITHIN_BUDGET: Text("is within its budget", "nothing; {look} shows what is spent", 1),
    R.NEAR_LIMIT: Text("has nearly used up its budget", "raise the limit in time with {money}", 13),
    R.LIMIT_REACHED: Text(
        "stopped because what is left of its budget does not pay for more",
        "raise `spec.budget.limit` with {money}; if it does not go on by itself then, {resume}",
        81,
    ),
    R.NO_BUDGET: Text("has no budget and may spend without limit", "give it `spec.budget.limit` with {money}", 2),
}
TRACKING: dict[R, Text] = {
    R.LOGGED: Text("is up to date in MLflow", "nothing; `fathom mlflow` shows it", 1),
    R.SERVER_UNREACHABLE: Text(
        "cannot reach MLflow, for which training does not wait",
        "nothing is lost; check MLFLOW_TRACKING_URI with `fathom doctor`, and `fathom sync` sends what is missing",
        14,
    ),
}
COMPLETE: dict[R, Text] = {
    R.SUCCEEDED: Text("has succeeded", "take the model with `fathom export` or try it with `fathom generate`", 90),
    R.FAILED: Text(
        "has failed and is not tried again by itself",
        "read {logs}; when the cause is gone, go on from the last checkpoint with {resume}",
        90,
    ),
    R.CANCELLED: Text(
        "was cancelled, after a last checkpoint if it was training",
        "nothing; its checkpoints can be read with `fathom checkpoints`, and {apply} starts another job",
        90,
    ),
    R.LIMIT_REACHED: Text(
        "is not done, and stands still because its budget is used up",
        "raise `spec.budget.limit` with {money}; if it does not go on by itself then, {resume}",
        80,
    ),
    R.NOT_ENDED: Text("has not ended", "nothing; {look} shows how it stands", 0),
}
CONDITIONS: dict[C, dict[R, Text]] = {
    C.ACCEPTED: ACCEPTED,
    C.PRICED: PRICED,
    C.ADMITTED: ADMITTED,
    C.RUNNING: RUNNING,
    C.BUDGET_OK: BUDGET_OK,
    C.TRACKING: TRACKING,
    C.COMPLETE: COMPLETE,
}

FAILURES: dict[FailureClass, Text] = {
    FailureClass.USER_ERROR: Text(
        "something in the job or its data is wrong, which trying again cannot mend",
        "mend what the message names; `spec.data` and `spec.model` are fixed once a job is accepted, so submit the "
        "mended one with {apply}",
    ),
    FailureClass.OUT_OF_MEMORY: Text(
        "a worker needed more memory than its device or machine has",
        "take a smaller `spec.parallelism.microBatch`, `spec.parallelism.recompute` full, a higher "
        "`spec.parallelism.zeroStage` or a larger `spec.compute.memoryPerWorker`; `fathom plan` shows the memory "
        "before you pay",
    ),
    FailureClass.NOT_FINITE: Text(
        "the loss was not finite any more, and going back did not help",
        "lower `spec.training.schedule.learningRate`, or let it leave data out with `spec.training.anomalies.action` "
        "skip; {logs} has the step",
    ),
    FailureClass.STALLED: Text(
        "no step was done for far longer than usual",
        "the stacks of all ranks are beside {logs}; if steps really take that long, raise `spec.retry.stallMinutes`",
    ),
    FailureClass.WORKER_LOST: Text(
        "workers died again and again, or never came, without a new checkpoint in between",
        "read the end of {logs}; one that was killed without a word mostly had too little memory: "
        "`spec.compute.memoryPerWorker`",
    ),
    FailureClass.DRIVER_LOST: Text(
        "the process that leads the attempt was gone without a word",
        "read the end of {logs}; `fathom doctor` checks this machine; then {resume}",
    ),
    FailureClass.PREEMPTED: Text(
        "its machines were given to somebody else",
        "nothing: it goes on by itself, and this counts as no attempt; or buy machines that stay: "
        "`spec.compute.priceClass` on-demand",
    ),
    FailureClass.OVER_BUDGET: Text(
        "the budget did not allow more",
        "raise `spec.budget.limit` with {money}; if it does not go on by itself then, {resume}",
    ),
    FailureClass.INTERRUPTED: Text("a person or a signal stopped it", "go on from the last checkpoint with {resume}"),
    FailureClass.FENCED: Text(
        "a newer attempt had begun, and took its place",
        "nothing; {look} shows the newer attempt",
    ),
    FailureClass.UNKNOWN: Text(
        "nobody could tell why",
        "read the end of {logs}; {bundle} packs what somebody who helps you needs",
    ),
}
