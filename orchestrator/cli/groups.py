"""`fathom --help` in groups: commands that belong together stand together, in the order of their use."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

_OTHER = "Other"


class Grouped(TyperGroup):
    """Each command says its group by `rich_help_panel`; groups and commands are in the order of registration."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - a class of typer's own copy of click
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - as above
        groups: dict[str, list[tuple[str, Any]]] = {}
        for name in self.list_commands(ctx):
            if (command := self.get_command(ctx, name)) is not None and not command.hidden:
                groups.setdefault(group_of(command), []).append((name, command))
        width = max((len(name) for rows in groups.values() for name, _ in rows), default=0)
        limit = formatter.width - 6 - width
        for heading, rows in groups.items():
            with formatter.section(heading):
                lines = [(name.ljust(width), command.get_short_help_str(limit)) for name, command in rows]
                formatter.write_dl(lines)


def group_of(command: Any) -> str:  # noqa: ANN401 - as above
    """The heading that a command stands under."""
    return str(getattr(command, "rich_help_panel", None) or _OTHER)
