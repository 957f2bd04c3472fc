"""`python -m orchestrator.chart FILE` prints that file of helm/fathom."""

from __future__ import annotations

import sys

from orchestrator.chart.schema import text as schema_text
from orchestrator.chart.texts import crd_text, readme_text, values_text

FILES = {
    "values.yaml": values_text,
    "values.schema.json": schema_text,
    "README.md": readme_text,
    "templates/crd.yaml": crd_text,
}

if __name__ == "__main__":
    sys.stdout.write(FILES[sys.argv[1]]())
