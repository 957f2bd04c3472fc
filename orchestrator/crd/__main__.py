"""`python -m orchestrator.crd` prints the custom resource definition."""

from __future__ import annotations

import sys

from orchestrator.crd.definition import text

if __name__ == "__main__":
    sys.stdout.write(text())
