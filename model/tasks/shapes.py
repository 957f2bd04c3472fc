"""A kind of JSONL row whose meaning is known without a YAML; `known` is the table of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from model.tasks.example import METRICS, Kind, Templates
from model.tasks.reading import Row, kind_of

TEXT, TEXTS, LABEL, OBJECT = "text", "a list of texts", "a number or text", "an object of lists `text` and `label`"
FLAG = "true, false or a number"


@dataclass(frozen=True)
class Shape:
    """One kind of row."""

    name: str
    fields: Mapping[str, tuple[tuple[str, ...], str]]
    """By the name that the templates use: the names in files, any one of them, and what the value must be."""
    text: str
    target: str
    choices: str | tuple[str, ...] | None = None
    metrics: tuple[str, ...] = METRICS["multiple_choice"]
    choices_are_contexts: bool = False
    target_delimiter: str = " "

    def templates(self, task: str) -> Templates:
        """As a task of that name."""
        kind: Kind = "completion" if self.choices is None else "multiple_choice"
        return Templates(
            name=task,
            kind=kind,
            text=self.text,
            target=self.target,
            choices=self.choices,
            metrics=self.metrics,
            choices_are_contexts=self.choices_are_contexts,
            target_delimiter=self.target_delimiter,
        )

    def fits(self, row: Row) -> bool:
        """Whether the row has a field for each of ours; what is in them is looked at later."""
        return all(any(name in row.fields for name in names) for names, _ in self.fields.values())

    def canonical(self, row: Row) -> Row:
        """The row by the names that the templates use; ValueError if it is of another shape."""
        return replace(row, fields={own: self._field(row, own) for own in self.fields})

    def _field(self, row: Row, own: str) -> Any:  # noqa: ANN401 - any JSON
        names, wanted = self.fields[own]
        present = [name for name in names if name in row.fields]
        if not present:
            have = ", ".join(sorted(row.fields)) or "none"
            raise ValueError(f"{row.where}: has fields {have}, wanted {' or '.join(names)} ({self.name})")
        value = row.fields[present[0]]
        if not _is(value, wanted):
            raise ValueError(f"{row.where}: field {present[0]} is {kind_of(value)}, wanted {wanted} ({self.name})")
        return value


def _is(value: object, wanted: str) -> bool:
    if wanted == OBJECT:
        return isinstance(value, dict) and _is(value.get("text"), TEXTS) and _is(value.get("label"), TEXTS)
    if wanted == TEXTS:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if wanted == LABEL:
        return isinstance(value, int | str) and not isinstance(value, bool)
    return isinstance(value, int) if wanted == FLAG else isinstance(value, str)
