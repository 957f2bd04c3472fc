"""What is said of a TrainingJob that contradicts itself, and which of its fields may change: once for everybody.

`spec` says it in Python, `crd.rules` makes the API server of Kubernetes say the same: what stands in braces is filled
in by either. Pure constants.
"""

from __future__ import annotations

MUTABLE = ("spec.budget.limit", "spec.suspend", "spec.retry", "spec.tracking.tags", "spec.queue.priorityClass")
"""Fields, and groups of fields, that may change once a job is accepted."""
WAITING = ("Pending", "Planned", "Queued")
"""Phases of a job that no queue has admitted yet."""
RESERVED_TAGS = ("mlflow.", "fathom.")
"""How no tag of a person's begins."""
PASSWORD = r"://[^/@]*:[^/@]*@|(https?|ftp)://[^/]*@"
"""What a URL with somebody's password or token holds, in the syntax of RE2 and of Python. A container of Azure stands
before an @, too, and has no colon."""
DIVISORS = 64
"""Up to which numbers of workers per expert set are proposed."""

FIXED = f"is fixed once accepted ({', '.join(MUTABLE)} are not): delete the job or give it another name"
ADMITTED = "is fixed once the job is admitted, and it is {phase}"
BELOW_SPENT = "{limit} is below the {spent} {currency} that are spent already"

TOO_LONG = "has {length} characters, at most {longest} are allowed"
FORM = "{value} does not have the form {pattern}. {description}"

NO_PASSWORD = "holds a password before its @, for whoever reads the job: name a Secret in storage.secretRef"

SHARES = "{decay} and constantShare {constant} are {sum}: at most 1"
RATES = "{final} exceeds learningRate {highest}: the rate only falls"
MOMENTS = "{decay} exceeds {most}: moments in bf16 would never fall; use momentsPrecision: fp32"
NO_GPU = "is {value}, but accelerator is cpu: remove it, or name a GPU there"
WORKERS_MISSING = "is required with accelerator cpu: the number of processes, e.g. 2"
WORKERS = "is {workers}, but each {accelerator} has one worker: set gpus"
GPUS_MISSING = "is required with accelerator {accelerator}: the GPUs of the whole job"
MACHINES = "{gpus} do not fill machines of {size}: use {fewer} or {more}"
STORAGES = "both claim '{claim}' and secretRef '{secret}' are given: use one of them"
NOTHING = "{limit} allows nothing to run: give an amount above 0, or no budget"
WARNINGS = "{after} follows {before}: give each share once, in rising order"
TAGS = 'names that begin with "mlflow." or "fathom." are reserved'
OCCASIONS = "names {named} occasions, of which {different} differ: give each once"
UNDECIDED = "is required: name an architecture, or weights to start from (initFrom)"
EXTENSION = "is for task extend-context, but task is pretrain: remove one of them"
WEIGHTS_MISSING = "is required with task extend-context: the weights whose context is extended"
LENGTH_MISSING = "is required with task extend-context: the new length"
POSITIONS = "is {positions}, but task extend-context sets it to data.sequenceLength ({length}): remove it"
EXPERT = "{expert} does not divide the {workers} workers: one of {divisors} does"
EXPERTS = "{expert} does not divide model.overrides.experts {experts}"
TOKENS = "{tokens} is less than one batch (globalBatchTokens {batch})"
REASON = "reason {reason} does not belong to condition {kind}, one of: {allowed}"
FINAL = "is Succeeded, which is final: it cannot become {phase}"
ATTEMPTS = "{count} attempts are fewer than the {before} that were made before"


def figure(value: float) -> str:
    """A number as a document shows it, whoever wrote it: 1.0 is 1."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
