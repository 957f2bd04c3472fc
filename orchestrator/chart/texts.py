"""values.yaml, the README of the chart and its template of the resource definition, written from the models. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from orchestrator.chart.schema import values_schema
from orchestrator.crd.definition import text as definition_text
from orchestrator.schema import Schema

_WIDTH = 118
CHANGE = "Written by `make docs` from orchestrator/chart/values.py and what that is made of; change those, not this."
VALUES = f"""# Values of the chart. {CHANGE}
# A line that begins with a single # is what holds when it is left out.
"""
README = f"""# Helm chart of Fathom

{CHANGE}

How to install it stands in [docs/kubernetes.md](../../docs/kubernetes.md). The chart wants Kubernetes 1.30, KubeRay 1.7
and, for queues, Kueue 0.19. `values.schema.json` holds what you give against the same models as the controller; tables
that are given (`cluster.accelerators`, `cluster.priceClasses`, `cluster.networks`) replace those of the defaults.

| value | type | default | meaning |
|---|---|---|---|
"""
CRD = "{{- /* Written by `make docs` from k8s/crds; change orchestrator/spec.py and status.py, not this. */ -}}\n"
_KEEP = """  labels:
    {{- include "fathom.labels" . | nindent 4 }}
  {{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
"""


def values_text() -> str:
    """values.yaml: a default for each value, with what it means; what is decided elsewhere stands as a comment."""
    root = values_schema()
    lines: list[str] = []
    for name, node in root["properties"].items():
        if name == "global":
            continue
        if name == "cluster":
            said = [*_comment(node["description"], ""), "cluster: {}"]
            lines += [*said, *(f"  {line}" for line in _as_comments(_fields(node)))]
        else:
            lines += _field(name, node)
    return VALUES + "\n".join(lines) + "\n"


def readme_text() -> str:
    """README.md of the chart: a row for each value."""
    rows = [_row(path, node) for path, node in _walk(values_schema(), "") if path != "global"]
    return README + "\n".join(rows) + "\n"


def crd_text() -> str:
    """templates/crd.yaml: the definition of k8s/crds behind a switch, kept on uninstall."""
    source = definition_text().replace("{{", '{{ "{{" }}')
    head, name, rest = source.partition("  name: trainingjobs.fathom.dev\n")
    assert name, "the definition has a name"
    body = head.split("\n", 1)[1]  # without its own first line
    return f"{CRD}{{{{- if .Values.crds.install }}}}\n{body}{name}{_KEEP}{rest}{{{{- end }}}}\n"


# ---------------------------------------------------------------------- values.yaml
def _fields(node: Schema) -> Iterator[str]:
    for name, child in node["properties"].items():
        yield from _field(name, child)


def _field(name: str, node: Schema) -> list[str]:
    said = _comment(node.get("description", ""), "")
    if "properties" in node:
        inside = [f"  {line}" for line in _fields(node)]
        empty = all(line.lstrip().startswith("#") for line in inside)
        return [*said, f"{name}: {{}}" if empty else f"{name}:", *inside]
    if "default" not in node:
        return [*said, f"# {name}:"]
    text = yaml.safe_dump({name: node["default"]}, sort_keys=False, allow_unicode=True, width=_WIDTH)
    return [*said, *text.splitlines()]


def _comment(text: str, margin: str) -> list[str]:
    return [f"{margin}## {line}" for line in textwrap.wrap(text, _WIDTH - len(margin) - 6)]


def _as_comments(lines: Iterator[str]) -> Iterator[str]:
    """Words keep their two signs; a value gets one, once."""
    for line in lines:
        bare = line.lstrip()
        yield line if bare.startswith("#") else f"{line[: len(line) - len(bare)]}# {bare}"


# ---------------------------------------------------------------------- README.md
def _walk(node: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    for name, child in node["properties"].items():
        here = f"{path}.{name}".removeprefix(".")
        if "properties" in child:
            yield from _walk(child, here)
        else:
            yield here, child


def _row(path: str, node: Schema) -> str:
    return f"| {path} | {_kind(node)} | {_default(node)} | {_cell(node.get('description', ''))} |"


def _kind(node: Schema) -> str:
    if "enum" in node:
        return " \\| ".join(f"`{value}`" for value in node["enum"] if value is not None)
    kinds = [node["type"]] if isinstance(node["type"], str) else node["type"]
    kind = " or ".join(one for one in kinds if one != "null")
    if "minimum" in node:
        return f"{kind} {node['minimum']} to {node.get('maximum', '')}".strip()
    if kind == "array":
        return f"list of {_plural(node['items'])}"
    return "map" if kind == "object" else kind


def _plural(node: Schema) -> str:
    return {"string": "strings", "integer": "integers", "object": "rows"}[node["type"]]


def _default(node: Schema) -> str:
    default: Any = node.get("default")
    if default in (None, [], {}):
        return ""
    text = yaml.safe_dump(default, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
    return f"`{text}`" if len(text) <= 80 else "see values.yaml"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
