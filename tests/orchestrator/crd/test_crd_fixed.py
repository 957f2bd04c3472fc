"""What of an accepted job may change: every leaf of the schema is changed once in a real API server."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from support.kube_jobs import NOW, KubeJobs, faults
from support.store import small_document

from orchestrator.api.patch import changes
from orchestrator.crd.schema import leaves, resource_schema
from orchestrator.explain import EXAMPLES
from orchestrator.schema import Schema
from orchestrator.spec import TrainingJob
from orchestrator.spec_words import FIXED, MUTABLE

pytestmark = pytest.mark.kube
Json = dict[str, Any]
SPEC = resource_schema()["properties"]["spec"]
LEAVES = dict(leaves(SPEC, "spec"))
FULL: Json = copy.deepcopy(EXAMPLES[0])
"""A job that gives a value to nearly every field; the second example has the others."""
OTHER: Json = copy.deepcopy(EXAMPLES[1])
TOGETHER: dict[str, Json] = {
    "spec.compute.gpus": {"spec": {"compute": {"gpus": 8}}},
    "spec.compute.gpusPerNode": {"spec": {"compute": {"gpusPerNode": 4}}},
    "spec.compute.accelerator": {"spec": {"compute": {"accelerator": "A100"}}},
    "spec.parallelism.expert": {"spec": {"parallelism": {"expert": 4}}},
    "spec.model.overrides.experts": {"spec": {"model": {"overrides": {"experts": 32}}}},
    "spec.storage.secretRef": {"spec": {"storage": {"secretRef": "others"}}},
    "spec.storage.claim": {"spec": {"storage": {"secretRef": None, "claim": "a"}}},
    "spec.task": {"spec": {"task": "extend-context", "model": {"initFrom": "w", "overrides": {"maxPositions": None}}}},
    "spec.training.extension.factor": {"spec": {"training": {"extension": {"factor": 2.0}}}},
}
"""Changes that need another one beside them, or must fit what is there."""


def there(document: Json, path: str) -> Any:  # noqa: ANN401 - any JSON value
    node: Any = document
    for name in path.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def patch_of(path: str, value: Any) -> Json:  # noqa: ANN401 - any JSON value
    for name in reversed(path.split(".")):
        value = {name: value}
    found: Json = value
    return found


def another(schema: Schema, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """A value that the schema allows, and that is not there yet."""
    match schema["type"]:
        case "boolean":
            return not value
        case "array":
            return [another(schema["items"], None)] if not value else value[:-1]
        case "object" if "properties" in schema:
            required = schema.get("required", [])
            return {name: another(schema["properties"][name], None) for name in required}
        case "object":
            return {"another": "x"}
        case "integer" | "number" if "enum" not in schema:
            return _number(schema, value)
    if "enum" in schema:
        return next(one for one in schema["enum"] if one != value)
    texts = ("another", "7.25", "EUR", "https://x.test/other", "3Gi")
    return next(one for one in texts if one != value and _fits(schema, one))


def _number(schema: Schema, value: Any) -> Any:  # noqa: ANN401 - int or float
    low, high = schema["minimum"], schema["maximum"]
    if value is not None and value * 2 < high and value * 2 > low:
        return value * 2
    return value / 2 if value and schema["type"] == "number" else low + 1 if schema["type"] == "integer" else high / 2


def _fits(schema: Schema, text: str) -> bool:
    import re

    return re.search(schema.get("pattern", ""), text) is not None and len(text) <= schema["maxLength"]


def change(path: str, document: Json) -> Json:
    """A merge patch that changes this one leaf, and what has to change with it."""
    return TOGETHER.get(path) or patch_of(path, another(LEAVES[path], there(document, path)))


def has(path: str) -> Json:
    """The example that the leaf can be changed in."""
    cpu = there(OTHER, path) is not None and there(FULL, path) is None
    return OTHER if cpu or path.startswith("spec.training.extension") else FULL


@pytest.fixture
def accepted(kube_jobs: KubeJobs) -> KubeJobs:
    for document in (FULL, OTHER):
        kube_jobs.create(document)
        kube_jobs.accept(document["metadata"]["name"], phase="Running")
    return kube_jobs


def mutable(path: str) -> bool:
    return any(path == at or path.startswith(f"{at}.") for at in MUTABLE) and path != "spec.queue.priorityClass"


def test_each_leaf_is_fixed_or_may_change(accepted: KubeJobs, kube_jobs: KubeJobs) -> None:
    refused, allowed = set(), set()
    for path in LEAVES:
        name = has(path)["metadata"]["name"]
        before = accepted.get(name)  # with its defaults
        patch = change(path, before)
        answer = accepted.patch(name, patch, dry=True)
        if answer.status_code == 200:
            assert any(one.startswith(path) for one in changes(before, answer.json())), f"{path}: {patch}"
            allowed.add(path)
            continue
        found = faults(answer)
        said = [at for at, messages in found.items() if any("is fixed once" in message for message in messages)]
        assert any(path == at or path.startswith(f"{at}.") for at in said), (path, patch, found)
        refused.add(path)
    assert allowed == {path for path in LEAVES if mutable(path)}
    assert refused == set(LEAVES) - allowed
    assert len(refused) > 80


def test_each_leaf_may_change_before(kube_jobs: KubeJobs) -> None:
    """A job that Accepted=False refuses can be mended; nothing but the acceptance holds a field."""
    for document in (FULL, OTHER):
        kube_jobs.create(document)
    for path in LEAVES:
        name = has(path)["metadata"]["name"]
        if path in TOGETHER:
            continue
        answer = kube_jobs.patch(name, change(path, kube_jobs.get(name)), dry=True)
        assert answer.status_code == 200 or "is fixed" not in answer.text, (path, answer.text)


def test_the_words_are_those_of_the_api(accepted: KubeJobs) -> None:
    found = faults(accepted.patch("v3-mini", {"spec": {"training": {"tokens": 1_048_576}}}))
    assert FIXED in " ".join(found["spec.training.tokens"])


def limits() -> Iterator[tuple[str, bool]]:
    yield from [("9.00", True), ("2.50", True), ("2.5", True), ("2.49", False), ("0.000001", False)]
    yield from [("10", True), ("999999999999.999999", True)]


def test_a_limit_is_not_below_what_is_spent(kube_jobs: KubeJobs) -> None:
    kube_jobs.create(small_document(budget={"limit": "5.00"}))
    cost = {"spent": "2.50", "burnPerHour": "0", "wasted": "0", "currency": "USD"}
    kube_jobs.accept("mini", phase="Running", cost=cost)
    for limit, allowed in limits():
        answer = kube_jobs.patch("mini", {"spec": {"budget": {"limit": limit}}}, dry=True)
        assert (answer.status_code == 200) is allowed, answer.text
        if not allowed:
            said = " ".join(faults(answer)["spec.budget.limit"])
            assert f"{limit} is below the 2.50 USD that are spent already" in said


def test_more_may_be_spent_than_the_limit(kube_jobs: KubeJobs) -> None:
    """What is so must be written, whatever was wished."""
    kube_jobs.create(small_document(budget={"limit": "5.00"}))
    cost = {"spent": "5.01", "burnPerHour": "0", "wasted": "0", "currency": "USD"}
    kube_jobs.accept("mini", phase="Running", cost=cost)
    assert kube_jobs.patch("mini", {"spec": {"suspend": True}}).status_code == 200


def test_a_budget_may_come_and_may_not_go(kube_jobs: KubeJobs) -> None:
    kube_jobs.create(small_document())
    kube_jobs.accept("mini", phase="Running")
    assert kube_jobs.patch("mini", {"spec": {"budget": {"limit": "5.00"}}}).status_code == 200
    assert "is fixed once" in str(faults(kube_jobs.patch("mini", {"spec": {"budget": None}})))


@pytest.mark.parametrize(("phase", "allowed"), [("Pending", True), ("Queued", True), ("Starting", False)])
def test_a_priority_is_fixed_once_admitted(kube_jobs: KubeJobs, phase: str, allowed: bool) -> None:
    kube_jobs.create(small_document())
    kube_jobs.accept("mini", phase=phase)
    answer = kube_jobs.patch("mini", {"spec": {"queue": {"priorityClass": "high"}}})
    assert (answer.status_code == 200) is allowed
    if not allowed:
        said = " ".join(faults(answer)["spec.queue.priorityClass"])
        assert f"is fixed once the job is admitted, and it is {phase}" in said


def test_the_whole_document_with_one_change_can_be_applied(kube_jobs: KubeJobs) -> None:
    """What is absent is absent again: defaults are no change."""
    kube_jobs.create(small_document(budget={"limit": "1.00"}))
    kube_jobs.accept("mini", phase="Running")
    document = kube_jobs.mine(small_document(budget={"limit": "2.00"}))
    document["metadata"]["resourceVersion"] = kube_jobs.get("mini")["metadata"]["resourceVersion"]
    assert kube_jobs.put(document).json()["spec"]["budget"]["limit"] == "2.00"


def test_the_largest_job_can_be_judged(kube_jobs: KubeJobs) -> None:
    """Kubernetes refuses what its rules take too long for."""
    uri, message = "s3://" + "x" * 1019, "m" * 1024
    document = small_document(
        model={"preset": "mini", "initFrom": uri},
        data={"source": uri, "mixture": [{"source": f"s{n}", "weight": n + 1.5} for n in range(64)]},
        training={"tokens": 10**15, "evaluation": {"tasks": [uri] * 16}},
        budget={"limit": "999999999999.000001", "warnAt": [(n + 1) / 11 for n in range(10)]},
        tracking={"tags": {f"{n:03d}".ljust(100, "t"): "v" * 500 for n in range(32)}},
        notify={"url": "https://x.test/" + "p" * 2000},
        parallelism={"expert": 1000},
        compute={"accelerator": "cpu", "workers": 1000},
    )
    name = document["metadata"]["name"] = "n" * 40
    kube_jobs.create(document)
    choices = [{"path": "p" * 200, "value": message, "reason": message}] * 100
    attempts = [{"number": n + 1, "startedAt": NOW, "reason": message, "gpuHours": "1.5"} for n in range(20)]
    cost = {"spent": "999999999999.000000", "burnPerHour": "0", "wasted": "0", "currency": "USD"}
    kube_jobs.accept(name, phase="Running", plan={"choices": choices}, attempts=attempts, attemptCount=20, cost=cost)
    assert kube_jobs.patch(name, {"spec": {"suspend": True}}).status_code == 200
    assert kube_jobs.patch(name, {"spec": {"budget": {"limit": "999999999999.999999"}}}).status_code == 200
    refused = kube_jobs.patch(name, {"spec": {"budget": {"limit": "999999999998.999999"}}})
    assert "spec.budget.limit" in faults(refused)


def test_the_examples_reach_every_leaf() -> None:
    for document in (FULL, OTHER):
        TrainingJob.model_validate(document)
    assert all(path in TOGETHER or another(one, there(has(path), path)) is not None for path, one in LEAVES.items())
