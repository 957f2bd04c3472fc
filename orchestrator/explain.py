"""The fields of a TrainingJob, from the models themselves: for `fathom explain` and the reference in docs/job.md. Pure.

Invariant: nothing is said here that does not stand in `orchestrator.spec` and `orchestrator.status`, but for the
examples, which tests hold valid.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from orchestrator.errors import NotFound
from orchestrator.schema import structural_schema
from orchestrator.spec import TrainingJob

_GPU: dict[str, Any] = {
    "metadata": {"name": "v3-mini", "namespace": "team-a"},
    "spec": {
        "task": "pretrain",
        "model": {
            "preset": "mini",
            "overrides": {
                "vocabSize": 32_000, "hiddenSize": 512, "layers": 8, "denseLayers": 1, "heads": 8, "queryRank": 192,
                "kvRank": 128, "nopeHeadDim": 32, "ropeHeadDim": 16, "valueHeadDim": 32, "denseHiddenSize": 1536,
                "expertHiddenSize": 192, "experts": 64, "expertsPerToken": 6, "sharedExperts": 1, "groups": 8,
                "groupsPerToken": 4, "routedScalingFactor": 2.5, "mtpDepth": 1, "ropeTheta": 10_000.0,
                "maxPositions": 4096, "initialStd": 0.006,
            },
        },
        "data": {
            "source": "data/corpus", "tokenizer": "data/corpus/tokenizer.json", "sequenceLength": 4096,
            "mixture": [{"source": "web", "weight": 0.8}, {"source": "code", "weight": 0.2}],
            "license": "CC-BY-4.0", "provenance": "web crawl 2026-05, filtered",
        },
        "training": {
            "tokens": 2_000_000_000, "globalBatchTokens": 1_048_576, "precision": "bf16",
            "batchRamp": {"startTokens": 262_144, "share": 0.0317},
            "schedule": {
                "learningRate": 0.0004, "finalLearningRate": 0.00004, "warmupSteps": 100, "constantShare": 0.67,
                "decayShare": 0.3,
            },
            "balance": {"biasUpdateSpeed": 0.001},
            "evaluation": {"everySteps": 200, "tokens": 131_072, "tasks": ["tasks/arc-easy.yaml"]},
        },
        "parallelism": {"expert": 8, "zeroStage": 1, "pipeline": 1, "microBatch": 2, "recompute": "full"},
        "compute": {
            "accelerator": "H100", "gpus": 16, "gpusPerNode": 8, "image": "registry.example.org/fathom-train:1",
            "serviceAccountName": "trainer",
        },
        "storage": {"secretRef": "s3-credentials"},
        "budget": {"limit": "5000.00"},
        "checkpoint": {"uri": "s3://bucket/checkpoints", "intervalMinutes": 20.0},
        "tracking": {"experiment": "v3-mini", "tags": {"purpose": "baseline"}},
        "notify": {"url": "https://hooks.example.org/fathom"},
        "queue": {"name": "team-a", "priorityClass": "high"},
    },
}  # fmt: skip
_CPU: dict[str, Any] = {
    "metadata": {"name": "longer"},
    "spec": {
        "task": "extend-context",
        "model": {"initFrom": "runs/mini-20260101-120000"},
        "data": {"source": "data/long", "sequenceLength": 16_384},
        "training": {
            "tokens": 50_000_000,
            "extension": {
                "factor": 4.0, "originalLength": 4096, "betaFast": 32.0, "betaSlow": 1.0, "mscale": 1.0,
            },
        },
        "compute": {"accelerator": "cpu", "workers": 2, "cpuPerWorker": 4, "memoryPerWorker": "8Gi"},
        "storage": {"claim": "team-a-data"},
    },
}  # fmt: skip
EXAMPLES = (_GPU, _CPU)
"""Valid jobs that together show every field without a default."""


@dataclass(frozen=True)
class Field:
    """One field as a person writes it."""

    path: str
    """`[]` stands for each item of a list."""
    type: str
    required: bool
    text: str
    default: Any = None
    """None: there is none, or it is decided by Fathom."""
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    exclusive: tuple[str, ...] = ()
    """Which of "minimum" and "maximum" the value may come near but not reach."""
    pattern: str = ""
    longest: int | None = None
    """Characters of a text, entries of a list or map."""
    example: Any = None
    fields: tuple[Field, ...] = ()
    """Of an object, or of each item of a list of objects."""

    @property
    def bounds(self) -> str:
        """In words; of each item where the field is a list."""
        parts = []
        if self.minimum is not None:
            parts.append(f"{'more than' if 'minimum' in self.exclusive else 'at least'} {_number(self.minimum)}")
        if self.maximum is not None:
            parts.append(f"{'less than' if 'maximum' in self.exclusive else 'at most'} {_number(self.maximum)}")
        return ", ".join(parts)

    def document(self) -> dict[str, Any]:
        """The JSON form; of nested fields all that is known, too."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found


