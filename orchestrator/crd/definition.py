"""The whole CustomResourceDefinition, and its text."""

from __future__ import annotations

from typing import Any

import yaml

from orchestrator.crd.columns import printer_columns
from orchestrator.crd.schema import resource_schema

GROUP, VERSION, KIND, PLURAL = "fathom.dev", "v1alpha1", "TrainingJob", "trainingjobs"
NAME = f"{PLURAL}.{GROUP}"
HEAD = "# Written by `make docs` from orchestrator/spec.py and orchestrator/status.py; change those, not this.\n"


def definition() -> dict[str, Any]:
    """For apiextensions.k8s.io/v1."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": NAME},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["tj"],
                # in `all` too: what costs money in a namespace should be seen there
                "categories": ["all", "fathom"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": printer_columns(),
                    "schema": {"openAPIV3Schema": resource_schema()},
                }
            ],
        },
    }


def text() -> str:
    """As it stands in k8s/crds."""
    return HEAD + yaml.dump(definition(), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)


class _Plain(yaml.SafeDumper):
    """Without anchors, which other readers of YAML may not know."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401 - PyYAML's
        return True
