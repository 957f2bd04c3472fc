"""`fathom explain spec.compute`: what a field means, and how to write it."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import Output, OutputOption, dump

if TYPE_CHECKING:
    from orchestrator.explain import Field

_WIDTH = 100


def field_names(incomplete: str) -> list[str]:
    """For the completion of the shell."""
    from orchestrator.explain import all_fields, walk

    return [one.path for one in walk(all_fields()) if "[]" not in one.path and one.path.startswith(incomplete)]


def explain_command(
    field: Annotated[
        str,
        typer.Argument(help="A field of a job, e.g. spec.compute or status.progress.", autocompletion=field_names),
    ] = "spec",
    output: OutputOption = Output.table,
) -> None:
    """Explain a field of a job: its meaning, type, bounds and default, with an example and the fields below it.

    Examples: fathom explain spec.compute  |  fathom explain training.tokens
    """
    from orchestrator.explain import explain, walk

    found = explain(field)
    if output in (Output.json, Output.yaml):
        dump(found.document(), output)
        return
    if output is Output.name:
        print("\n".join(one.path for one in walk((found,))))
        return
    for line in _lines(found):
        print(line)


def _lines(field: Field) -> list[str]:
    lines = [f"{field.path}  <{_kind(field)}>", *_wrapped(field.text, "  ")]
    facts = [
        ("one of", ", ".join(map(_plain, field.choices))),
        ("bounds", field.bounds),
        ("pattern", field.pattern),
        ("longest", "" if field.longest is None else _longest(field)),
        ("default", "" if field.default is None else _plain(field.default)),
        ("example", "" if field.example is None else f"{field.path.rpartition('.')[2]}: {_plain(field.example)}"),
    ]
    told = [f"  {name:<8} {text}" for name, text in facts if text]
    lines += ["", *told] if told else []
    if field.fields:
        lines += ["", "fields:"]
        for one in field.fields:
            lines.append(f"  {one.path.rpartition('.')[2]}  <{_kind(one)}>")
            lines += _wrapped(one.text, "    ")
    return lines


def _kind(field: Field) -> str:
    return f"{field.type}, required" if field.required else field.type


def _longest(field: Field) -> str:
    return f"{field.longest:,} {'characters' if field.type == 'string' else 'entries'}"


def _plain(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """As it is written in YAML, where JSON is YAML, too; words need no quotes."""
    return value if isinstance(value, str) and value.replace("-", "").isalpha() else json.dumps(value)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
