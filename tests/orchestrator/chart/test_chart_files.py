"""What is written from the models stands in helm/fathom as it is written."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel
from support.helm import CHART, IMAGES, merged

from orchestrator.chart import values as words
from orchestrator.chart.__main__ import FILES
from orchestrator.chart.schema import values_schema
from orchestrator.chart.values import DERIVED, ChartValues
from orchestrator.crd.definition import definition
from orchestrator.launch.rayjob import ClusterSettings

Object = dict[str, Any]


@pytest.mark.parametrize("name", FILES)
def test_the_committed_file_is_the_generated_one(name: str) -> None:
    assert (CHART / name).read_text() == FILES[name](), "run `make docs`"


def test_the_defaults_of_the_file_are_those_of_the_models() -> None:
    file = yaml.safe_load((CHART / "values.yaml").read_text())
    assert ChartValues.model_validate(file) == ChartValues()
    jsonschema.validate(file, values_schema())


def test_values_without_their_comment_signs_are_values() -> None:
    """Whoever takes a comment in use gets the default that it promises."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    start = lines.index("cluster: {}")
    taken = [line.replace("# ", "", 1) for line in lines[start + 1 :] if not line.lstrip().startswith("##")]
    absent = [line for line in taken if not line.rstrip().endswith(":")]
    assert len(absent) > 60
    cluster = yaml.safe_load("\n".join(taken))
    assert cluster.pop("topology") == {"level": None, "required": False}, "is there only if it is asked for"
    assert cluster["controller"].pop("url") is None, "the chart knows it"
    given = ClusterSettings.model_validate({key: value for key, value in cluster.items() if value is not None})
    assert given == ClusterSettings()


def test_every_value_says_what_it_is() -> None:
    for one in vars(words).values():
        if isinstance(one, type) and issubclass(one, BaseModel) and one.__module__ == words.__name__:
            for name, field in one.model_fields.items():
                assert field.description, f"{one.__name__}.{name}"


def test_the_schema_takes_what_the_models_take_and_names_what_they_refuse() -> None:
    schema = values_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for document in (
        IMAGES,
        {"cluster": _settings()},
        {"prices": [_price(amount="2.95")]},
        {"prices": [_price()]},
        _NULLS,
    ):
        jsonschema.validate(document, schema)
        ChartValues.model_validate(document)
    wrong: list[Object] = [
        {"replica": 2},
        {"replicas": 9},
        {"cluster": {"labels": {"not a label": "x"}}},
        {"cluster": {"accelerators": {"H100": {"perNode": 0}}}},
        {"prices": [_price(currency="dollars")]},
        {"budgets": [{"team": "a", "limit": "much", "currency": "USD"}]},
        {"images": {"controller": "x y"}},
        {"persistence": {"accessMode": "ReadOnlyMany"}},
    ]
    for document in wrong:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, schema)
        with pytest.raises(ValueError, match="validation error"):
            ChartValues.model_validate(document)


@pytest.mark.parametrize("path", DERIVED)
def test_what_the_chart_knows_cannot_be_said(path: str) -> None:
    value: Any = "x"
    for name in reversed(path.split(".")):
        value = {name: value}
    with pytest.raises(jsonschema.ValidationError, match="Additional properties are not allowed"):
        jsonschema.validate(value, values_schema())


def test_the_definition_of_the_chart_is_that_of_k8s_crds() -> None:
    """But for its metadata: template words stand nowhere else."""
    text = (CHART / "templates" / "crd.yaml").read_text()
    head, rest = text.split("\nmetadata:\n", 1)
    body = rest[rest.index("spec:\n") :].removesuffix("{{- end }}\n")
    assert "{{" not in body.replace('{{ "{{" }}', "")
    plain = head.split("}}\n")[-1] + "\n" + body.replace('{{ "{{" }}', "{{")
    assert yaml.safe_load(plain) == {key: value for key, value in definition().items() if key != "metadata"}


_NULLS: Object = {"images": {"train": None}, "cluster": {"topology": None, "head": {"place": {"tolerations": [{}]}}}}
"""What is absent may be said to be so."""


def _settings() -> Object:
    """All of them, but what the chart knows."""
    document = ClusterSettings().document()
    del document["images"]
    for name in ("namespace", "podLabels", "port"):
        del document["controller"][name]
    return document


def _price(**changes: Any) -> Object:  # noqa: ANN401 - any value
    base = {"accelerator": "H100", "priceClass": "spot", "amount": 1.5, "currency": "EUR", "unit": "gpu-hour"}
    return merged(base, {"source": "our contract", "date": "2026-07-01"} | changes)
