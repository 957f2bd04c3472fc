"""Plans, launches, accounts and tracks training jobs.

`from orchestrator import Client` is the Python client of a running service. It is imported when it is first asked for,
so that whoever imports any other part pays nothing for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.client import AsyncClient, Client, Job, PlannedJob

__all__ = ["AsyncClient", "Client", "Job", "PlannedJob"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from orchestrator import client

    return getattr(client, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
