"""URIs of volume claims, and what of a job must not lie within a pod."""

from __future__ import annotations

from typing import Any

import pytest
from support.rendering import find, job, rendered, templates

from orchestrator.errors import InvalidJob
from orchestrator.launch.rayjob.claims import mounted
from orchestrator.launch.resolve import Resolved


def inside(**spec: Any) -> Resolved:  # noqa: ANN401 - parts of a document
    return Resolved.model_validate_json(find(rendered(job(**spec)), "ConfigMap")["data"]["resolved.json"])


def refusals(**spec: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - parts of a document
    with pytest.raises(InvalidJob) as caught:
        rendered(job(**spec))
    return [(problem.path, problem.message) for problem in caught.value.problems]


@pytest.mark.parametrize(
    "path",
    [
        "../other",
        "a/../../b",
        "..",
        "a/..",
        ".",
        "a/./b",
        "//etc",
        "a//b",
        "a%2e%2e/b",
        "%2e%2e",
        "a\\..\\b",
        "a?b",
        "a#b",
    ],
)
def test_paths_that_leave_their_claim_or_may_be_read_in_two_ways(path: str) -> None:
    [(field, message)] = refusals(checkpoint={"uri": f"pvc://data/{path}"})
    assert field == "spec.checkpoint.uri"
    assert repr(f"pvc://data/{path}") in message


@pytest.mark.parametrize("claim", ["", "Data", "-a", "a_b", "a" * 254, "a b"])
def test_names_that_no_claim_has(claim: str) -> None:
    [(field, message)] = refusals(checkpoint={"uri": f"pvc://{claim}/runs"})
    assert field == "spec.checkpoint.uri"
    assert "pvc://CLAIM/PATH" in message


@pytest.mark.parametrize(
    "uri",
    ["/data/runs", "runs", "file:///data/runs", "FILE:///data", "local:///x", "memory://x", "/mnt/claims/other/x"],
)
def test_checkpoints_within_a_pod_are_refused(uri: str) -> None:
    [(field, message)] = refusals(checkpoint={"uri": uri})
    assert field == "spec.checkpoint.uri"
    assert uri in message
    assert "pvc://CLAIM/PATH" in message


def test_so_are_those_of_a_job_that_names_no_storage() -> None:
    [(field, _)] = refusals(checkpoint={})
    assert field == "spec.checkpoint.uri"


def test_a_path_of_a_mounted_claim_may_be_written_out() -> None:
    found = inside(storage={"claim": "data"}, checkpoint={"uri": "/mnt/claims/data/runs"})
    assert found.storage_uri == "/mnt/claims/data/runs"
    [(field, _)] = refusals(storage={"claim": "data"}, checkpoint={"uri": "/mnt/claims/data/../x"})
    assert field == "spec.checkpoint.uri"


def test_all_that_training_reads_may_lie_on_claims() -> None:
    found = inside(
        data={"source": "pvc://corpus"},
        training={"tokens": 1000, "evaluation": {"tasks": ["pvc://tasks/a.jsonl", "s3://tasks/b.jsonl"]}},
    )
    assert found.recipe.data == "/mnt/claims/corpus"
    assert found.recipe.eval_tasks == ("/mnt/claims/tasks/a.jsonl", "s3://tasks/b.jsonl")


def test_weights_to_start_from_may_lie_on_a_claim() -> None:
    from support.rendering import resolved

    of = job()
    decided = resolved(of)
    recipe = decided.recipe.model_copy(update={"init_from": "pvc://weights/v2/../x"})
    with pytest.raises(InvalidJob) as caught:
        rendered(of, resolved=decided.model_copy(update={"recipe": recipe}))
    assert [problem.path for problem in caught.value.problems] == ["spec.model.initFrom"]


def test_more_claims_than_pods_mount() -> None:
    tasks = [f"pvc://claim-{number}/x" for number in range(9)]
    [(field, message)] = refusals(training={"tokens": 1000, "evaluation": {"tasks": tasks}})
    assert field == "spec.storage.claim"
    assert "9 claims" in message
    assert "at most 8" in message


def test_files_that_only_the_driver_reads_are_mounted_too() -> None:
    data = {"source": "pvc://text/web", "tokenizer": "pvc://tokenizers/v3/tokenizer.json"}
    made = rendered(job(data=data))
    volumes = templates(made)["head"]["spec"]["volumes"]
    claims = [one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one]
    assert claims == ["text", "tokenizers"]
    assert mounted(data["tokenizer"]) == "/mnt/claims/tokenizers/v3/tokenizer.json"
    assert inside(data=data).recipe.data == mounted(data["source"]) == "/mnt/claims/text/web"
    for elsewhere in ("s3://bucket/web", "/data/web"):
        assert mounted(elsewhere) == elsewhere
    assert refusals(data=data | {"tokenizer": "pvc://tokenizers/../x"})[0][0] == "spec.data.tokenizer"