def explain(path: str) -> Field:
    """The field that a person means: with or without `spec.` before it; NotFound suggests what comes close."""
    plain = re.sub(r"\[\d*\]", "", path.strip().strip("."))
    known = _by_plain_path()
    for candidate in (plain, f"spec.{plain}", _of_snake(plain), f"spec.{_of_snake(plain)}"):
        if candidate in known:
            return known[candidate]
    raise NotFound(f"there is no field {path}{_suggestion(plain, list(known))}")


def fields_of(path: str, schema: dict[str, Any]) -> tuple[Field, ...]:
    """Of the properties of a structural schema, in the order in which they are written."""
    required = schema.get("required", [])
    return tuple(
        _field(f"{path}.{name}" if path else name, one, required=name in required)
        for name, one in schema.get("properties", {}).items()
    )


def walk(fields: tuple[Field, ...]) -> Iterator[Field]:
    """All of them, each before what it holds."""
    for one in fields:
        yield one
        yield from walk(one.fields)


@lru_cache(maxsize=1)
def all_fields() -> tuple[Field, ...]:
    """The top of the tree: apiVersion, kind, metadata, spec, status."""
    return fields_of("", structural_schema(TrainingJob))


@lru_cache(maxsize=1)
def _by_plain_path() -> dict[str, Field]:
    return {one.path.replace("[]", ""): one for one in walk(all_fields())}


def _field(path: str, schema: dict[str, Any], *, required: bool) -> Field:
    items = schema.get("items", {})
    value = items or schema
    inner = fields_of(path, schema) or fields_of(f"{path}[]", items)
    default = schema.get("default")
    return Field(
        path=path,
        type=_type(schema),
        required=required,
        text=" ".join(str(schema.get("description", "")).split()),
        default=None if default in ("", {}, []) or inner else default,
        choices=tuple(schema.get("enum", items.get("enum", ()))),
        minimum=value.get("minimum"),
        maximum=value.get("maximum"),
        exclusive=tuple(bound for bound in ("minimum", "maximum") if value.get(f"exclusive{bound.capitalize()}")),
        pattern=value.get("pattern", ""),
        longest=schema.get("maxLength", schema.get("maxItems", schema.get("maxProperties"))),
        example=None if inner else _example(path, schema),
        fields=inner,
    )


def _type(schema: dict[str, Any]) -> str:
    if "items" in schema:
        return f"{schema['type']} of {schema['items']['type']}s"
    if "additionalProperties" in schema:
        return f"map of {schema['additionalProperties']['type']}s"
    return str(schema["type"])


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) or value < 1e6 else f"{value:g}"


def _example(path: str, schema: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON value
    """Of the jobs above, or else the default."""
    for document in EXAMPLES:
        if (found := _value(document, path.split("."))) is not None:
            return found
    return schema.get("default", next(iter(schema.get("enum", ())), None))


def _value(document: Any, keys: list[str]) -> Any:  # noqa: ANN401 - any JSON value
    for key in keys:
        if not isinstance(document, dict) or key.removesuffix("[]") not in document:
            return None
        document = document[key.removesuffix("[]")]
        if key.endswith("[]"):
            document = document[0]
    return document


def _of_snake(path: str) -> str:
    """spec.compute.gpus_per_node -> spec.compute.gpusPerNode."""
    return re.sub(r"_([a-z0-9])", lambda found: found[1].upper(), path)


def _suggestion(plain: str, known: list[str]) -> str:
    """Fields whose path or last name comes close; what the nearest existing parent has, if none does."""
    lowered = {path.lower(): path for path in known}
    near = difflib.get_close_matches(f"spec.{plain}".lower(), lowered, n=2, cutoff=0.8)
    near += difflib.get_close_matches(plain.lower(), lowered, n=2, cutoff=0.8)
    last = plain.rpartition(".")[2].lower()
    near += [path.lower() for path in known if path.rpartition(".")[2].lower() == last]
    found = list(dict.fromkeys(lowered[one] for one in near))[:3]
    if found:
        return ": did you mean " + " or ".join(found) + "?"
    parent = plain.rpartition(".")[0]
    while parent and parent not in known and f"spec.{parent}" not in known:
        parent = parent.rpartition(".")[0]
    parent = parent if parent in known or not parent else f"spec.{parent}"
    below = [path for path in known if path.rpartition(".")[0] == parent]
    return f"; {parent or 'a job'} has: {', '.join(path.rpartition('.')[2] for path in below)}"
