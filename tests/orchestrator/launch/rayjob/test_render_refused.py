"""Jobs that a cluster's settings do not allow, each refused by field, with what to do."""

from __future__ import annotations

from typing import Any

import pytest
from support.rendering import IMAGE, SETTINGS, container, job, rendered, resolved, templates

from orchestrator.errors import InvalidJob
from orchestrator.launch.rayjob import ClusterSettings

GPU: dict[str, Any] = {"accelerator": "H100", "gpus": 16, "gpusPerNode": 8}


def settings(**changes: Any) -> ClusterSettings:  # noqa: ANN401 - parts of the document
    return ClusterSettings.model_validate({"images": {"train": IMAGE}} | changes)


def refusals(of: Any, *, by: ClusterSettings = SETTINGS, **arguments: Any) -> list[tuple[str, str]]:  # noqa: ANN401
    with pytest.raises(InvalidJob) as caught:
        rendered(of, by, **arguments)
    return [(problem.path, problem.message) for problem in caught.value.problems]


def refusal(of: Any, *, by: ClusterSettings = SETTINGS, **arguments: Any) -> tuple[str, str]:  # noqa: ANN401
    [one] = refusals(of, by=by, **arguments)
    return one


def test_the_thousandth_attempt_has_no_name() -> None:
    path, message = refusal(job(), attempt=1000)
    assert path == "spec.retry.maxAttempts"
    assert "attempt 1000" in message
    assert "999" in message


def test_a_configuration_that_no_configmap_holds_is_refused_with_both_numbers() -> None:
    long = resolved(job()).model_copy(update={"incarnation": "é" * 2**19})
    path, message = refusal(job(), resolved=long)
    assert path == "spec"
    assert "1048576" in message
    taken = int(message.split(" bytes")[0].split()[-1])
    assert 2**20 < taken < 2**20 + 10_000, "as bytes, not as characters"
    room = taken - 2**20
    rendered(job(), resolved=resolved(job()).model_copy(update={"incarnation": "é" * (2**19 - -(-room // 2))}))


def test_an_image_by_tag_is_refused_unless_allowed() -> None:
    of = job(compute={"accelerator": "cpu", "workers": 2, "image": "registry.example.com/train:latest"})
    path, message = refusal(of)
    assert path == "spec.compute.image"
    assert "registry.example.com/train:latest" in message
    assert "NAME@sha256:" in message
    lax = rendered(of, settings(images={"requireDigest": False}))
    assert {container(template)["image"] for template in templates(lax).values()} == {
        "registry.example.com/train:latest"
    }


@pytest.mark.parametrize(
    "digest", ["@sha256:" + "5f" * 31, "@sha256:" + "5F" * 32, "@sha256:" + "5f" * 33, "@sha512:ab"]
)
def test_half_a_digest_is_none(digest: str) -> None:
    of = job(compute={"accelerator": "cpu", "workers": 2, "image": f"example.com/train{digest}"})
    assert refusal(of)[0] == "spec.compute.image"


def test_images_of_other_registries_are_refused() -> None:
    path, message = refusal(
        job(), by=settings(images={"train": IMAGE, "allowed": ["example.com/a/", "example.com/b/"]})
    )
    assert path == "spec.compute.image"
    assert "example.com/a/ or example.com/b/" in message


@pytest.mark.parametrize(
    ("allowed", "whether"),
    [
        ("registry.example.com/ml/", True),
        ("registry.example.com/ml", True),
        ("registry.example.com", True),
        ("registry.example.com/ml/fathom-train", True),
        ("registry.example.com/ml/fathom", False),
        ("registry.example", False),
        ("example.com/ml", False),
        (IMAGE, True),
    ],
)
def test_what_is_allowed_ends_where_a_part_of_the_name_does(allowed: str, whether: bool) -> None:
    by = settings(images={"train": IMAGE, "allowed": ["elsewhere.org", allowed]})
    if whether:
        assert rendered(job(), by)
    else:
        assert refusal(job(), by=by)[0] == "spec.compute.image"


def test_no_image_at_all() -> None:
    path, message = refusal(job(), by=ClusterSettings())
    assert (path, "images.train" in message) == ("spec.compute.image", True)


def test_names_that_are_not_allowed() -> None:
    compute = {"accelerator": "cpu", "workers": 2, "serviceAccountName": "builder"}
    of = job(compute=compute, storage={"secretRef": "root-password"}, queue={"name": "q", "priorityClass": "urgent"})
    assert rendered(of), "all, unless the settings name some"
    allowed = {"serviceAccounts": ["trainer"], "secrets": ["s3", "s3-eu"], "priorityClasses": ["low"]}
    found = dict(refusals(of, by=settings(allowed=allowed)))
    assert list(found) == ["spec.compute.serviceAccountName", "spec.storage.secretRef", "spec.queue.priorityClass"]
    assert "'root-password', which jobs of this cluster may not name: use s3 or s3-eu" in found[list(found)[1]]
    allowed = {"serviceAccounts": ["builder"], "secrets": ["root-password"], "priorityClasses": ["urgent"]}
    assert rendered(of, settings(allowed=allowed))
    assert rendered(job(), settings(allowed=allowed)), "who names none gets an account of the attempt"


def test_machines_that_the_cluster_does_not_have() -> None:
    table = {"accelerators": {"H100": {"perNode": 4}, "cpu": {}}}
    path, message = refusal(job(compute={"accelerator": "B200", "gpus": 8}), by=settings(**table))
    assert path == "spec.compute.accelerator"
    assert "'B200'" in message
    assert "H100, cpu" in message
    path, message = refusal(job(compute=GPU), by=settings(**table))
    assert path == "spec.compute.gpusPerNode"
    assert "8 GPUs" in message
    assert "have 4" in message
    path, message = refusal(job(compute=GPU | {"priceClass": "spot"}))
    assert path == "spec.compute.priceClass"
    assert "on-demand" in message


def test_machines_that_are_not_filled() -> None:
    path, message = refusal(job(compute={"accelerator": "H100", "gpus": 12}))
    assert path == "spec.compute.gpus"
    assert "12 do not fill machines of 8" in message
    assert rendered(job(compute={"accelerator": "H100", "gpus": 3})), "part of one machine"


def test_a_priority_without_a_queue() -> None:
    path, message = refusal(job(queue={"priorityClass": "high"}))
    assert path == "spec.queue.priorityClass"
    assert "queue.name" in message
    path, message = refusal(job(queue={"name": "q", "priorityClass": "p" * 64}))
    assert path == "spec.queue.priorityClass"
    assert "64" in message
    assert "63" in message


def test_all_that_is_wrong_is_said_at_once() -> None:
    of = job(
        compute={"accelerator": "B200", "gpus": 8, "priceClass": "spot", "image": "train"},
        queue={"priorityClass": "high"},
        checkpoint={"uri": "/tmp/here"},
    )
    by = settings(accelerators={"cpu": {}})
    assert [path for path, _ in refusals(of, by=by)] == [
        "spec.checkpoint.uri",
        "spec.compute.image",
        "spec.queue.priorityClass",
        "spec.compute.accelerator",
        "spec.compute.priceClass",
    ]
