"""What anybody writes into any field that takes text: refused, or in the mounted configuration and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError
from support.rendering import commands, find, rendered, resolved, values
from support.store import small_document

from orchestrator.crd.schema import leaves, resource_schema
from orchestrator.errors import InvalidJob
from orchestrator.launch.rayjob import Rendered, agreed
from orchestrator.launch.rayjob.hooks import head_hook, worker_hook
from orchestrator.spec import TrainingJob
from orchestrator.store.resource import stored_of

Json = dict[str, Any]
MARK = "zqx"
"""In no word of ours."""
HOSTILE = ("$(id)", "`id`", "; id", "| id", "&& id", "a\nb", "a\rb", "'", '"', "\\", "${HOME}", "$HOME", "%s", "{{x}}",
           "../..", " --x", "*", "\u2028", "\u202e", "\x1b[2J", "\0", "#", "> /x", "<(id)", "é")  # fmt: skip
STORAGES = ({}, {"claim": "team"}, {"secretRef": "s3"})
LEAVES = dict(leaves(resource_schema()["properties"]["spec"], "spec"))


def _holds(node: Json) -> Json:
    """What a list or a map has in it; a value holds itself."""
    return dict(node.get("items") or node.get("additionalProperties") or node)


TEXTS = sorted(path for path, node in LEAVES.items() if _holds(node)["type"] == "string" and "enum" not in _holds(node))
FREE = {
    "spec.data.source", "spec.data.tokenizer", "spec.data.license", "spec.data.provenance", "spec.checkpoint.uri",
    "spec.tracking.experiment", "spec.tracking.tags", "spec.training.evaluation.tasks", "spec.model.initFrom",
    "spec.notify.url",
}  # fmt: skip
"""That take nearly any text. All others have a form that leaves no room."""


def with_text(path: str, text: str, storage: Json) -> Json:
    """A job for a cluster with this text in one field; a list or a map holds it as its only value."""
    document = small_document("mini", "team-a")
    document["spec"] |= {"storage": dict(storage), "data": {"source": "pvc://team/data"}}
    document["spec"]["checkpoint"] = {"uri": "s3://bucket/x"}
    *parents, last = path.removeprefix("spec.").split(".")
    node = document["spec"]
    for name in parents:
        node = node.setdefault(name, {})
    if path.startswith("spec.budget."):
        node.setdefault("limit", "5.00")
    node[last] = {"array": [text], "object": {"note": text}}.get(LEAVES[path]["type"], text)
    return document


def attempts(path: str) -> list[tuple[str, Rendered]]:
    """Those of all hostile texts, in all places of them, that are not refused."""
    found: list[tuple[str, Rendered]] = []
    for text in HOSTILE:
        for form in (f"{MARK}{text}", f"{text}{MARK}", f"s3://{MARK}/{text}", f"https://{MARK}.test/{text}"):
            for storage in STORAGES:
                try:
                    job = TrainingJob.model_validate(with_text(path, form, storage), by_alias=True, by_name=False)
                    found.append((form, rendered(job)))
                except (ValidationError, InvalidJob):
                    continue
    return found


def require_only_configuration(made: Rendered) -> None:
    entry, _, head, _, worker = commands(made.objects)
    assert entry == agreed.ENTRYPOINT
    assert head == head_hook(_seconds(made))
    assert worker == worker_hook(_seconds(made))
    data = find(made, "ConfigMap")["data"]
    for path, value in values(made.objects):
        if isinstance(value, str) and MARK in value:
            assert path.endswith(("/data/job.json", "/data/resolved.json")), (path, value)
    spec = made.ray_job["spec"]
    assert not {"runtimeEnvYAML", "entrypointResources", "entrypointNumCpus", "metadata"} & set(spec)
    assert MARK in json.dumps(data)


def _seconds(made: Rendered) -> int:
    [head] = [made.ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]]
    return int(next(one["value"] for one in head["env"] if one["name"] == "FATHOM_STOP_SECONDS"))


@pytest.mark.parametrize("path", TEXTS)
def test_a_hostile_text_is_refused_or_stays_in_the_configuration(path: str) -> None:
    taken = attempts(path)
    for _, made in taken:
        require_only_configuration(made)
    assert bool(taken) is (path in FREE), "a form that was changed is looked at by somebody"


def test_the_name_of_a_tag_is_text_too() -> None:
    for text in HOSTILE:
        document = with_text("spec.data.license", "x", {})
        document["spec"]["tracking"] = {"tags": {f"{MARK}{text}": "x"}}
        try:
            made = rendered(TrainingJob.model_validate(document, by_alias=True, by_name=False))
        except ValidationError:
            continue
        require_only_configuration(made)


def test_texts_of_every_kind_are_tried() -> None:
    assert set(TEXTS) >= FREE
    assert len(TEXTS) > 20


def test_labels_and_annotations_of_a_job_are_not_those_of_its_attempts() -> None:
    """Those of Kueue and Ray are orders to them; ours are, too: a job's own are copied nowhere."""
    document = with_text("spec.data.license", "x", {})
    others = {
        "kueue.x-k8s.io/queue-name": MARK, "ray.io/cluster": MARK, "fathom.dev/team": MARK, "fathom.dev/job": MARK,
        "app.kubernetes.io/name": MARK, "example.com/own": MARK,
    }  # fmt: skip
    metadata = {"uid": "0b3f2c54", "generation": 1, "resourceVersion": "1", "creationTimestamp": "2026-06-01T12:00:00Z"}
    metadata |= {"labels": others, "annotations": others, "finalizers": [f"{MARK}/x"]}
    stored = stored_of(document | {"metadata": document["metadata"] | metadata})
    job = stored.wish.job
    assert MARK not in json.dumps(rendered(job, resolved=resolved(job)).objects)
