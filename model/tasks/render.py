"""Documents to examples, by field names and sandboxed Jinja2 templates.

The meaning is lm-eval's: a template that is the name of a field gives the field's value; digits from a template are
the number of a choice. Where the choices are contexts, the text is such a number and the target continues each of them.
"""

from __future__ import annotations

import ast
from typing import Any

from model.tasks.example import Example, Templates
from model.tasks.reading import Row, kind_of
from model.tasks.templates import compiled


def render(row: Row, templates: Templates) -> Example:
    """One document; ValueError names the file, the line and what does not fit."""
    try:
        made = _multiple_choice(row, templates) if templates.kind == "multiple_choice" else _completion(row, templates)
        "".join([made.description, *made.contexts, *made.continuations]).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{row.where}: half of a surrogate pair ({error.object[error.start]!r}) is no text") from None
    return made


def _completion(row: Row, templates: Templates) -> Example:
    context = _string(_value(row, "doc_to_text", templates.text, numbers=False), row, "doc_to_text")
    target = _string(_value(row, "doc_to_target", templates.target, numbers=False), row, "doc_to_target")
    if not target:
        raise ValueError(f"{row.where}: doc_to_target is empty: there is nothing to score")
    return Example(
        where=row.where,
        description=_description(row, templates),
        contexts=(context,),
        continuations=(target,),
        choices=(),
        gold=None,
        solved=f"{context}{templates.target_delimiter}{target}{templates.fewshot_delimiter}",
    )


def _multiple_choice(row: Row, templates: Templates) -> Example:
    choices = _choices(row, templates)
    contextual, delimiter = templates.choices_are_contexts, templates.target_delimiter
    text = _value(row, "doc_to_text", templates.text, numbers=contextual)
    target = _value(row, "doc_to_target", templates.target, numbers=not contextual)
    if contextual:
        gold, answer = _gold(text, choices, row, "doc_to_text"), _string(target, row, "doc_to_target")
        contexts, continuations = choices, (f"{delimiter}{answer}",) * len(choices)
        question = choices[gold]
    else:
        question, gold = _string(text, row, "doc_to_text"), _gold(target, choices, row, "doc_to_target")
        contexts, continuations = (question,) * len(choices), tuple(f"{delimiter}{choice}" for choice in choices)
        answer = choices[gold]
    return Example(
        where=row.where,
        description=_description(row, templates),
        contexts=contexts,
        continuations=continuations,
        choices=choices,
        gold=gold,
        solved=f"{question}{delimiter}{answer}{templates.fewshot_delimiter}",
    )


def _choices(row: Row, templates: Templates) -> tuple[str, ...]:
    wanted: Any = templates.choices
    if isinstance(wanted, str):
        wanted = _value(row, "doc_to_choice", wanted, numbers=False)
        if isinstance(wanted, str):
            try:
                wanted = ast.literal_eval(wanted)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                raise ValueError(f"{row.where}: doc_to_choice gives {wanted[:80]!r}, wanted a list of texts") from None
    if not isinstance(wanted, list | tuple):
        raise ValueError(f"{row.where}: doc_to_choice gives {kind_of(wanted)}, wanted a list of texts")
    if other := [choice for choice in wanted if not isinstance(choice, str)]:
        raise ValueError(f"{row.where}: the choices hold {kind_of(other[0])}, wanted texts only")
    if len(wanted) < 2 or not all(wanted):
        raise ValueError(f"{row.where}: choices are {list(wanted)}, wanted at least two, none of them empty")
    return tuple(wanted)


def _gold(found: object, choices: tuple[str, ...], row: Row, name: str) -> int:
    """Number of the right choice, given as number or as its text."""
    if isinstance(found, int) and 0 <= found < len(choices):  # false and true are 0 and 1
        return int(found)
    if isinstance(found, str) and found in choices:
        return choices.index(found)
    if isinstance(found, list):
        raise ValueError(f"{row.where}: {name} gives several right answers ({found!r}), wanted one")
    raise ValueError(
        f"{row.where}: the label is {str(found)[:80]!r} ({name}), wanted a number from 0 to {len(choices) - 1} "
        "or the text of a choice"
    )


def _value(row: Row, name: str, template: str | int, *, numbers: bool) -> Any:  # noqa: ANN401 - any JSON
    """A field as it is, or a template's text; with `numbers`, digits are a number."""
    if isinstance(template, int):
        return template
    if template in row.fields:
        return row.fields[template]
    text = _rendered(row, name, template)
    return int(text) if numbers and text.isascii() and text.isdigit() and len(text) < 10 else text


def _rendered(row: Row, name: str, template: str) -> str:
    try:
        return compiled(template).render(row.fields)
    except Exception as error:  # noqa: BLE001 - a template may do anything to a document that it does not fit
        have = ", ".join(sorted(row.fields)) or "none"
        raise ValueError(f"{row.where}: {name} cannot be made: {error}; the line's fields are: {have}") from None


def gives_number(row: Row, templates: Templates) -> bool:
    """Whether doc_to_text gives the number of a choice, by which lm-eval knows that the choices are contexts."""
    return isinstance(_value(row, "doc_to_text", templates.text, numbers=True), int)


def _description(row: Row, templates: Templates) -> str:
    return _rendered(row, "description", templates.description) if templates.description else ""


def _string(value: object, row: Row, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{row.where}: {name} gives {kind_of(value)}, wanted text")
    return str(value)
