"""The reference of the job format, written from the models themselves: `make docs` puts it into docs/job.md.

Invariant: nothing is said here that does not stand in `orchestrator.spec`; a test holds the file equal to this.
"""

from __future__ import annotations

import sys
from typing import Any

from orchestrator.schema import structural_schema
from orchestrator.spec import JobSpec, Metadata

HEAD = """# The job: TrainingJob v1alpha1

Written by `make docs` from `orchestrator/spec.py`; change that, not this. A field without a default that is not
required is decided by Fathom; what was decided, and why, stands in `status.plan` and in `resolved.json`.
`k8s/samples/` has jobs to start from.

| field | type | default | meaning |
|---|---|---|---|
"""


def job_reference() -> str:
    """Markdown with one row for each field of metadata and spec."""
    rows = [*_rows("metadata", structural_schema(Metadata)), *_rows("spec", structural_schema(JobSpec))]
    return HEAD + "\n".join(rows) + "\n"


def _rows(path: str, schema: dict[str, Any]) -> list[str]:
    rows = []
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        where = f"{path}.{name}"
        if "properties" in field:
            rows.append(f"| **{where}** | | {'required' if name in required else ''} | {_text(field)} |")
            rows += _rows(where, field)
            continue
        default = "required" if name in required else _default(field)
        rows.append(f"| {where} | {_kind(field)} | {default} | {_text(field)} |")
        rows += _rows(f"{where}[]", field.get("items", {}))
    return rows


def _kind(field: dict[str, Any]) -> str:
    """Type and bounds."""
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"])
    low, high = field.get("minimum"), field.get("maximum")
    bounds = f" {low if low is not None else ''} to {high if high is not None else ''}" if low is not None else ""
    items = f" of {field['items']['type']}s" if "items" in field else ""
    return f"{field['type']}{items}{bounds}"


def _default(field: dict[str, Any]) -> str:
    if "default" not in field or field["default"] in ("", {}, []):
        return ""
    return f"`{str(field['default']).lower() if isinstance(field['default'], bool) else field['default']}`"


def _text(field: dict[str, Any]) -> str:
    return " ".join(str(field.get("description", "")).split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(job_reference())
