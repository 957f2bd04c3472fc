"""The reference of the job format and of all reasons, written from the models themselves: `make docs` puts them into
docs/job.md and docs/reasons.md.

Invariant: nothing is said here that does not stand in `orchestrator.spec`, `orchestrator.reasons` and
`controller.retry`; a test holds the files equal to this.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

from orchestrator.controller.retry import BLAMELESS, ONCE, RETRYABLE
from orchestrator.explain import Field, all_fields, walk
from orchestrator.launch.events import FailureClass
from orchestrator.reasons import CONDITIONS, FAILURES, Text, Ways

JOB = """# The job: TrainingJob v1alpha1

Written by `make docs` from `orchestrator/spec.py`; change that, not this. A field without a default that is not
required is decided by Fathom; what was decided, and why, stands in `status.plan` and in `resolved.json`.
`k8s/samples/` has jobs to start from; `fathom explain spec.compute` shows a part of this with examples.

| field | type | default | meaning |
|---|---|---|---|
"""
REASONS = """# Conditions, reasons and failures

Written by `make docs` from `orchestrator/reasons.py` and `orchestrator/controller/retry.py`; change those, not this.
The lists are closed: no other reason and no other class is ever reported. `fathom why NAME` says which of them explains
where a job is, in one sentence, with what to do. In the tables, NAME is the job's name.

## Conditions

`status.conditions` has one entry for each question. Several hold at once; their order means nothing.

| condition | reason | the job ... | what you can do |
|---|---|---|---|
"""
CLASSES = """
## Failures

`status.attempts[].reason` begins with the class. What is tried again at all is tried `spec.retry.maxAttempts` times at
most, and not more than `spec.retry.stopAfterAttemptsWithoutProgress` times in a row without a new checkpoint.

| class | it means that ... | tried again | what you can do |
|---|---|---|---|
"""


def job_reference() -> str:
    """Markdown with one row for each field of metadata and spec."""
    parts = tuple(one for one in all_fields() if one.path in ("metadata", "spec"))
    rows = [_row(one) for one in walk(parts) if one not in parts]
    return JOB + "\n".join(rows) + "\n"


def reasons_reference() -> str:
    """Markdown with one row for each reason of each condition, and for each class of failure."""
    rows = [
        f"| {kind} | {reason} | {text.says} | {_advice(text)} |"
        for kind, reasons in CONDITIONS.items()
        for reason, text in reasons.items()
    ]
    classes = [f"| {kind} | {text.says} | {_retried(kind)} | {_advice(text)} |" for kind, text in FAILURES.items()]
    return REASONS + "\n".join(rows) + "\n" + CLASSES + "\n".join(classes) + "\n"


def _row(field: Field) -> str:
    if field.fields and not field.type.startswith("array"):
        return f"| **{field.path}** | | {'required' if field.required else ''} | {_cell(field.text)} |"
    default = "required" if field.required else _default(field)
    return f"| {field.path} | {_kind(field)} | {default} | {_cell(field.text)} |"


def _kind(field: Field) -> str:
    """Type and bounds."""
    if field.choices:
        either = " \\| ".join(f"`{value}`" for value in field.choices)
        return f"list of {either}" if field.type.startswith("array") else either
    if field.minimum is None:
        return field.type
    high = "" if field.maximum is None else field.maximum
    return f"{field.type} {field.minimum} to {high}"


def _default(field: Field) -> str:
    if field.default is None:
        return ""
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _advice(text: Text) -> str:
    return _cell(text.do.format(**asdict(Ways.by_name("NAME"))))


def _retried(kind: FailureClass) -> str:
    if kind not in RETRYABLE:
        return "no"
    if kind in BLAMELESS:
        return "yes, and not counted"
    return "once" if kind in ONCE else "yes"


DOCUMENTS = {"job": job_reference, "reasons": reasons_reference}

if __name__ == "__main__":
    sys.stdout.write(DOCUMENTS[sys.argv[1]]())
