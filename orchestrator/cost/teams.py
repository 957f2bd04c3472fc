"""What teams may spend, from the user's own file (FATHOM_BUDGETS): rows of team, limit and currency.

Imports nothing heavy. A team without a row has no limit. The limit is for all runs together, for ever: whoever gives
money for a new month raises it.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from pydantic import Field, field_validator

from model.config import Frozen
from orchestrator.errors import UsageError
from orchestrator.plan.files import read_rows


class TeamLimit(Frozen):
    """One row of the file."""

    team: str = Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    """A namespace, as in `metadata.namespace`."""
    limit: Decimal = Field(ge=0, le=10**12, decimal_places=6)
    currency: str = Field(pattern=r"^[A-Z]{3}$")
    """ISO 4217 code."""

    @field_validator("limit", mode="before")
    @classmethod
    def _exact(cls, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
            raise ValueError(f'must be an amount as text, e.g. "5000.00", got {value!r}')
        return value


def read_teams(path: Path) -> dict[str, TeamLimit]:
    """By team; UsageError says which row is wrong, and what is wrong with it."""
    found: dict[str, TeamLimit] = {}
    for number, one in enumerate(read_rows(path, "budgets", "check FATHOM_BUDGETS", TeamLimit), start=1):
        if (same := found.get(one.team)) is not None:
            raise UsageError(
                f"budgets {path}: row {number}: a second limit for {one.team}: {same.limit} and {one.limit}; keep one"
            )
        found[one.team] = one
    return found
