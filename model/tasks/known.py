"""The table of JSONL rows whose meaning is known without a YAML.

A shape is recognised by its fields in the file's first line; every other line must have it too. Prompts are those that
lm-eval's tasks of the same data use, so that numbers can be compared.
"""

from __future__ import annotations

from model.tasks.example import METRICS
from model.tasks.reading import Row
from model.tasks.shapes import FLAG, LABEL, OBJECT, TEXT, TEXTS, Shape

_QUESTION = ("query", "question", "context")
_TIDY = "|trim|replace(' [title]', '. ')|regex_replace('\\\\[.*?\\\\]', '')|replace('  ', ' ')"
_TIDY_ALL = (
    "|map('trim')|map('replace', ' [title]', '. ')"
    "|map('regex_replace', '\\\\[.*?\\\\]', '')|map('replace', '  ', ' ')|list"
)
"""HellaSwag's text holds marks of the pages that it was taken from."""
_NUMBER_OF = (
    "{% set label = gold|string %}{% set letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ' %}"
    "{% if label in choices and not label.isdigit() %}{{ choices.index(label) }}"
    "{% elif label|length == 1 and label|upper in letters %}{{ letters.index(label|upper) }}"
    "{% else %}{{ label }}{% endif %}"
)
"""A number from 0, a letter from A, or the text of a choice."""


def _own(**kinds: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """Fields that have one name only."""
    return {name: ((name,), kind) for name, kind in kinds.items()}


SHAPES = (
    Shape(
        "ARC",
        _own(question=TEXT, choices=OBJECT, answerKey=TEXT),
        text="Question: {{question}}\nAnswer:",
        target="{{choices.label.index(answerKey)}}",
        choices="{{choices.text}}",
    ),
    Shape(
        "HellaSwag",
        _own(activity_label=TEXT, ctx_a=TEXT, ctx_b=TEXT, endings=TEXTS, label=LABEL),
        text="{{ (activity_label ~ ': ' ~ ctx_a ~ ' ' ~ ctx_b.capitalize())" + _TIDY + " }}",
        target="{{label}}",
        choices="{{ endings" + _TIDY_ALL + " }}",
    ),
    Shape(
        "PIQA",
        _own(goal=TEXT, sol1=TEXT, sol2=TEXT, label=LABEL),
        text="Question: {{goal}}\nAnswer:",
        target="{{label}}",
        choices="{{[sol1, sol2]}}",
    ),
    Shape(
        "WinoGrande",
        _own(sentence=TEXT, option1=TEXT, option2=TEXT, answer=LABEL),
        text="{{ {'1': '0', '2': '1'}.get(answer|string, answer) }}",
        target="{{sentence.split('_', 1)[1]|trim}}",
        choices="{{[sentence.split('_', 1)[0] ~ option1, sentence.split('_', 1)[0] ~ option2]}}",
        metrics=("acc",),
        choices_are_contexts=True,
    ),
    Shape(
        "BoolQ",
        _own(passage=TEXT, question=TEXT) | {"answer": (("answer", "label"), FLAG)},
        text="{{passage}}\nQuestion: {{question}}?\nAnswer:",
        target="{{answer|int}}",
        choices=("no", "yes"),
        metrics=("acc",),
    ),
    Shape(
        "multiple choice",
        {"query": (_QUESTION, TEXT), "choices": (("choices",), TEXTS), "gold": (("gold", "label", "answer"), LABEL)},
        text="query",
        target=_NUMBER_OF,
        choices="choices",
    ),
    Shape(
        "completion",
        {"prompt": (("prompt", "context"), TEXT), "completion": (("completion", "continuation", "target"), TEXT)},
        text="prompt",
        target="completion",
        metrics=METRICS["completion"],
        target_delimiter="",
    ),
    Shape(
        "LAMBADA",
        _own(text=TEXT),
        text="{{text.rstrip().split(' ')[:-1]|join(' ')}}",
        target="{{' ' ~ text.rstrip().split(' ')[-1]}}",
        metrics=METRICS["completion"],
        target_delimiter="",
    ),
)


def shape_of(row: Row) -> Shape:
    """The first that fits a file's first row; ValueError lists what would."""
    for shape in SHAPES:
        if shape.fits(row):
            return shape
    have = ", ".join(sorted(row.fields)) or "none"
    known = "; ".join(f"{s.name}: {', '.join('|'.join(n) for n, _ in s.fields.values())}" for s in SHAPES)
    raise ValueError(
        f"{row.where}: has fields {have}, wanted those of a known task ({known}), or describe the file "
        "by the YAML of an lm-eval task"
    )
