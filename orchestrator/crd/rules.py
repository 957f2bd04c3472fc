"""What CEL holds a TrainingJob to beyond its schema, in the words of `orchestrator.spec_words`, as the API says it.

Every rule stands for a validator of `spec`, `status` or `api.patch`; tests send the same documents to all of them.
Expressions read fields without `has()` where the schema has a default: the API server fills it in first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from model.recipe import MAX_BF16_DECAY
from orchestrator import spec_words as words
from orchestrator.spec import Metadata, Tracking
from orchestrator.status import REASONS, Phase

Why = Literal["FieldValueInvalid", "FieldValueRequired", "FieldValueForbidden"]

_BRACES = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Rule:
    """One entry of x-kubernetes-validations."""

    holds: str
    """CEL: true where all is well."""
    text: str
    """What is wrong; names in braces are filled in by `values`."""
    values: Mapping[str, str] = field(default_factory=dict)
    """CEL expressions."""
    at: str = ""
    """The field that is to blame, below the node that the rule stands at."""
    reason: Why = "FieldValueInvalid"
    instead: str = ""
    """Said where a value has a line break, which Kubernetes does not let through."""

    def document(self) -> dict[str, Any]:
        """As Kubernetes writes it."""
        found: dict[str, Any] = {"rule": self.holds}
        if self.values:
            found["messageExpression"] = filled(self.text, self.values)
            if self.instead:
                found["message"] = self.instead
        else:
            found["message"] = self.text
        if self.at:
            found["fieldPath"] = f".{self.at}"
        return found | {"reason": self.reason}


def filled(text: str, values: Mapping[str, str]) -> str:
    """A CEL expression that says `text` with its braces filled in.

    By `format`, the only way whose cost Kubernetes can estimate: a text made by `string(...)` has no bound for it.
    """
    names = _BRACES.findall(text)
    return f"{literal(_BRACES.sub('%s', text))}.format([{', '.join(values[name] for name in names)}])"


def literal(value: object) -> str:
    """A string, or a list or map of strings, in CEL."""
    return json.dumps(value, ensure_ascii=False)


def _optional(*names: str) -> str:
    """Where all of them are given."""
    return " && ".join(f"has(self.{name})" for name in names)


def _unless(given: str, holds: str) -> str:
    """`holds` is asked only where `given` is true."""
    return f"!({given}) || {holds}"


def _both(first: str, second: str, holds: str) -> str:
    return _unless(_optional(first, second), holds)


_SUM = "self.constantShare + self.decayShare"
_SCHEDULE = (
    Rule(
        _both("constantShare", "decayShare", f"{_SUM} <= 1.0 + 1e-9"),
        words.SHARES,
        {
            "decay": "self.decayShare",
            "constant": "self.constantShare",
            "sum": f"double(int(({_SUM}) * 100000.0 + 0.5)) / 100000.0",
        },
        "decayShare",
    ),
    Rule(
        _both("learningRate", "finalLearningRate", "self.finalLearningRate <= self.learningRate"),
        words.RATES,
        {"final": "self.finalLearningRate", "highest": "self.learningRate"},
        "finalLearningRate",
    ),
)
_OPTIMIZER = tuple(
    Rule(
        f"!has(self.momentsPrecision) || self.momentsPrecision != 'bf16' || self.{name} <= {MAX_BF16_DECAY}",
        words.MOMENTS,
        {"decay": f"self.{name}", "most": str(MAX_BF16_DECAY)},
        name,
    )
    for name in ("beta1", "beta2")
)
_CPU = "self.accelerator == 'cpu'"
_COMPUTE = (
    *(
        Rule(
            _unless(_CPU, f"!has(self.{name})"),
            words.NO_GPU,
            {"value": f"self.{name}"},
            name,
            "FieldValueForbidden",
        )
        for name in ("gpus", "gpusPerNode")
    ),
    Rule(_unless(_CPU, "has(self.workers)"), words.WORKERS_MISSING, {}, "workers", "FieldValueRequired"),
    Rule(
        f"{_CPU} || !has(self.workers)",
        words.WORKERS,
        {"workers": "self.workers", "accelerator": "self.accelerator"},
        "workers",
        "FieldValueForbidden",
    ),
    Rule(
        f"{_CPU} || has(self.gpus)",
        words.GPUS_MISSING,
        {"accelerator": "self.accelerator"},
        "gpus",
        "FieldValueRequired",
    ),
    Rule(
        f"{_CPU} || !has(self.gpus) || !has(self.gpusPerNode) || self.gpus <= self.gpusPerNode || "
        "self.gpus % self.gpusPerNode == 0",
        words.MACHINES,
        {
            "gpus": "self.gpus",
            "size": "self.gpusPerNode",
            "fewer": "self.gpus / self.gpusPerNode * self.gpusPerNode",
            "more": "(self.gpus / self.gpusPerNode + 1) * self.gpusPerNode",
        },
        "gpus",
    ),
)
_STORAGE = (
    Rule(
        "!has(self.secretRef) || !has(self.claim)",
        words.STORAGES,
        {"claim": "self.claim", "secret": "self.secretRef"},
        "claim",
    ),
)
_PAIRS = literal(list(range(9)))
_RISES = f"{_PAIRS}.all(i, i + 1 >= size(self.warnAt) || self.warnAt[i] < self.warnAt[i + 1])"
_FIRST = f"{_PAIRS}.filter(i, i + 1 < size(self.warnAt) && self.warnAt[i] >= self.warnAt[i + 1])[0]"
_BUDGET = (
    Rule("self.limit.matches('[1-9]')", words.NOTHING, {"limit": "self.limit"}, "limit"),
    Rule(
        _RISES,
        words.WARNINGS,
        {"after": f"self.warnAt[{_FIRST} + 1]", "before": f"self.warnAt[{_FIRST}]"},
        "warnAt",
    ),
)
_NOTIFY = (
    Rule(
        "self.when.all(one, self.when.exists_one(other, other == one))",
        words.OCCASIONS,
        {
            "named": "size(self.when)",
            "different": "size([0, 1, 2].filter(i, i < size(self.when) && self.when.indexOf(self.when[i]) == i))",
        },
        "when",
    ),
)
_MODEL = (Rule("has(self.preset) || has(self.initFrom)", words.UNDECIDED, {}, "preset", "FieldValueRequired"),)
_URI = (Rule(f"!self.matches({literal(words.PASSWORD)})", words.NO_PASSWORD),)


def _tags() -> tuple[Rule, ...]:
    """Names of tags: what a schema cannot say of the keys of a map."""
    form = Tracking.model_json_schema(by_alias=True)["properties"]["tags"]
    [pattern], longest = form["patternProperties"], form["propertyNames"]["maxLength"]
    reserved = " || ".join(f"key.startsWith({literal(start)})" for start in words.RESERVED_TAGS)
    wrong = f"self.filter(key, !key.matches({literal(pattern)}))[0]"
    long = f"self.filter(key, size(key) > {longest})[0]"
    return (
        Rule(
            f"self.all(key, key.matches({literal(pattern)}))",
            words.FORM,
            {"value": f'"\'" + {wrong} + "\'"', "pattern": literal(pattern), "description": literal("")},
            instead=words.FORM.format(value="a name", pattern=pattern, description=""),
        ),
        Rule(
            f"self.all(key, size(key) <= {longest})",
            words.TOO_LONG,
            {"length": f"size({long})", "longest": str(longest)},
        ),
        Rule(f"self.all(key, !({reserved}))", words.TAGS),
    )


_WORLD = "(self.compute.accelerator == 'cpu' ? self.compute.workers : self.compute.gpus)"
_KNOWN = "(self.compute.accelerator == 'cpu' ? has(self.compute.workers) : has(self.compute.gpus))"
_EXTENDS = "self.task == 'extend-context'"
_COUNTED = literal(list(range(1, words.DIVISORS + 1)))
_SPEC = (
    Rule(
        f"{_EXTENDS} || !has(self.training.extension)",
        words.EXTENSION,
        {},
        "training.extension",
        "FieldValueForbidden",
    ),
    Rule(
        _unless(_EXTENDS, "has(self.model.initFrom)"),
        words.WEIGHTS_MISSING,
        {},
        "model.initFrom",
        "FieldValueRequired",
    ),
    Rule(
        _unless(_EXTENDS, "has(self.data.sequenceLength)"),
        words.LENGTH_MISSING,
        {},
        "data.sequenceLength",
        "FieldValueRequired",
    ),
    Rule(
        _unless(f"{_EXTENDS} && has(self.data.sequenceLength)", "!has(self.model.overrides.maxPositions)"),
        words.POSITIONS,
        {
            "positions": "self.model.overrides.maxPositions",
            "length": "self.data.sequenceLength",
        },
        "model.overrides.maxPositions",
        "FieldValueForbidden",
    ),
    Rule(
        f"!has(self.parallelism.expert) || !{_KNOWN} || {_WORLD} % self.parallelism.expert == 0",
        words.EXPERT,
        {
            "expert": "self.parallelism.expert",
            "workers": f"{_WORLD}",
            "divisors": f"{_COUNTED}.filter(n, {_WORLD} % n == 0)",
        },
        "parallelism.expert",
    ),
    Rule(
        _both(
            "parallelism.expert",
            "model.overrides.experts",
            "self.model.overrides.experts % self.parallelism.expert == 0",
        ),
        words.EXPERTS,
        {"expert": "self.parallelism.expert", "experts": "self.model.overrides.experts"},
        "parallelism.expert",
    ),
    Rule(
        "!has(self.training.globalBatchTokens) || self.training.globalBatchTokens <= self.training.tokens",
        words.TOKENS,
        {"tokens": "self.training.tokens", "batch": "self.training.globalBatchTokens"},
        "training.tokens",
    ),
)
_ALLOWED = literal({kind: sorted(reasons) for kind, reasons in REASONS.items()})
_LISTED = literal({kind: ", ".join(sorted(reasons)) for kind, reasons in REASONS.items()})
_CONDITION = (
    Rule(
        f"self.reason in {_ALLOWED}[self.type]",
        words.REASON,
        {"reason": "self.reason", "kind": "self.type", "allowed": f"{_LISTED}[self.type]"},
        "reason",
    ),
)
_STATUS = (
    Rule(
        f"oldSelf.phase != '{Phase.SUCCEEDED}' || self.phase == oldSelf.phase",
        words.FINAL,
        {"phase": "self.phase"},
        "phase",
    ),
    Rule(
        "self.attemptCount >= oldSelf.attemptCount",
        words.ATTEMPTS,
        {"count": "self.attemptCount", "before": "oldSelf.attemptCount"},
        "attemptCount",
    ),
)
RULES: dict[str, tuple[Rule, ...]] = {
    "spec": _SPEC,
    "spec.model": _MODEL,
    "spec.model.initFrom": _URI,
    "spec.data.source": _URI,
    "spec.data.tokenizer": _URI,
    "spec.training.evaluation.tasks[]": _URI,
    "spec.checkpoint.uri": _URI,
    "spec.training.schedule": _SCHEDULE,
    "spec.training.optimizer": _OPTIMIZER,
    "spec.compute": _COMPUTE,
    "spec.storage": _STORAGE,
    "spec.budget": _BUDGET,
    "spec.tracking.tags": _tags(),
    "spec.notify": _NOTIFY,
    "status": _STATUS,
    "status.conditions[]": _CONDITION,
}
"""By the path of the node that they stand at."""


def _names() -> tuple[Rule, ...]:
    """A job's name is shorter and narrower than Kubernetes wants: pods are named after it."""
    form = Metadata.model_json_schema(by_alias=True)["properties"]["name"]
    pattern, longest = form["pattern"], form["maxLength"]
    values = {"value": '"\'" + self.metadata.name + "\'"', "pattern": literal(pattern)}
    return (
        Rule(
            f"size(self.metadata.name) <= {longest}",
            words.TOO_LONG,
            {"length": "size(self.metadata.name)", "longest": str(longest)},
            "metadata.name",
        ),
        Rule(
            f"self.metadata.name.matches({literal(pattern)})",
            words.FORM,
            values | {"description": literal(form["description"])},
            "metadata.name",
        ),
    )


ROOT = _names()
"""At the top of the document."""
