"""What a check finds, and the order in which all are made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.settings import Settings


class State(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """It works, but a person should know."""
    FAIL = "fail"
    """Something cannot work."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    state: State
    says: str
    do: str = ""
    """What to do; empty where all is well."""

    def document(self) -> dict[str, str]:
        """The JSON form."""
        return {"check": self.check, "state": str(self.state), "says": self.says, "do": self.do}


@dataclass(frozen=True)
class Place:
    """What is looked at."""

    settings: Settings
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)


Check = Callable[[Place], Iterable[Finding]]


def examine(place: Place, checks: Sequence[Check] | None = None) -> Iterator[Finding]:
    """All findings, as they are made; a check that breaks is itself a finding."""
    for check in all_checks() if checks is None else checks:
        name = check.__name__.replace("_", " ")
        try:
            for one in check(place):
                yield Finding(one.check, one.state, _plain(one.says), _plain(one.do))
        except Exception as error:  # noqa: BLE001 - whatever a broken machine brings up is what we are here to tell
            broken = _plain(f"could not be checked: {type(error).__name__}: {error}")
            yield Finding(name, State.FAIL, broken, "report this, with what stands here")


def _plain(text: str) -> str:
    """One line that cannot steer a terminal, whatever a file was named."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def all_checks() -> tuple[Check, ...]:
    """In the order in which a person would look: what is broken first breaks what follows."""
    from orchestrator.doctor import files, installation, leftovers, machine, service

    return (
        installation.python,
        installation.packages,
        installation.imports,
        installation.compiler,
        machine.processor,
        machine.memory,
        machine.gpus,
        files.home,
        files.disk,
        files.locks,
        files.clock,
        files.signing_key,
        files.prices,
        files.budgets,
        files.webhooks,
        files.mlflow,
        service.service,
        leftovers.runs,
        leftovers.notes,
    )


def worst(findings: Iterable[Finding]) -> State:
    """Of all."""
    order = list(State)
    return max((one.state for one in findings), key=order.index, default=State.OK)
