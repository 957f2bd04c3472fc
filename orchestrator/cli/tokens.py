"""`fathom token`: who may ask the service for what."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from orchestrator.cli.output import Column, Output, OutputOption, dump, show, talk
from orchestrator.cli.served import connect

token_app = typer.Typer(help="Make, list and revoke tokens of the service.", no_args_is_help=True)
_COLUMNS = (
    Column("NAME"),
    Column("ROLE"),
    Column("TEAM"),
    Column("CREATED"),
    Column("EXPIRES"),
    Column("REVOKED"),
)


class Role(StrEnum):
    """What a token allows, each also what those before it do."""

    reader = "reader"
    runner = "runner"
    admin = "admin"


@token_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose it is, e.g. ci.")],
    role: Annotated[Role, typer.Option(help="reader: look; runner: submit and change jobs; admin: all.")] = Role.runner,
    team: Annotated[str | None, typer.Option(help="Jobs of this team only; left out: of all teams.")] = None,
    days: Annotated[float | None, typer.Option(min=0, help="Days that it is good for.", metavar="NUMBER")] = None,
    output: OutputOption = Output.table,
) -> None:
    """Make a token; its secret is printed now and never again.

    Example: FATHOM_TOKEN=$(fathom token create ci --team vision)
    """
    with connect() as client:
        token = client.create_token(name, role.value, team=team, days=days)
    if output in (Output.json, Output.yaml):
        dump(token.document(), output)
        return
    print(token.name if output is Output.name else token.secret)
    talk(f"{token.name}: {token.role} of {token.team or 'all teams'}; keep the secret, it is not stored")


@token_app.command("list")
def list_tokens(output: OutputOption = Output.table) -> None:
    """List the tokens, without their secrets.

    Example: fathom token list
    """
    with connect() as client:
        found = [token.document() for token in client.tokens()]
    show(
        found,
        output,
        columns=_COLUMNS,
        row=_row,
        name=lambda token: str(token["name"]),
    )


@token_app.command("revoke")
def revoke(name: Annotated[str, typer.Argument(help="As `fathom token list` shows it.")]) -> None:
    """Take a token back: from now on it is refused.

    Example: fathom token revoke ci
    """
    with connect() as client:
        client.revoke_token(name)
    talk(f"{name}: revoked")


def _row(token: Mapping[str, Any]) -> dict[str, str]:
    times = {key.upper(): str(token.get(key, ""))[:16].replace("T", " ") for key in ("created", "expires", "revoked")}
    return {"NAME": token["name"], "ROLE": token["role"], "TEAM": token.get("team", "all")} | times
