"""A task: a file of documents, rendered. Read once, before training starts, so that mistakes show at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from model.files import local_path
from model.tasks.definition import read_definition
from model.tasks.example import Example, Kind, Templates
from model.tasks.known import shape_of
from model.tasks.reading import Row, read_rows
from model.tasks.render import gives_number, render

RESERVED = ("loss", "bits_per_byte", "mtp_accuracy")
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Task:
    """Rendered documents and what is measured on them."""

    name: str
    kind: Kind
    metrics: tuple[str, ...]
    examples: tuple[Example, ...]
    few_shot: int = 0
    pool: tuple[Example, ...] = ()
    """What few-shot examples are drawn from."""
    spare: bool = False
    """One more is drawn, in case the example itself is among them."""
    first_few: bool = False
    """The first of the pool instead of drawn ones."""


def load_tasks(uris: Sequence[str]) -> list[Task]:
    """Tasks from `.jsonl` files of a known shape and `.yaml` files of lm-eval: local paths or URLs of fsspec.

    ValueError or FileNotFoundError name the file and, for a document, the line, what was found and what is wanted.
    """
    tasks: dict[str, Task] = {}
    for uri in uris:
        task = _from_yaml(uri) if uri.endswith(YAML) else _from_rows(uri)
        if task.name in RESERVED:
            raise ValueError(f"{uri}: a task cannot be named {task.name}, as a metric of held-out text is: rename it")
        if task.name in tasks:
            raise ValueError(f"{uri}: another task is named {task.name} too: their results could not be told apart")
        tasks[task.name] = task
    return list(tasks.values())


def _from_rows(uri: str) -> Task:
    if not uri.endswith(".jsonl"):
        raise ValueError(f"{uri} is no task: wanted a .jsonl file of documents or an lm-eval .yaml")
    rows = read_rows(uri)
    shape = shape_of(rows[0])
    templates = shape.templates(_name(PurePosixPath(uri).stem))
    examples = tuple(render(shape.canonical(row), templates) for row in rows)
    return Task(templates.name, templates.kind, templates.metrics, examples)


def _from_yaml(uri: str) -> Task:
    definition = read_definition(uri)
    try:
        templates = definition.templates()
        evaluated = definition.file(uri, "test_split", "validation_split")
        # lm-eval's order where no split is named
        pool = definition.file(uri, "fewshot_split", "training_split", "validation_split", "test_split")
    except ValueError as error:
        raise ValueError(f"{uri}: {error}") from None
    rows = read_rows(evaluated)
    contexts = templates.kind == "multiple_choice" and gives_number(rows[0], templates)
    templates = replace(templates, name=_name(definition.task), choices_are_contexts=contexts)
    examples = _rendered(rows, templates)
    same = _where(pool) == _where(evaluated)
    shots = definition.num_fewshot
    pooled = () if not shots else examples if same else _rendered(read_rows(pool), templates)
    if shots and len(pooled) - same < shots:
        raise ValueError(f"{uri}: num_fewshot is {shots}, but {pool} has only {len(pooled) - same} others to show")
    spare = same or definition.fewshot_split == definition.test_split  # the latter as in lm-eval, to draw what it does
    first = definition.fewshot_config.sampler == "first_n"
    return Task(templates.name, templates.kind, templates.metrics, examples, shots, pooled, spare, first)


def _where(uri: str) -> str:
    """One name for a file, however it is written."""
    path = local_path(uri)
    return uri if path is None else str(path.resolve())


def _rendered(rows: Sequence[Row], templates: Templates) -> tuple[Example, ...]:
    columns: dict[str, Any] = {name: None for row in rows for name in row.fields}
    # a field that only other lines have is null, as in a table
    return tuple(render(replace(row, fields=columns | row.fields), templates) for row in rows)


def _name(text: str) -> str:
    """Fit to be a part of a metric's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text) or "task"
