"""Where the service is, and the token to show it: from the environment, or from what a running service leaves in its
home. Called by the clients, again whenever the service does not answer: it may have come back at another address.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from ssl import SSLContext
from typing import Any
from urllib.parse import urlsplit

from orchestrator.errors import Unavailable, UsageError
from orchestrator.settings import Settings

_START = "start one with `fathom serve`, or set FATHOM_URL and FATHOM_TOKEN for one elsewhere"
_SERVICE, _AUDIENCE = "fathom-system/http:fathom-controller:8080", "fathom"
"""Of a controller, as the chart installs it."""
_SAME_BOOT_SECONDS, _SAME_START_SECONDS = 5, 1
"""Clocks are set meanwhile."""


@dataclass(frozen=True)
class Service:
    """An address, and the secret for it, which is never shown."""

    url: str
    token: str = field(repr=False)
    header: str = "Authorization"
    """In which the token goes."""
    others: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers for those who are in between."""
    tls: SSLContext | None = field(default=None, compare=False, repr=False)
    """By which the address is verified; None: by the machine's certificates."""

    @property
    def local(self) -> bool:
        """Whether it is on this machine."""
        return loopback(self.url)


def find(env: Mapping[str, str] | None = None) -> Service:
    """The service that the environment names, else the one whose home this is. Unavailable: none, or it is gone."""
    values = os.environ if env is None else env
    if context := values.get("FATHOM_CONTEXT"):
        return _in_cluster(context, values)
    home = Settings.load(values).home
    if url := values.get("FATHOM_URL"):
        return Service(checked(url, values), _token(values) or _own_token(home, url))
    running = _running(home)
    return Service(checked(running, values), _token(values) or _admin_token(home))


def _in_cluster(context: str, env: Mapping[str, str]) -> Service:
    """The controller of a cluster, through its API server, with what the kubeconfig holds for that. The token for the
    controller is another: what is good for the whole cluster is not sent to it."""
    from orchestrator.kube.way import account_token, way_to  # late: most clients know no cluster

    if env.get("FATHOM_URL"):
        raise UsageError("both FATHOM_URL and a context are given: leave one out")
    token = _token(env)
    if token is None and (account := env.get("FATHOM_ACCOUNT")):
        token = account_token(context, account, env.get("FATHOM_AUDIENCE") or _AUDIENCE)
    if token is None:
        raise UsageError(
            f"there is no token for the controller behind context {context}: set FATHOM_ACCOUNT=NAMESPACE/NAME, a "
            "service account for which you may create tokens, or FATHOM_TOKEN to what `kubectl create token NAME "
            f"--audience={_AUDIENCE}` prints"
        )
    way = way_to(context, env.get("FATHOM_SERVICE") or _SERVICE)
    return Service(way.url, token, "X-Fathom-Authorization", way.headers, way.tls)


def elsewhere(env: Mapping[str, str], context: str) -> dict[str, str]:
    """The environment with another context: tokens that it names are for the one that it names."""
    kept = dict(env)
    if kept.get("FATHOM_CONTEXT", context) != context:
        for name in ("FATHOM_TOKEN", "FATHOM_TOKEN_FILE", "FATHOM_ACCOUNT"):
            kept.pop(name, None)
    return kept | {"FATHOM_CONTEXT": context}


def checked(url: str, env: Mapping[str, str] | None = None) -> str:
    """The address without a trailing slash; UsageError where a token must not go."""
    values = os.environ if env is None else env
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url!r} is no address of a service: write e.g. http://127.0.0.1:8470 or https://host")
    if parts.username or parts.query or parts.fragment:
        raise UsageError("FATHOM_URL holds more than scheme, host, port and path: a token goes into FATHOM_TOKEN")
    if parts.scheme == "http" and not loopback(url) and values.get("FATHOM_ALLOW_HTTP") != "1":
        raise UsageError(
            f"{url} would send the token in plain text over the network: use https, or set FATHOM_ALLOW_HTTP=1 "
            "where the network itself is encrypted"
        )
    return url.rstrip("/")


def loopback(url: str) -> bool:
    """Whether nothing but this machine is reached by it."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# Tokens


def _token(env: Mapping[str, str]) -> str | None:
    """The one that the environment gives."""
    if text := env.get("FATHOM_TOKEN", "").strip():
        return _sendable(text, "FATHOM_TOKEN")
    if name := env.get("FATHOM_TOKEN_FILE"):
        return _read_token(Path(name).expanduser(), "FATHOM_TOKEN_FILE names")
    return None


def _own_token(home: Path, url: str) -> str:
    """The admin token is for the service of this home only, whatever address is named."""
    if (record := _record(home)) is not None and record.get("url", "").rstrip("/") == url.rstrip("/"):
        return _admin_token(home)
    raise UsageError(f"FATHOM_URL is {url}, but there is no token for it: set FATHOM_TOKEN or FATHOM_TOKEN_FILE")


def _admin_token(home: Path) -> str:
    return _read_token(home / "admin.token", "the service's own token is in")


def _read_token(path: Path, what: str) -> str:
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise UsageError(f"{what} {path}, which cannot be read: {reason}; or set FATHOM_TOKEN") from None
    return _sendable(text, str(path))


def _sendable(text: str, where: str) -> str:
    """A header takes no other characters."""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError(f"{where} holds no token: it must be one word of printable characters")
    return text


# The service of this home


def _record(home: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((home / "service.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("url"), str) else None


def _running(home: Path) -> str:
    """Its address, if the process that wrote it lives: another program may listen there now."""
    record = _record(home)
    if record is None:
        raise Unavailable(f"no service has been started in {home}: {_START}")
    if not _lives(record):
        raise Unavailable(
            f"the service of {home} (process {record['pid']}) is gone: start it again with `fathom serve`; trainings "
            "that it had started go on meanwhile"
        )
    return str(record["url"])


def _lives(record: Mapping[str, Any]) -> bool:
    """Whether that very process is alive: its number alone may be another's by now."""
    import psutil

    try:
        pid, started, boot = int(record["pid"]), float(record["started"]), float(record["boot"])
    except (KeyError, TypeError, ValueError):
        return True  # nothing was said: the connection will tell
    if abs(psutil.boot_time() - boot) >= _SAME_BOOT_SECONDS:
        return False
    try:
        return bool(abs(psutil.Process(pid).create_time() - started) < _SAME_START_SECONDS)
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
