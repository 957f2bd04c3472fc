"""Whether the service answers, and is of our version."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from orchestrator.client.find import Service, find
from orchestrator.doctor.ask import Reply, ask
from orchestrator.doctor.files import open_to_others
from orchestrator.doctor.findings import Finding, Place, State
from orchestrator.doctor.installation import own_version
from orchestrator.errors import FathomError, Unavailable

_PATIENCE_SECONDS = 3.0
_SKEW_SECONDS = 5.0


def service(place: Place) -> Iterator[Finding]:
    """The one that the environment names, or else that of the home."""
    home = place.settings.home
    if (token := home / "admin.token").exists() and (open_to := open_to_others("service", token, State.FAIL)):
        yield open_to
    if context := place.env.get("FATHOM_CONTEXT"):
        yield Finding("service", State.OK, f"the controller behind context {context} is not looked at from here")
        return
    try:
        found = find({"FATHOM_HOME": str(home)} | dict(place.env))
    except Unavailable as error:
        gone = (home / "service.json").exists()
        state, do = (State.WARN, "start it again with `fathom serve`") if gone else (State.OK, "")
        yield Finding("service", state, str(error) if gone else "none runs here; `fathom serve` starts one", do)
        return
    except FathomError as error:
        yield Finding("service", State.FAIL, str(error), "correct FATHOM_URL, FATHOM_TOKEN or FATHOM_TOKEN_FILE")
        return
    try:
        alive = ask(found.url, "/livez", timeout=_PATIENCE_SECONDS)
    except OSError as error:
        says = f"{found.url} does not answer: {error}"
        yield Finding("service", State.FAIL, says, "look whether it still runs, and at what it printed last")
        return
    if alive.status != 200:
        says = f"{found.url} answers {alive.status} to /livez"
        yield Finding("service", State.FAIL, says, "something else may listen there: look at FATHOM_URL")
        return
    yield from _answering(found, alive)


def _answering(found: Service, alive: Reply) -> Iterator[Finding]:
    ours, theirs = own_version(), _version(found)
    if theirs is None:
        yield Finding("service", State.FAIL, f"{found.url} refuses our token", "set FATHOM_TOKEN to one that is valid")
    elif theirs != ours:
        says = f"{found.url} is fathom {theirs}, this is {ours}"
        yield Finding("service", State.WARN, says, "use the same version on both sides")
    else:
        yield Finding("service", State.OK, f"{found.url}, fathom {theirs}")
    if (skew := _skew(alive)) is not None and abs(skew) > _SKEW_SECONDS:
        says = f"the service's clock is {skew:+.0f} s from ours"
        yield Finding("service", State.WARN, says, "let both follow the same time server")


def _version(found: Service) -> str | None:
    """What its metrics say; None where our token is refused."""
    try:
        answer = ask(found.url, "/metrics", token=found.token, timeout=_PATIENCE_SECONDS)
    except OSError:
        return "of an unknown version"
    if answer.status in (401, 403):
        return None
    told = re.search(rb'^fathom_build_info\{[^}\n]*version="([^"\n]*)"', answer.body, re.MULTILINE)
    return told[1].decode("utf-8", "replace") if told else "of an unknown version"


def _skew(answer: Reply) -> float | None:
    try:
        return parsedate_to_datetime(answer.headers.get("date", "")).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
