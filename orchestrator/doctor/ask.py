"""One quick question to a web server, by the standard library: for `fathom doctor` and completion, which must say soon
what is there, and not try again for minutes as a client does.

Proxies of the environment are not asked: the service is on this machine, or named by FATHOM_URL.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

_LARGEST = 4_000_000


@dataclass(frozen=True)
class Reply:
    """What was answered."""

    status: int
    headers: Mapping[str, str]
    """By lower-case names."""
    body: bytes


def ask(url: str, path: str, *, token: str = "", timeout: float) -> Reply:
    """GET of `path` below `url`. OSError where nobody answers in time, or with nonsense."""
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=timeout)
        try:
            connection.request("GET", parts.path.rstrip("/") + path, headers=headers)
            answer = connection.getresponse()
            body = answer.read(_LARGEST)
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)
        finally:
            connection.close()
    except (ValueError, http.client.HTTPException) as error:
        raise OSError(f"no answer that can be read: {type(error).__name__}") from None
