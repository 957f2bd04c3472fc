"""Whatever the document, models and API server agree: both take it and mean the same, or neither takes it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.apiserver import ApiServer
from support.kube_jobs import KubeJobs, job_of
from support.store import small_document

from orchestrator.crd.schema import leaves, resource_schema
from orchestrator.explain import EXAMPLES
from orchestrator.schema import Schema
from orchestrator.spec import TrainingJob

pytestmark = pytest.mark.kube
Json = dict[str, Any]
SPEC = resource_schema()["properties"]["spec"]
LEAVES = dict(leaves(SPEC, "spec"))
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)  # half characters are no JSON
HOSTILE = (
    st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1, 2**31, 2**63, 10**18, 10**300, 1e308, 5e-324, -0.0, 0.5, 1.0, 1e3])
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS
    | st.sampled_from(["1.00", "USD", "-1", "1e9", "2Gi", "s3://x", "\x00", "a" * 2000, "mini\n", " ", "cpu"])
    | st.lists(st.integers() | WORDS, max_size=3)
    | st.dictionaries(WORDS, WORDS | st.integers(), max_size=3)
)


def valid(schema: Schema) -> st.SearchStrategy[Any]:
    """What the schema allows of one value."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            low, high = schema["minimum"], schema["maximum"]
            return st.integers(low, min(high, low + 64)) | st.integers(low, high)
        case "number":
            bounds = {
                "min_value": float(schema["minimum"]),
                "max_value": float(schema["maximum"]),
                "exclude_min": schema.get("exclusiveMinimum", False),
                "exclude_max": schema.get("exclusiveMaximum", False),
            }
            return st.floats(**bounds) | st.sampled_from([0.25, 0.5, 0.75, 1, 1.0])
        case "array":
            return st.lists(valid(schema["items"]), min_size=schema.get("minItems", 0), max_size=4)
        case "object" if "properties" in schema:
            return st.fixed_dictionaries({name: valid(one) for name, one in schema["properties"].items()})
        case "object":
            return st.dictionaries(st.sampled_from(["a", "team x", "mlflow.a", "é"]) | WORDS, valid(_values(schema)))
    if "pattern" in schema:
        return st.from_regex(schema["pattern"]).filter(lambda text: len(text) <= schema["maxLength"])
    return WORDS


def _values(schema: Schema) -> Schema:
    found: Schema = schema["additionalProperties"]
    return found


def changed(document: Json, path: str, value: object) -> Json:
    made = copy.deepcopy(document)
    *parents, last = path.split(".")
    node = made
    for name in parents:
        below = node.get(name)
        node[name] = node = below if isinstance(below, dict) else {}
    node[last] = value
    return made


@st.composite
def documents(draw: st.DrawFn) -> Json:
    """A good job in which a few values are others, good ones mostly."""
    document: Json = draw(st.sampled_from([small_document(), *EXAMPLES]))
    for _ in range(draw(st.integers(1, 5))):
        path = draw(st.sampled_from(sorted(LEAVES)))
        value = draw(HOSTILE if draw(st.integers(0, 9)) == 0 else valid(LEAVES[path]))
        document = changed(document, path, value)
    return document


def without_points(value: Any, schema: Schema) -> Any:  # noqa: ANN401 - any JSON value
    """1000 for 1000.0 where a whole number is wanted: Kubernetes may take it, the models do not."""
    if isinstance(value, dict) and "properties" in schema:
        known = schema["properties"]
        return {name: without_points(one, known.get(name, {})) for name, one in value.items()}
    whole = schema.get("type") == "integer" and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


@pytest.fixture(scope="module")
def shared(api_server: ApiServer, trainingjobs: Json) -> KubeJobs:
    """Nothing is kept there."""
    return KubeJobs(api_server.client(), api_server.namespace())


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=documents())
@example(document=small_document(training={"tokens": 1, "schedule": {"constantShare": 0.3, "decayShare": 0.7}}))
@example(document=small_document(data={"source": "x", "license": ""}))
@example(document=small_document(tracking={"tags": {}}))
@example(document=small_document(model={"preset": "mini\n"}))
@example(document=small_document(parallelism={"zeroStage": False}))
def test_models_and_server_agree(shared: KubeJobs, document: Json) -> None:
    document = shared.mine(without_points(document, {"properties": {"spec": SPEC}}))
    answer = shared.post(document, dry=True)
    job, why = _parsed(document)
    assert (answer.status_code == 201) is (job is not None), (document["spec"], why, answer.text)
    assert answer.status_code in (201, 400, 422)
    assert job is None or job_of(answer.json()) == job


def _parsed(document: Json) -> tuple[TrainingJob | None, str]:
    try:
        return TrainingJob.model_validate(document, by_alias=True, by_name=False), ""
    except ValidationError as error:
        return None, str(error)
