"""Names, labels and owner of what belongs to an attempt. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.launch.choices import refusal
from orchestrator.launch.rayjob import agreed
from orchestrator.launch.resolve import Resolved
from orchestrator.spec import TrainingJob

Object = dict[str, Any]

MOST_ATTEMPTS = 999
MAX_NAME = 47
"""Of a RayJob: a longer one is taken by the API server and then refused by KubeRay for good."""
_HASH_CHARACTERS = 40


def attempt_name(job: str, attempt: int) -> str:
    """Of all objects of an attempt. InvalidJob from the thousandth attempt on."""
    if attempt > MOST_ATTEMPTS:
        raise refusal(
            "retry.maxAttempts",
            f"attempt {attempt} has no name: names have room for {MOST_ATTEMPTS} attempts; submit it as a new job",
        )
    name = f"{job}-a{attempt}"
    assert len(name) <= MAX_NAME, "names of jobs have at most 40 characters"
    return name


def labels(job: TrainingJob, resolved: Resolved, own: Mapping[str, str]) -> dict[str, str]:
    """Of all objects and pods of an attempt; `own` are the platform team's."""
    compute = job.spec.compute
    return {
        **own,
        agreed.MANAGED_BY: "fathom",
        agreed.JOB: resolved.job.name,
        agreed.JOB_UID: resolved.job.uid,
        agreed.ATTEMPT: str(resolved.attempt),
        agreed.TEAM: resolved.job.namespace,
        agreed.ACCELERATOR: compute.accelerator,
        agreed.PRICE_CLASS: compute.price_class,
    }


def owner(resolved: Resolved) -> Object:
    """The TrainingJob, with which all its objects go. Blocking its deletion takes update of trainingjobs/finalizers."""
    return {
        "apiVersion": "fathom.dev/v1alpha1",
        "kind": "TrainingJob",
        "name": resolved.job.name,
        "uid": resolved.job.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def content_hash(objects: Sequence[Object]) -> str:
    """Of everything in them, for a label: half of SHA-256's digits and some."""
    text = json.dumps(objects, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_CHARACTERS]
