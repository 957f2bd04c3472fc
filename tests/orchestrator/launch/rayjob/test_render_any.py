"""What holds for every job that is valid, and any settings of these."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from support.rendering import (
    IMAGE,
    UID,
    commands,
    environment,
    find,
    job,
    rendered,
    resolved,
    restricted,
    templates,
    values,
)

from orchestrator.cost.budget import Reserve
from orchestrator.errors import InvalidJob
from orchestrator.launch.rayjob import ClusterSettings, Rendered, agreed
from orchestrator.launch.rayjob.hooks import head_hook, worker_hook
from orchestrator.launch.resolve import Resolved
from orchestrator.spec import TrainingJob

MARK = "zqx"
"""In no word of ours."""
NASTY = st.sampled_from(
    ["$(id)", "`id`", "; rm -rf /", "' \" \\", "${HOME}", "| tee /x", "&& x", "\u2028", "../..", "%s"]
)
TEXT = st.builds(
    lambda a, b: f"{MARK}{a}{b}", NASTY, st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=20)
)
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")
LABEL_KEY = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")

names = st.from_regex(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True)
namespaces = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
objects = st.from_regex(r"[a-z0-9]([-.a-z0-9]{0,60}[a-z0-9])?", fullmatch=True)


@st.composite
def computes(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        found: dict[str, Any] = {"accelerator": "cpu", "workers": draw(st.integers(1, 1000))}
    else:
        per_node = draw(st.sampled_from([1, 2, 4, 8]))
        gpus = per_node * draw(st.integers(1, 512))
        accelerator = draw(st.sampled_from(["A100", "H100", "H800", "H200", "B200"]))
        found = {"accelerator": accelerator, "gpus": gpus, "gpusPerNode": per_node}
    if draw(st.booleans()):
        found["cpuPerWorker"] = draw(st.integers(1, 1024))
    if draw(st.booleans()):
        found["memoryPerWorker"] = (
            f"{draw(st.integers(1, 999))}{draw(st.sampled_from(['', 'k', 'M', 'Mi', 'Gi', 'T']))}"
        )
    if draw(st.booleans()):
        found["serviceAccountName"] = draw(objects)
    if draw(st.booleans()):
        found["image"] = draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,80}", fullmatch=True)) + IMAGE[-72:]
    return found


@st.composite
def storages(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    """-> storage, checkpoint.uri."""
    if draw(st.booleans()):
        return {"secretRef": draw(objects)}, f"s3://bucket/{draw(TEXT)}"
    claim = draw(objects)
    path = draw(st.from_regex(r"[a-z0-9_$;`()'\" -]{1,40}(/[a-z0-9_$;]{1,20}){0,3}", fullmatch=True))
    return {"claim": claim}, f"pvc://{claim}/{path}"


@st.composite
def jobs(draw: st.DrawFn) -> TrainingJob:
    storage, uri = draw(storages())
    queue = {"name": draw(namespaces), "priorityClass": draw(objects)} if draw(st.booleans()) else {}
    return job(
        draw(names),
        namespace=draw(namespaces),
        compute=draw(computes()),
        data={"source": f"s3://data/{draw(TEXT)}", "license": draw(TEXT), "provenance": draw(TEXT)},
        storage=storage,
        checkpoint={"uri": uri},
        tracking={"experiment": draw(TEXT), "tags": {"note": draw(TEXT)}},
        queue=queue,
    )


cluster_settings = st.builds(
    lambda digest, topology, isolated, ca, label: ClusterSettings.model_validate(
        {
            "images": {"train": IMAGE, "requireDigest": digest},
            "topology": {"level": "example.com/rack"} if topology else None,
            "isolation": {"enabled": isolated},
            "controller": {"certificateAuthority": ca},
            "labels": {"example.com/centre": label},
        }
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "-----BEGIN CERTIFICATE-----"]),
    st.from_regex(r"[A-Za-z0-9]{0,63}", fullmatch=True),
)
reserves = st.builds(Reserve, heartbeat=st.floats(0, 1e4), save=st.floats(0, 1e4), grace=st.floats(0, 1e4))
attempts = st.integers(1, 999)
any_times = limits(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@any_times
@given(jobs(), cluster_settings, attempts, reserves)
def test_every_valid_job(of: TrainingJob, by: ClusterSettings, attempt: int, reserve: Reserve) -> None:
    decided = resolved(of, attempt, reserve=reserve)
    before = decided.model_dump_json()
    made = rendered(of, by, resolved=decided)
    assert decided.model_dump_json() == before
    assert rendered(of, by, resolved=decided) == made, "the same again"
    assert json.loads(json.dumps(made.objects, allow_nan=False)) == list(made.objects)
    _names_are_safe(made)
    _pods_are_restricted(made)
    _nothing_of_the_user_is_executed(made)
    _the_time_to_stop_is_bounded(made, by)


def _names_are_safe(made: Rendered) -> None:
    assert DNS_1035.fullmatch(made.name)
    assert len(made.name) <= 47
    for path, value in values(made.objects):
        if "/labels/" in path or "/matchLabels/" in path or "/nodeSelector/" in path:
            assert LABEL_VALUE.fullmatch(value), (path, value)
    for one in [*made.objects, *templates(made).values()]:
        for key in [*one["metadata"]["labels"], *one["metadata"].get("annotations", {})]:
            assert LABEL_KEY.fullmatch(key), key


def _pods_are_restricted(made: Rendered) -> None:
    for name, template in templates(made).items():
        assert restricted(template["spec"]) == [], name
        assert template["spec"]["automountServiceAccountToken"] is False
        memory = template["spec"]["containers"][0]["resources"]
        assert memory["limits"]["memory"] == memory["requests"]["memory"]


def _nothing_of_the_user_is_executed(made: Rendered) -> None:
    entry, _, head, _, worker = commands(made.objects)
    seconds = int(environment(templates(made)["head"])["FATHOM_STOP_SECONDS"])
    assert (entry, head, worker) == (agreed.ENTRYPOINT, head_hook(seconds), worker_hook(seconds))
    data = find(made, "ConfigMap")["data"]
    assert all(MARK in data.pop(name) for name in ("job.json", "resolved.json"))
    assert MARK not in json.dumps(made.objects)


def _the_time_to_stop_is_bounded(made: Rendered, by: ClusterSettings) -> None:
    seconds = int(environment(templates(made)["head"])["FATHOM_STOP_SECONDS"])
    assert by.stopping.least_seconds <= seconds <= by.stopping.most_seconds
    for name in ("head", "workers"):
        assert templates(made)[name]["spec"]["terminationGracePeriodSeconds"] == seconds + by.stopping.end_seconds


@any_times
@given(jobs(), attempts, st.data())
def test_the_hash_is_another_if_and_only_if_something_else_is(
    of: TrainingJob, attempt: int, data: st.DataObject
) -> None:
    by = ClusterSettings.model_validate({"images": {"train": IMAGE}})
    made = rendered(of, by, attempt=attempt)
    changed: dict[str, Any] = data.draw(
        st.sampled_from(
            [
                {"resolved": resolved(of, attempt, incarnation="another")},
                {"resolved": resolved(of, attempt, stall_seconds=301.0)},
                {"resolved": resolved(of, attempt, reserve=Reserve(save=301.0))},
                {"attempt": attempt % 999 + 1},
                {"attempt": attempt, "signing_key": b"another key" * 4},
                {"attempt": attempt, "suspects": ("node-1",)},
                {"attempt": attempt, "settings": by.model_copy(update={"start_seconds": 1801})},
                {"attempt": attempt, "settings": by.model_copy(update={"labels": {"a": "b"}})},
            ]
        )
    )
    other = rendered(of, **({"settings": by} | changed))
    assert _without_hash(other) != _without_hash(made), "this change is one"
    assert other.content_hash != made.content_hash
    assert rendered(of, by, attempt=attempt).content_hash == made.content_hash
    for one in (made, other):
        assert {x["metadata"]["labels"][agreed.CONTENT_HASH] for x in one.objects} == {one.content_hash}


def _without_hash(made: Rendered) -> list[Any]:
    found = copy.deepcopy(list(made.objects))
    for one in found:
        del one["metadata"]["labels"][agreed.CONTENT_HASH]
    return found


@any_times
@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=60))
def test_no_path_of_a_claim_leaves_it(path: str) -> None:
    uri = f"pvc://team-data/{path}"
    assume(len(uri) <= 1024)
    refused: list[str] = []
    try:
        made = rendered(job(checkpoint={"uri": uri}))
    except InvalidJob as error:
        refused = [problem.path for problem in error.problems]
    if refused:
        assert refused == ["spec.checkpoint.uri"]
        return
    inside = Resolved.model_validate_json(find(made, "ConfigMap")["data"]["resolved.json"])
    parts = inside.storage_uri.split("/")
    assert parts[:4] == ["", "mnt", "claims", "team-data"]
    assert not {"", ".", ".."} & set(parts[1:])
    assert inside.job.uid == UID


@pytest.mark.parametrize("mark", [MARK])
def test_the_mark_is_in_no_word_of_ours(mark: str) -> None:
    assert mark not in json.dumps(rendered(job()).objects)
