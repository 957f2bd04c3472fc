from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator.crd.columns import printer_columns
from orchestrator.crd.definition import definition, text
from orchestrator.crd.fixed import fixed_rules
from orchestrator.crd.rules import RULES, filled
from orchestrator.crd.schema import LIST_KEYS, child, leaves, resource_schema
from orchestrator.schema import Schema
from orchestrator.spec_words import MUTABLE, figure

COMMITTED = Path(__file__).parents[3] / "k8s" / "crds" / "trainingjobs.fathom.dev.yaml"
SCHEMA = resource_schema()


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, one in schema.get("properties", {}).items():
        yield from nodes(one, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


def test_the_committed_definition_is_the_generated_one() -> None:
    assert COMMITTED.read_text() == text(), "run `make docs`"


def test_the_text_is_the_definition() -> None:
    assert yaml.safe_load(text()) == definition()
    assert "{{" not in text(), "a chart would take it for a template"
    assert len(text()) < 200_000, "kubectl apply keeps a copy in an annotation of 256 KiB"


def test_every_rule_blames_a_field_that_there_is() -> None:
    for path, node in nodes(SCHEMA):
        for rule in node.get("x-kubernetes-validations", []):
            assert ("message" in rule) or ("messageExpression" in rule), path
            if "fieldPath" in rule:
                child(node, rule["fieldPath"].removeprefix("."))


def test_every_rule_has_its_place() -> None:
    placed = {path: node for path, node in nodes(SCHEMA) if "x-kubernetes-validations" in node}
    assert set(placed) == {"", *RULES}
    for path, rules in RULES.items():
        assert len(placed[path]["x-kubernetes-validations"]) == len(rules)


def test_lists_say_how_they_are_merged() -> None:
    lists = {path: node for path, node in nodes(SCHEMA) if node.get("type") == "array"}
    assert {path for path, node in lists.items() if node["x-kubernetes-list-type"] == "map"} == set(LIST_KEYS)
    for path, keys in LIST_KEYS.items():
        assert set(keys) <= set(lists[path]["items"]["required"])


def test_groups_are_filled_in_by_their_fields() -> None:
    for path, node in nodes(SCHEMA):
        if "properties" in node:
            assert node.get("default", {}) == {}, path


def test_columns_show_fields_that_there_are() -> None:
    for column in printer_columns():
        path = re.sub(r"\[\?.*\]", "[]", column["jsonPath"].removeprefix("."))
        if not path.startswith("metadata."):
            assert child(SCHEMA, path)["type"] == column["type"], column


def test_what_is_fixed_and_what_may_change_is_everything() -> None:
    spec = SCHEMA["properties"]["spec"]
    fixed = [rule.at for rule in fixed_rules(spec)]
    for path, _ in leaves(spec, "spec"):
        covered = [at for at in fixed if path == at or path.startswith(f"{at}.")]
        mutable = [at for at in MUTABLE if path == at or path.startswith(f"{at}.")]
        guarded = path in ("spec.budget.limit", "spec.queue.priorityClass")
        assert bool(covered) != (bool(mutable) and not guarded), path


def test_a_new_field_is_fixed_without_being_named() -> None:
    spec: Schema = yaml.safe_load(text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["novel"] = {"type": "string"}
    spec["properties"]["tracking"]["properties"]["novel"] = {"type": "string", "default": "x"}
    assert {"spec.novel", "spec.tracking.novel"} <= {rule.at for rule in fixed_rules(spec)}


def test_words_are_filled_in() -> None:
    assert filled('{a} is "not" {b}', {"a": "self.a", "b": "1"}) == '"%s is \\"not\\" %s".format([self.a, 1])'


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "1"), (0.5, "0.5"), (1e-5, "1e-05"), (3, "3"), (0.1 + 0.2, "0.30000000000000004")],
)
def test_figures_are_shown_as_documents_have_them(value: float, shown: str) -> None:
    assert figure(value) == shown


def test_the_module_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    import runpy

    runpy.run_module("orchestrator.crd", run_name="__main__")
    assert capsys.readouterr().out == text()


def test_no_version_has_a_hole() -> None:
    [version] = definition()["spec"]["versions"]
    assert version["subresources"] == {"status": {}}
    assert (version["served"], version["storage"]) == (True, True)
