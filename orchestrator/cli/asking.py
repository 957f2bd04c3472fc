"""One quick question to a service of this home, by the standard library: for completion and `fathom doctor`.

Proxies of the environment are not asked: the service is on this machine, or named by FATHOM_URL.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

_LARGEST = 4_000_000


@dataclass(frozen=True)
class Service:
    """Where a service is, and the secret that it wants to see."""

    url: str
    token: str = field(default="", repr=False)
    pid: int | None = None
    """Known of one that runs in this home."""
    boot: float | None = None


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    """By lower-case names."""
    body: bytes


def find_service(home: Path, env: Mapping[str, str] | None = None) -> Service | None:
    """By FATHOM_URL, or by what a running service has left in the home; None where there is neither."""
    values = os.environ if env is None else env
    token = _token(home, values)
    if url := values.get("FATHOM_URL"):
        return Service(url, token)
    try:
        found = json.loads((home / "service.json").read_text())
        return Service(str(found["url"]), token, int(found["pid"]), float(found.get("boot", 0)) or None)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _token(home: Path, values: Mapping[str, str]) -> str:
    if token := values.get("FATHOM_TOKEN"):
        return token
    file = values.get("FATHOM_TOKEN_FILE")
    try:
        return (Path(file).expanduser() if file else home / "admin.token").read_text().strip()
    except (OSError, ValueError):
        return ""


def ask(service: Service, path: str, *, timeout: float) -> Reply | None:
    """GET; None where nobody answers in time, or with nonsense."""
    parts = urlsplit(service.url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    except (ValueError, http.client.InvalidURL):
        return None
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {service.token}"} if service.token else {})
    try:
        connection.request("GET", parts.path.rstrip("/") + path, headers=headers)
        answer = connection.getresponse()
        body = answer.read(_LARGEST)
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
