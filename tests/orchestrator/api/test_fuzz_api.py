"""Whatever a caller with a token sends, the answer is one that is documented, and never a failure of ours."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.api import Service

from orchestrator.spec import TrainingJob

Json = dict[str, Any]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1, 2**31, 2**63, 10**18, 10**300, 1e308, 5e-324, -0.0, 0.5])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ["1.00", "USD", "-1", "1e9", "s3://", "file:///", "://", "::", "\x00", "a" * 2000, "../..", "~", "${x}"]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIXED = ("model", "data", "training", "parallelism", "compute", "storage", "checkpoint", "task")
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(Path(tmp_path_factory.mktemp("fuzz")))
    made.create(budget={"limit": "1.00"})
    yield made
    made.close()


def paths(schema: Json, definitions: Json, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Of all fields of a job."""
    node = next((one for one in schema.get("anyOf", []) if "$ref" in one), schema)
    if "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    for name, child in node.get("properties", {}).items():
        yield (*at, name)
        yield from paths(child, definitions, (*at, name))


_SCHEMA = TrainingJob.model_json_schema(by_alias=True)
PATHS = [path for path in paths(_SCHEMA, _SCHEMA["$defs"]) if path[0] != "status"]


def with_value(document: Json, path: tuple[str, ...], value: object) -> Json:
    changed = copy.deepcopy(document)
    node = changed
    for key in path[:-1]:
        below = node.get(key)
        node[key] = node = below if isinstance(below, dict) else {}
    node[path[-1]] = value
    return changed


@QUICK
@given(st.lists(st.tuples(st.sampled_from(PATHS), VALUES), min_size=1, max_size=3), st.sampled_from(["plans", "dry"]))
def test_jobs_with_anything_in_them(shared: Service, changes: list[tuple[tuple[str, ...], object]], where: str) -> None:
    document = shared.document("fuzzed")
    for path, value in changes:
        document = with_value(document, path, value)
    address = "/v1/plans" if where == "plans" else "/v1/jobs?dryRun=true"
    answer = shared.runner.post(address, json={"job": document})
    assert answer.status_code in (200, 402, 409, 422), (changes, answer.text)
    if answer.status_code != 200:
        assert answer.json()["detail"]


@QUICK
@given(st.one_of(st.tuples(st.sampled_from(PATHS), VALUES), st.tuples(st.just(("spec",)), VALUES)))
def test_patches_with_anything_in_them(shared: Service, change: tuple[tuple[str, ...], object]) -> None:
    before = shared.reader.get("/v1/jobs/default/mini").json()
    answer = shared.runner.patch("/v1/jobs/default/mini", json=with_value({}, *change))
    after = shared.reader.get("/v1/jobs/default/mini").json()
    assert answer.status_code in (200, 422), (change, answer.text)
    assert [after["spec"].get(part) for part in FIXED] == [before["spec"].get(part) for part in FIXED]
    assert after == (answer.json() if answer.status_code == 200 else before)
