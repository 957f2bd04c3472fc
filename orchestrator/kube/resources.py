"""Kinds of objects, and the address of one of them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import UsageError

Json = dict[str, Any]
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,252}")


@dataclass(frozen=True)
class Target:
    """One object, or all of its kind: in a namespace, or in the cluster."""

    group: str
    """Empty for the core group."""
    version: str
    plural: str
    kind: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    def at(self, namespace: str, name: str = "") -> Target:
        """The object of that name; without a name all of that namespace."""
        return replace(self, namespace=namespace, name=name, subresource="")

    @property
    def status(self) -> Target:
        """Its subresource."""
        return replace(self, subresource="status")

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def path(self) -> str:
        """On the server. UsageError for a name that would lead elsewhere."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespace:
            parts += ["namespaces", self.namespace]
        parts += [part for part in (self.plural, self.name, self.subresource) if part]
        for part in parts:
            if not _SEGMENT.fullmatch(part):
                raise UsageError(f"{part!r} cannot be a name in Kubernetes: use letters, digits, '-' and '.'")
        return "/" + "/".join(parts)

    @property
    def collection(self) -> Target:
        """Where it is created."""
        return replace(self, name="", subresource="")

    def __str__(self) -> str:
        """`TrainingJob team-a/v3-mini`, as messages say it."""
        where = "/".join(part for part in (self.namespace, self.name) if part)
        return f"{self.kind} {where}".strip() + (f" ({self.subresource})" if self.subresource else "")


TRAINING_JOBS = Target("fathom.dev", "v1alpha1", "trainingjobs", "TrainingJob")
EVENTS = Target("events.k8s.io", "v1", "events", "Event")
LEASES = Target("coordination.k8s.io", "v1", "leases", "Lease")
ACCOUNTS = Target("", "v1", "serviceaccounts", "ServiceAccount")
TOKEN_REVIEWS = Target("authentication.k8s.io", "v1", "tokenreviews", "TokenReview")
ACCESS_REVIEWS = Target("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview")


def key_of(found: Json) -> str:
    """`namespace/name`, or the name alone where there is no namespace. ValueError if it has no name."""
    metadata = found.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise ValueError("an object without metadata.name")
    namespace = metadata.get("namespace")
    return f"{namespace}/{metadata['name']}" if namespace else str(metadata["name"])
