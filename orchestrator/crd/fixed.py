"""What of a TrainingJob stays once it is accepted: all that `spec_words.MUTABLE` does not name, by its schema.

The rules stand at the top of the document, because nothing further down sees the status. Until the controller says
Accepted=True a spec can be mended; the REST API is stricter: what it takes is accepted at once.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator import spec_words as words
from orchestrator.crd.rules import Rule, literal
from orchestrator.schema import Schema

_DEPTH = 2
"""So deep a message names the field: spec.training.tokens."""
_OLD_STATUS = "has(oldSelf.status)"
_ACCEPTED = (
    f"{_OLD_STATUS} && has(oldSelf.status.conditions) && "
    "oldSelf.status.conditions.exists(c, c.type == 'Accepted' && c.status == 'True')"
)


def fixed_rules(spec: Schema) -> tuple[Rule, ...]:
    """For the schema of the spec."""
    return (*_walk(spec, "spec", ()), *_GUARDED)


def _walk(node: Schema, path: str, optional: tuple[str, ...]) -> Iterator[Rule]:
    """The rules below `path`; `optional`: groups above it that may be absent as a whole."""
    required = node.get("required", [])
    for name, child in node["properties"].items():
        at = f"{path}.{name}"
        present = name in required or "default" in child
        inside = any(field.startswith(f"{at}.") for field in words.MUTABLE)
        if at in words.MUTABLE:
            continue
        if "properties" in child and (inside or (present and at.count(".") < _DEPTH)):
            yield from _walk(child, at, optional if present else (*optional, at))
        else:
            yield _rule(at, present, optional)
    if optional and optional[-1] == path:
        yield Rule(f"!({_ACCEPTED}) || !has(oldSelf.{path}) || has(self.{path})", words.FIXED, {}, path)


def _rule(path: str, present: bool, optional: tuple[str, ...]) -> Rule:
    """That one field, or group, stays as it is. A group that was absent may come."""
    absent = [f"!has({which}.{group})" for group in optional for which in ("oldSelf", "self")]
    same = f"self.{path} == oldSelf.{path}"
    if not present:
        same = f"has(self.{path}) == has(oldSelf.{path}) && (!has(self.{path}) || {same})"
    return Rule(" || ".join([f"!({_ACCEPTED})", *absent, f"({same})"]), words.FIXED, {}, path)


_PRIORITY = "spec.queue.priorityClass"
_PHASE = "oldSelf.status.phase"
_SAME_PRIORITY = (
    f"has(self.{_PRIORITY}) == has(oldSelf.{_PRIORITY}) && "
    f"(!has(self.{_PRIORITY}) || self.{_PRIORITY} == oldSelf.{_PRIORITY})"
)
_LIMITS = "has(self.spec.budget) && has(oldSelf.spec.budget) && has(oldSelf.status) && has(oldSelf.status.cost)"
_SPENT = "oldSelf.status.cost.spent"
_GUARDED = (
    Rule(
        f"!{_OLD_STATUS} || {_PHASE} in {literal(list(words.WAITING))} || ({_SAME_PRIORITY})",
        words.ADMITTED,
        {"phase": _PHASE},
        _PRIORITY,
    ),
    Rule(
        f"!({_LIMITS}) || self.spec.budget.limit == oldSelf.spec.budget.limit || "
        f"quantity(self.spec.budget.limit).compareTo(quantity({_SPENT})) >= 0",
        words.BELOW_SPENT,
        {"limit": "self.spec.budget.limit", "spent": _SPENT, "currency": "oldSelf.status.cost.currency"},
        "spec.budget.limit",
    ),
)
"""What may change, within bounds that the status sets."""
