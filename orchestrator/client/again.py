"""What is sent once more, and when. Pure.

A request that never arrived may always be repeated; one that may have arrived only if a second one changes nothing:
GET, and POST with an Idempotency-Key, which the client makes itself. PATCH and DELETE have none.
"""

from __future__ import annotations

from orchestrator.client.answers import Answer

ATTEMPTS = 5
"""Of one request, the first included."""
_FIRST, _LONGEST, _LONGEST_ASKED = 0.25, 4.0, 60.0
_NOT_NOW = frozenset({429, 503})
"""The service has done nothing: any request may come again."""
_LOST = frozenset({502, 504})
"""Something in between does not know what became of it."""
_IN_FLIGHT = "idempotency-in-flight"


class Cut(Exception):
    """No answer came."""

    def __init__(self, reason: str, *, arrived: bool) -> None:
        super().__init__(reason)
        self.arrived = arrived
        """Whether the request may have reached the service."""


def pause(attempt: int, chance: float) -> float:
    """Seconds after the `attempt`th failure: doubling, up to half of it by `chance` (0 to 1), so that many clients that
    were cut at once do not come back at once."""
    return float(min(_FIRST * 2 ** (attempt - 1), _LONGEST) * (1 - chance / 2))


def again(outcome: Answer | Cut, *, repeatable: bool, attempt: int, chance: float) -> float | None:
    """Seconds until the request is sent again; None: the outcome stands."""
    if attempt >= ATTEMPTS:
        return None
    if isinstance(outcome, Cut):
        return pause(attempt, chance) if repeatable or not outcome.arrived else None
    in_flight = outcome.status == 409 and outcome.code == _IN_FLIGHT
    if outcome.status in _NOT_NOW or in_flight or (outcome.status in _LOST and repeatable):
        asked = outcome.retry_after
        if asked is None:
            return pause(attempt, chance)
        return None if asked > _LONGEST_ASKED else asked  # a person decides whether to wait longer
    return None
