"""How a read is printed: `-o table|wide|json|yaml|name`. Data goes to stdout, talk to stderr.

Tables are filled by the name of the column, so that a new one never shifts the others. Off a terminal they have no
colour and are never cut: a program reads them. Colours follow NO_COLOR, and mean only what a word beside them says.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, TextIO

import typer


class Output(StrEnum):
    """How to print."""

    table = "table"
    wide = "wide"
    json = "json"
    yaml = "yaml"
    name = "name"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print.")]
Row = Mapping[str, str]
"""Cells by the heading of their column."""

_COLOURS = {"good": "32", "bad": "31", "busy": "36", "wait": "33", "head": "1"}


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    heading: str
    right: bool = False
    """Numbers stand under each other."""
    wide: bool = False
    """Only in the wide form."""
    colour: Callable[[str], str] | None = None
    """Cell -> a word of `_COLOURS`, empty for none."""


def show(
    documents: Sequence[Mapping[str, Any]],
    output: Output,
    *,
    columns: Sequence[Column],
    row: Callable[[Mapping[str, Any]], Row],
    name: Callable[[Mapping[str, Any]], str],
    one: bool = False,
) -> None:
    """Print documents; `one`: the one alone, not a list of it. JSON and YAML hold them as the service gave them."""
    if output is Output.name:
        for document in documents:
            print(name(document))
    elif output in (Output.json, Output.yaml):
        dump(documents[0] if one else list(documents), output)
    else:
        shown = [column for column in columns if output is Output.wide or not column.wide]
        print(table(shown, [row(document) for document in documents], colour=coloured(sys.stdout)), end="")


def for_programs(content: object, output: Output, names: Sequence[str]) -> bool:
    """Print it as JSON, YAML or names, a line each; False: it is for people, and nothing was printed."""
    if output in (Output.table, Output.wide):
        return False
    if output is Output.name:
        for name in names:
            print(name)
    else:
        dump(content, output)
    return True


def dump(content: object, output: Output) -> None:
    """Any JSON value as JSON or YAML."""
    if output is Output.yaml:
        import yaml

        print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120), end="")
    else:
        print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def table(columns: Sequence[Column], rows: Sequence[Row], *, colour: bool = False) -> str:
    """Lines of equal columns, two blanks apart; a cell that is absent or empty is a dash."""
    cells = [[_clean(row.get(column.heading, "")) or "-" for column in columns] for row in rows]
    heads = [column.heading for column in columns]
    widths = [max(map(_width, texts)) for texts in zip(heads, *cells, strict=True)]
    lines = [_line(heads, columns, widths, ["head"] * len(columns) if colour else None)]
    for texts in cells:
        styles = [c.colour(text) if c.colour else "" for c, text in zip(columns, texts, strict=True)]
        lines.append(_line(texts, columns, widths, styles if colour else None))
    return "".join(f"{line}\n" for line in lines)


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, a line each; what has no value is left out, further lines of a value are indented."""
    known = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in known), default=0) + 2
    return "".join(f"{name:<{width}}{_indented(value, width)}\n" for name, value in known)


def coloured(stream: TextIO) -> bool:
    """Whether colours go there."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def talk(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def _line(texts: Sequence[str], columns: Sequence[Column], widths: Sequence[int], styles: Sequence[str] | None) -> str:
    parts = []
    for index, (text, column, width) in enumerate(zip(texts, columns, widths, strict=True)):
        blank = " " * (width - _width(text))
        shown = _styled(text, styles[index]) if styles else text
        parts.append(blank + shown if column.right else shown + blank)
    return "  ".join(parts).rstrip()


def _styled(text: str, style: str) -> str:
    return f"\x1b[{_COLOURS[style]}m{text}\x1b[0m" if style else text


def _clean(text: str) -> str:
    """One line without control characters: a name or a message must not steer the terminal."""
    return "".join(" " if char in "\n\t\r" else char for char in text if char in "\n\t\r" or char.isprintable())


def _indented(text: str, width: int) -> str:
    return ("\n" + " " * width).join(_clean(line) for line in text.splitlines())


def _width(text: str) -> int:
    """Columns on a terminal."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
