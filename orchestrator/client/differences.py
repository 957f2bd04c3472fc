"""A job as it is wanted against the one that is there: nothing to do, a change that is allowed, or not. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.client.values import Job
from orchestrator.errors import Conflict
from orchestrator.spec import TrainingJob

Document = dict[str, Any]
MUTABLE = ("budget.limit", "suspend", "retry", "tracking.tags", "queue.priorityClass")
"""What may change while the job is there; a group stands for all its fields."""
_MAPS = ("tracking.tags",)
"""Said as a whole: what is not in it shall go."""


@dataclass(frozen=True)
class Difference:
    """One field."""

    path: str
    """As the user writes it, without `spec.`."""
    old: object
    """None: absent."""
    new: object

    @property
    def mutable(self) -> bool:
        return any(_in(self.path, field) for field in MUTABLE)

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.old)} -> {_shown(self.new)}"


@dataclass(frozen=True)
class Preview:
    """What `apply` would do."""

    wanted: TrainingJob
    live: Job | None
    """The job of this name; None: it would be made."""
    changes: Sequence[Difference] = ()
    """What would be changed; empty with a live job: nothing would."""


def differences(live: Job, wanted: TrainingJob) -> list[Difference]:
    """In the order of the fields. What may change is compared only where `wanted` says it: a file that is silent about
    `suspend` does not resume a job that somebody suspended."""
    old, new = flat(live.spec.document()), flat(wanted.spec.document())
    said = set(flat(wanted.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)))
    found = [
        Difference(path, old.get(path), new.get(path))
        for path in dict.fromkeys([*new, *old])
        if old.get(path) != new.get(path)
    ]
    return [one for one in found if _counts(one, said, live)]


def _counts(one: Difference, said: set[str], live: Job) -> bool:
    if one.path in said or any(_in(one.path, field) and any(_in(path, field) for path in said) for field in _MAPS):
        return True
    if one.mutable or (live.spec.budget is None and _in(one.path, "budget")):
        return False  # the defaults of a new budget come with its limit
    return not (one.path.startswith("budget.") and not any(_in(path, "budget") for path in said))


def require_mutable(live: Job, found: Sequence[Difference]) -> None:
    """Conflict that names every field that cannot change."""
    fixed = [one for one in found if not one.mutable]
    if not fixed:
        return
    lines = "\n".join(f"  {one}" for one in fixed)
    raise Conflict(
        f"{live.key} is there already ({live.phase}), and these fields are fixed once a job is accepted:\n{lines}\n"
        f"give the new job another name, or remove the old one with `fathom delete {live.key}`; "
        f"may change: {', '.join(MUTABLE)}"
    )


def merge_patch(found: Sequence[Difference]) -> Document:
    """RFC 7396: what makes the live job as it is wanted; null removes."""
    spec: Document = {}
    for one in found:
        *groups, last = keys(one.path)
        node = spec
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = one.new
    return {"spec": spec}


def keys(path: str) -> list[str]:
    """Tags have names with dots."""
    for field in _MAPS:
        if path.startswith(f"{field}."):
            return [*field.split("."), path.removeprefix(f"{field}.")]
    return path.split(".")


def flat(document: Document, prefix: str = "") -> dict[str, object]:
    """Path -> value; a list is one value."""
    found: dict[str, object] = {}
    for key, value in document.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= flat(value, f"{path}.")
        else:
            found[path] = value
    return found


def _in(path: str, field: str) -> bool:
    return path == field or path.startswith(f"{field}.")


def _shown(value: object) -> str:
    if value is None:
        return "absent"
    return str(value).lower() if isinstance(value, bool) else str(value)
