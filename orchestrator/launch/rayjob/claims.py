"""Volumes named by a job: `pvc://CLAIM/PATH` becomes a folder of the pods. Pure.

Called by the renderer. Invariants: no path leaves its claim; what has to outlive a pod does not lie in one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import Problem
from orchestrator.launch.choices import CLAIM
from orchestrator.launch.rayjob import agreed
from orchestrator.launch.resolve import Resolved
from orchestrator.spec import TrainingJob

MOST_CLAIMS = 8
_CLAIM = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_IN_THE_POD = ("file", "local", "memory")
"""Schemes of fsspec whose files go with the pod."""


@dataclass
class Claims:
    """Claims that pods mount, and what is wrong with how they are named."""

    names: set[str]
    problems: list[Problem]

    def folder(self, field: str, uri: str) -> str:
        """Where `uri` lies for a pod: a URL of another kind, and a path, stay as they are."""
        if not uri.startswith(CLAIM):
            return uri
        claim, _, path = uri.removeprefix(CLAIM).partition("/")
        if not _CLAIM.fullmatch(claim):
            self._wrong(field, f"{uri!r} names no volume claim: write {CLAIM}CLAIM/PATH")
        elif wrong := _leaves(path):
            self._wrong(field, f"{uri!r} {wrong}: write the plain path within the claim")
        else:
            self.names.add(claim)
            return f"{agreed.CLAIMS}/{claim}/{path}".rstrip("/")
        return uri

    def storage(self, field: str, uri: str) -> str:
        """The same for the job's storage, which has to outlive the pods."""
        folder = self.folder(field, uri)
        scheme, separator, path = folder.partition("://")
        if not separator:
            scheme, path = "file", folder
        if scheme.lower() in _IN_THE_POD and not self._is_mounted(path):
            self._wrong(
                field,
                f"{uri!r} lies within a pod and is gone with it: give a folder of a volume claim ({CLAIM}CLAIM/PATH) "
                "or the URL of an object store (s3://...)",
            )
        return folder

    def _is_mounted(self, path: str) -> bool:
        return ".." not in path.split("/") and any(path.startswith(f"{agreed.CLAIMS}/{name}/") for name in self.names)

    def _wrong(self, field: str, message: str) -> None:
        problem = Problem(f"spec.{field}", message)
        if problem not in self.problems:
            self.problems.append(problem)


def mounted(uri: str) -> str:
    """Where `uri` lies for a pod that mounts its claim; it was rendered, so that nothing is wrong with it."""
    return Claims(set(), []).folder("", uri)


def _leaves(path: str) -> str | None:
    """Why a path might not stay in its claim, or might be read in two ways."""
    parts = path.rstrip("/").split("/") if path else []
    if ".." in parts or "." in parts:
        return 'has "." or ".." as part of its path'
    if "" in parts:
        return 'has "//" in its path'
    strange = sorted({character for character in path if character in "%\\?#" or not character.isprintable()})
    return f"has {', '.join(map(repr, strange))} in its path" if strange else None


def for_pods(job: TrainingJob, resolved: Resolved) -> tuple[Resolved, tuple[str, ...], list[Problem]]:
    """-> the configuration as pods have to read it, claims to mount (sorted), what is wrong."""
    claim = job.spec.storage.claim
    claims = Claims({claim} if claim is not None else set(), [])
    recipe, tokenizer = resolved.recipe, job.spec.data.tokenizer
    if tokenizer is not None:
        claims.folder("data.tokenizer", tokenizer)  # mounted for the driver, which reads it where the job says
    changed: dict[str, Any] = {"data": claims.folder("data.source", recipe.data)}
    if recipe.init_from is not None:
        changed["init_from"] = claims.folder("model.initFrom", recipe.init_from)
    changed["eval_tasks"] = tuple(claims.folder("training.evaluation.tasks", task) for task in recipe.eval_tasks)
    storage = claims.storage("checkpoint.uri", resolved.storage_uri)
    where = claims.storage("checkpoint.uri", recipe.checkpoint.uri)
    changed["checkpoint"] = recipe.checkpoint.model_copy(update={"uri": where})
    if len(claims.names) > MOST_CLAIMS:
        message = f"the job names {len(claims.names)} claims, pods mount at most {MOST_CLAIMS}: put more into one claim"
        claims.problems.append(Problem("spec.storage.claim", message))
    update = {"recipe": recipe.model_copy(update=changed), "storage_uri": storage}
    return resolved.model_copy(update=update), tuple(sorted(claims.names)), claims.problems
