"""What a document of a task becomes, and the settings by which it does. No templates and no tokens here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["multiple_choice", "completion"]
METRICS: Mapping[Kind, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm"),
    "completion": ("perplexity", "acc"),
}
"""What can be measured; all of it where a task does not say."""


@dataclass(frozen=True)
class Templates:
    """How documents become examples: names of fields or Jinja2 templates, with lm-eval's meaning."""

    name: str
    kind: Kind
    text: str
    target: str | int
    choices: str | Sequence[str] | None
    """None: a completion."""
    metrics: tuple[str, ...]
    choices_are_contexts: bool = False
    """As in WinoGrande: one target is scored after each of them, and `text` is the number of the right one."""
    description: str = ""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"


@dataclass(frozen=True)
class Example:
    """One document, rendered: its continuations are scored after their contexts, in pairs."""

    where: str
    description: str
    """Stands before everything, few-shot examples too."""
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    choices: tuple[str, ...]
    """As shown to people; acc_norm divides by their lengths in characters. Empty for a completion."""
    gold: int | None
    """Which choice is right; None for a completion."""
    solved: str
    """The example with its answer, as it stands before others in few-shot contexts."""
